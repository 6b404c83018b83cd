"""Ingest: parsed lines → sealed blocks → one guarded commit with the source's offsets in it."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import polars as pl
from attrs import evolve, field, frozen
from pyiceberg.manifest import DataFile
from pyiceberg.table.metadata import TableMetadata

from keys import Identity, InvalidName, Provisioned, SealSession, SubjectId, WritingKeys
from keys.quiet import no_collections
from lake.blocks import event_tags, seal_events
from lake.cloudevents import Parsed, Rejected
from lake.errors import EpochMoved, Fenced
from lake.events import PLAIN_COLUMNS, day_partition
from lake.eventtypes import DEAD_LETTER, PRIMARY, EventType, Facet
from lake.offsets import AlreadyLanded, Range, ingest_summary, offsets_of, source_number
from lake.sources import DEFAULT_BATCH_EVENTS, Source
from lake.table import Committed, IcebergTable, summary_of
from lake.typeregistry import TypeRegistry

_SERVICE: Final = PRIMARY.purpose
LETTER_PURPOSE: Final = _SERVICE
Progress = Callable[[int, int], None]
"""Called with (lines done, bytes of blocks written so far)."""


@frozen
class IngestSummary:
    """What one ingest did.

    Attributes:
        events: accepted now; `dead` went to the dead letters by reason; `suppressed` belong to erased
            people and were not stored; `blank` lines hold no event.
        already: lines that were ingested before.
        snapshots: commits made.
    """

    source: str
    events: int = 0
    blocks: int = 0
    stored_bytes: int = 0
    dead: int = 0
    suppressed: int = 0
    blank: int = 0
    already: int = 0
    snapshots: tuple[int, ...] = ()
    reasons: tuple[tuple[str, int], ...] = ()
    rejected: tuple[Rejected, ...] = field(default=(), repr=False)
    suppressed_lines: tuple[int, ...] = ()


Part = tuple[str, Parsed]
"""A source's name, and lines of it."""


@frozen
class Prepared:
    """A sealed batch that is not in the table yet.

    Attributes:
        ranges: per source the lines, and what became of them.
        epoch: the newest fence that it was sealed after; `refs` is everybody it counts on.
        suppressed_lines: of erased people, in the order of the parts.
    """

    files: tuple[DataFile, ...]
    ranges: tuple[Range, ...]
    epoch: int
    refs: frozenset[bytes] = field(repr=False)
    blocks: int
    stored_bytes: int
    suppressed_lines: tuple[int, ...]

    @property
    def events(self) -> int:
        """Stored as events, of all ranges."""
        return sum(one.events for one in self.ranges)


class Ingestor:
    """Writes events of a source into `lake.events`.

    Args:
        table: the events table.
        keyring: seals, and knows who is fenced.
        types: registered event types.
        clock: gives `ingested_at`.
    """

    def __init__(
        self, table: IcebergTable, keyring: WritingKeys, types: TypeRegistry, clock: Callable[[], datetime]
    ) -> None:
        self._table = table
        self._keyring = keyring
        self._types = types
        self._clock = clock
        self._session: SealSession = keyring.session()
        self._table_uuid = table.metadata().table_uuid.bytes
        self._nobody: bytes | None = None
        self._named: set[bytes] = set()  # everybody this batch counts on, also who is erased meanwhile

    def run(
        self,
        source: Source,
        *,
        batch_events: int = DEFAULT_BATCH_EVENTS,
        progress: Progress = lambda lines, stored: None,
    ) -> IngestSummary:
        """Ingests what the table does not hold yet; the same source again changes nothing.

        Raises:
            StorageFailed: the disk refused; run again to continue.
            CommitConflict, KeysError: nothing was written for the batch in question.
        """
        summary = IngestSummary(source.name, already=self._next_line(source))
        while True:
            try:
                return self._continue(source, summary, batch_events, progress)
            except Fenced:
                # Another process ingests the same source: what it did counts as done.
                done = sum((summary.events, summary.dead, summary.suppressed, summary.blank))
                summary = evolve(summary, already=self._next_line(source) - done)

    def _continue(
        self, source: Source, summary: IngestSummary, batch_events: int, progress: Progress
    ) -> IngestSummary:
        for parsed in source.read(self._next_line(source), batch_events):
            landed = self.land([(source.name, parsed)])
            lines = parsed.end - parsed.start
            if landed is None:
                summary = evolve(summary, already=summary.already + lines)
                continue
            prepared, committed = landed
            (done,) = prepared.ranges
            reasons = Counter(dict(summary.reasons))
            reasons.update(r.flaw.reason for r in parsed.rejected)
            summary = evolve(
                summary,
                events=summary.events + done.events,
                blocks=summary.blocks + prepared.blocks,
                stored_bytes=summary.stored_bytes + prepared.stored_bytes,
                dead=summary.dead + done.dead,
                suppressed=summary.suppressed + done.suppressed,
                blank=summary.blank + done.blank,
                snapshots=(*summary.snapshots, committed.snapshot_id),
                reasons=tuple(sorted(reasons.items())),
                rejected=(*summary.rejected, *parsed.rejected),
                suppressed_lines=(*summary.suppressed_lines, *prepared.suppressed_lines),
            )
            progress(parsed.end, summary.stored_bytes)
        return summary

    def offsets(self) -> dict[str, int]:
        """Next line per source, by the table's head."""
        head = self._table.snapshot()
        return {} if head is None else offsets_of(summary_of(head))

    def _next_line(self, source: Source) -> int:
        return self.offsets().get(source.name, 0)

    def land(
        self,
        parts: Sequence[Part],
        about_to: Callable[[Prepared], None] = lambda prepared: None,
        nobody: bytes | None = None,
    ) -> tuple[Prepared, Committed] | None:
        """Commits lines of one or several sources in one snapshot; None when they are in the table already.

        Args:
            about_to: told what is committed next; again when it had to be sealed anew.
            nobody: handle of the key for letters that name nobody; default: a fresh one.

        Raises:
            Fenced: a source's next line is not where its part starts; nothing was written.
            StorageFailed, CommitConflict, KeysError: nothing was written.
        """
        self._nobody = nobody
        while True:
            with no_collections():
                prepared = self._prepare(parts)
            about_to(prepared)

            def guard(metadata: TableMetadata, prepared: Prepared = prepared) -> dict[str, str]:
                ancestors = [summary_of(s) for s in self._table.history(metadata)]
                epoch, sealed_epoch = self._keyring.epoch(), prepared.epoch
                if epoch != sealed_epoch and not self._keyring.fenced_since(sealed_epoch, prepared.refs):
                    sealed_epoch = epoch  # erasures of other people do not concern this batch
                return ingest_summary(ancestors, prepared.ranges, sealed_epoch=sealed_epoch, epoch=epoch)

            try:
                return prepared, self._table.commit(prepared.files, guard)
            except AlreadyLanded:
                return None
            except EpochMoved:
                continue

    def _prepare(self, parts: Sequence[Part]) -> Prepared:
        """Seals a batch and writes its data file."""
        epoch = self._keyring.catch_up()
        self._named = set()
        at = self._clock().astimezone(UTC)
        blocks: list[pl.DataFrame] = []
        ranges: list[Range] = []
        suppressed: list[int] = []
        for name, parsed in parts:
            sealed, span, refused = self._seal_part(name, parsed, at)
            blocks.extend(sealed)
            ranges.append(span)
            suppressed.extend(refused)
        files: tuple[DataFile, ...] = ()
        blocks_made = sum(part.height for part in blocks)
        if blocks_made:
            rows = pl.concat(blocks)
            partition, folder = day_partition(at.date())
            files = (self._table.write_file(rows, partition=partition, folder=folder, plain=PLAIN_COLUMNS),)
        stored_bytes = sum(f.file_size_in_bytes for f in files)
        return Prepared(
            files,
            tuple(ranges),
            epoch,
            frozenset(self._named),
            blocks_made,
            stored_bytes,
            tuple(suppressed),
        )

    def _seal_part(
        self, name: str, parsed: Parsed, at: datetime
    ) -> tuple[list[pl.DataFrame], Range, list[int]]:
        """(block rows, what became of the lines, lines of erased people) of one source."""
        number = source_number(name)
        blocks: list[pl.DataFrame] = []
        events = 0
        suppressed: list[int] = []
        for event_type, frame in parsed.accepted:
            sealed, stored, refused = self._seal_type(event_type, frame, at, number)
            blocks.extend(sealed)
            events += stored
            suppressed.extend(refused)
        letters, dead, refused = self._seal_letters(name, parsed.rejected, at, number)
        blocks.extend(letters)
        suppressed.extend(refused)
        span = Range(name, parsed.start, parsed.end, events, dead, len(suppressed), parsed.blank)
        assert span.adds_up(), "every line is an event, a dead letter, suppressed or blank"
        return blocks, span, suppressed

    def _seal_type(
        self, event_type: EventType, frame: pl.DataFrame, at: datetime, number: int
    ) -> tuple[list[pl.DataFrame], int, list[int]]:
        """(block rows per facet, events stored, lines of suppressed events)."""
        frame = frame.with_columns(
            pl.col("revision").alias("_rev"), pl.col("occurred_at").dt.date().alias("_day")
        )
        primary = self._with_refs(frame, "subject", _SERVICE)
        parts, stored = [], primary.height
        for facet in event_type.facets:
            mine = primary if facet == PRIMARY else self._facet_rows(event_type, facet, primary)
            if mine.height == 0:
                continue
            mine = self._tagged(mine)
            parts.append(
                seal_events(
                    mine,
                    event_type,
                    facet,
                    session=self._session,
                    table_uuid=self._table_uuid,
                    ingested_at=at,
                    source=number,
                )
            )
            self._index_identities(event_type, facet, mine)
        return parts, stored, _lines_without(frame, primary)

    def _facet_rows(self, event_type: EventType, facet: Facet, primary: pl.DataFrame) -> pl.DataFrame:
        """The events that have something of this facet, under that person's handle."""
        own = [f.name for f in event_type.fields if not f.anonymous and f.facet == facet]
        rows = primary.drop("ref").filter(pl.any_horizontal(pl.col(own).is_not_null()))
        named_by = event_type.subject_field(facet.role)
        if named_by is not None:
            rows = rows.filter(pl.col(named_by).is_not_null()).with_columns(pl.col(named_by).alias("subject"))
        rows = self._with_refs(rows, "subject", _SERVICE)
        if facet.purpose == _SERVICE or rows.height == 0:
            return rows
        return self._with_refs(rows.drop("ref"), "subject", facet.purpose)

    def _with_refs(self, frame: pl.DataFrame, column: str, purpose: str) -> pl.DataFrame:
        """Adds `ref`; rows of erased people are dropped."""
        names = frame.get_column(column).unique(maintain_order=True).to_list()
        outcomes = self._keyring.provision([SubjectId(name) for name in names], purpose) if names else []
        self._named.update(o.ref for o in outcomes if isinstance(o, Provisioned))
        found = pl.DataFrame(
            {
                column: pl.Series(names, dtype=pl.String),
                "ref": pl.Series(
                    [o.ref if isinstance(o, Provisioned) else None for o in outcomes], dtype=pl.Binary
                ),
            }
        )
        return frame.join(found, on=column, how="left", maintain_order="left").filter(
            pl.col("ref").is_not_null()
        )

    def _tagged(self, rows: pl.DataFrame) -> pl.DataFrame:
        refs = rows.get_column("ref").to_list()
        keys = self._session.tag_keys(refs)
        alive = [ref in keys for ref in refs]
        if not all(alive):  # erased since they were provisioned; the guard will ask for a new batch
            rows, refs = rows.filter(pl.Series(alive)), [ref for ref in refs if ref in keys]
        return rows.with_columns(event_tags(rows, refs, keys))

    def _index_identities(self, event_type: EventType, facet: Facet, rows: pl.DataFrame) -> None:
        pairs: list[tuple[bytes, Identity]] = []
        for one in event_type.fields:
            if one.identity is None or one.facet != facet:
                continue
            for ref, value in rows.select("ref", one.name).drop_nulls().unique().iter_rows():
                try:
                    pairs.append((ref, Identity(one.identity, value)))
                except InvalidName:
                    continue  # the value stays in its sealed field; it just cannot be looked up
        if pairs:
            self._keyring.add_identities(pairs)

    def _seal_letters(
        self, source: str, rejected: Sequence[Rejected], at: datetime, number: int
    ) -> tuple[list[pl.DataFrame], int, list[int]]:
        """(block rows of dead letters, letters stored, lines of erased people's letters)."""
        if not rejected:
            return [], 0, []
        frame = pl.DataFrame(
            {
                "subject": [r.subject for r in rejected],
                "source": pl.Series([source] * len(rejected)),
                "event_id": [str(r.line) for r in rejected],
                "occurred_at": pl.Series([at] * len(rejected), dtype=pl.Datetime("us", "UTC")),
                "position": pl.Series([r.line for r in rejected], dtype=pl.Int64),
                "reason": [r.flaw.reason for r in rejected],
                "field": pl.Series([r.flaw.field for r in rejected], dtype=pl.String),
                "feed": pl.Series([source] * len(rejected)),
                "line": pl.Series([r.line for r in rejected], dtype=pl.Int64),
                "raw": [letter_text(r.raw) for r in rejected],
            },
            schema_overrides={"subject": pl.String},
        ).with_columns(pl.lit(0, pl.Int64).alias("_rev"), pl.col("occurred_at").dt.date().alias("_day"))
        named = frame.filter(pl.col("subject").is_not_null())
        known = self._with_refs(named, "subject", _SERVICE)
        nobody = frame.filter(pl.col("subject").is_null())
        groups = [known] if known.height else []
        if nobody.height:
            minted = self._nobody or self._keyring.mint(1, LETTER_PURPOSE)[0].ref
            groups.append(
                nobody.with_columns(pl.lit("").alias("subject"), pl.lit(minted, pl.Binary).alias("ref"))
            )
        letter_type = self._types.get(DEAD_LETTER)
        parts = []
        for group in groups:
            parts.append(
                seal_events(
                    self._tagged(group),
                    letter_type,
                    PRIMARY,
                    session=self._session,
                    table_uuid=self._table_uuid,
                    ingested_at=at,
                    source=number,
                )
            )
        return parts, known.height + nobody.height, _lines_without(named, known)


def _lines_without(all_rows: pl.DataFrame, kept: pl.DataFrame) -> list[int]:
    if kept.height == all_rows.height:
        return []
    return all_rows.join(kept, on="position", how="anti").get_column("position").to_list()


def letter_text(raw: bytes) -> str:
    """A rejected line as text; bytes that are not UTF-8 travel as base64 behind `base64,`."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "base64," + base64.b64encode(raw).decode()


def letter_bytes(text: str) -> bytes:
    """Undoes `letter_text`."""
    return base64.b64decode(text[7:]) if text.startswith("base64,") else text.encode()
