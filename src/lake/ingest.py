"""Ingest: parsed lines → sealed blocks → one guarded commit with the source's offsets in it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime

import polars as pl
from attrs import evolve, field, frozen
from pyiceberg.manifest import DataFile
from pyiceberg.table.metadata import TableMetadata

from keys import WritingKeys
from keys.quiet import no_collections
from lake.errors import EpochMoved, Fenced, Unsealable
from lake.events import BODY_COLUMNS, RANDOM_COLUMNS, day_partition
from lake.letterkeys import LetterKey, letter_keys_of
from lake.objects import storage_errors
from lake.offsets import AlreadyLanded, Range, offsets_of
from lake.parsed import Parsed, Rejected
from lake.runs import alone
from lake.salvage import NOTHING, UNEXPECTED, Aside, guilty, is_of_data
from lake.sealer import Sealer
from lake.settled import SourceBook
from lake.sources import DEFAULT_BATCH_EVENTS, Source
from lake.table import Committed, IcebergTable, summary_of
from lake.typeregistry import TypeRegistry
from lake.validate import Flaw

Progress = Callable[[int, int], None]
"""Called with (lines done, bytes of blocks written so far)."""


@frozen
class IngestSummary:
    """What one ingest did.

    Attributes:
        events: accepted now; `dead` went to the dead letters by reason; `suppressed` belong to erased
            people and were not stored; `blank` lines hold no event.
        already: lines that were ingested before.
        future: of `events`, those dated further ahead than their type's `future_days`: stored and counted,
            and no watermark follows them.
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
    future: int = 0


Part = tuple[str, Parsed]
"""A source's name, and lines of it."""


@frozen
class Prepared:
    """A sealed batch that is not in the table yet.

    Attributes:
        ranges: per source the lines, and what became of them.
        epoch: the newest fence that it was sealed after; `refs` is everybody it counts on.
        suppressed_lines: of erased people, in the order of the parts.
        letters: the key of letters that name nobody, where it holds such; an erasure may destroy it, whoever
            is erased.
    """

    files: tuple[DataFile, ...]
    ranges: tuple[Range, ...]
    epoch: int
    refs: frozenset[bytes] = field(repr=False)
    blocks: int
    stored_bytes: int
    suppressed_lines: tuple[int, ...]
    letters: LetterKey | None = None

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
        asides: of a source the lines that an operator has set aside.

    Attributes:
        asides: the same.
    """

    def __init__(
        self,
        table: IcebergTable,
        keyring: WritingKeys,
        types: TypeRegistry,
        clock: Callable[[], datetime],
        asides: Callable[[str], Aside] = lambda source: NOTHING,
    ) -> None:
        self.asides = asides
        self._table = table
        self._keyring = keyring
        self._clock = clock
        self._sealer = Sealer(keyring, types, table.metadata().table_uuid.bytes)
        self._book = SourceBook(table)
        self._nobody: bytes | None = None

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
        aside = dict(self.asides(source.name))
        while True:
            try:
                for parsed in source.read(self._next_line(source), batch_events, aside):
                    summary = self._added(summary, parsed, self.land([(source.name, parsed)]))
                    progress(parsed.end, summary.stored_bytes)
                return summary
            except Unsealable as error:  # read again, with these lines as letters
                aside |= error.places[source.name]
            except Fenced:
                # Another process ingests the same source: what it did counts as done.
                done = sum((summary.events, summary.dead, summary.suppressed, summary.blank))
                summary = evolve(summary, already=self._next_line(source) - done)

    def _added(
        self, summary: IngestSummary, parsed: Parsed, landed: tuple[Prepared, Committed] | None
    ) -> IngestSummary:
        if landed is None:
            return evolve(summary, already=summary.already + parsed.end - parsed.start)
        prepared, committed = landed
        (done,) = prepared.ranges
        reasons = Counter(dict(summary.reasons))
        reasons.update(r.flaw.reason for r in parsed.rejected)
        return evolve(
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
            future=summary.future + done.future,
        )

    def offsets(self) -> dict[str, int]:
        """Next line per source by the table's head, of every stream and of the newest files."""
        head = self._table.snapshot()
        return {} if head is None else offsets_of(summary_of(head))

    def _next_line(self, source: Source) -> int:
        return self._book.next_line(source.name)

    def land(
        self,
        parts: Sequence[Part],
        about_to: Callable[[Prepared], None] = lambda prepared: None,
        nobody: bytes | None = None,
    ) -> tuple[Prepared, Committed] | None:
        """Commits lines of one or several sources in one snapshot; None when they are in the table already.

        Args:
            about_to: told what is committed next; again when it had to be sealed anew.
            nobody: handle of the key for letters that name nobody, on a day that has none yet; default: a
                fresh one.

        Raises:
            Fenced: a source's next line is not where its part starts; nothing was written.
            Unsealable: lines cannot be sealed; nothing was written. Read them again as letters.
            StorageFailed, CommitConflict, KeysError: nothing was written.
        """
        self._nobody = nobody
        while True:
            with no_collections():
                try:
                    prepared = self._prepare(parts)
                except UNEXPECTED as error:
                    places = self._guilty(parts) if is_of_data(error) else {}
                    if not places:
                        raise
                    raise Unsealable(places) from None
            about_to(prepared)

            def guard(metadata: TableMetadata, prepared: Prepared = prepared) -> dict[str, str]:
                epoch, sealed_epoch = self._keyring.epoch(), prepared.epoch
                concerned = prepared.letters or self._keyring.fenced_since(sealed_epoch, prepared.refs)
                if epoch != sealed_epoch and not concerned:
                    sealed_epoch = epoch  # erasures of other people do not concern this batch
                return self._book.summary(
                    metadata,
                    prepared.ranges,
                    sealed_epoch=sealed_epoch,
                    epoch=epoch,
                    letters=prepared.letters,
                )

            try:
                return prepared, self._table.commit(prepared.files, guard)
            except AlreadyLanded:
                return None
            except EpochMoved:
                continue

    def _guilty(self, parts: Sequence[Part]) -> dict[str, dict[int, Flaw]]:
        """Of each source the lines that cannot be sealed and written by themselves."""

        def trial(name: str, parsed: Parsed) -> None:
            for file in self._prepare([(name, parsed)]).files:
                with storage_errors():
                    self._table.load().io.delete(file.file_path)

        found = {name: guilty(parsed, functools.partial(trial, name)) for name, parsed in parts}
        return {name: lines for name, lines in found.items() if lines}

    def _prepare(self, parts: Sequence[Part]) -> Prepared:
        """Seals a batch and writes its data file."""
        epoch = self._sealer.begin()
        at = self._clock().astimezone(UTC)
        name_nobody = any(letter.subject is None for _, parsed in parts for letter in parsed.rejected)
        letters = self._letter_key(at.date()) if name_nobody else None
        blocks: list[pl.DataFrame] = []
        ranges: list[Range] = []
        suppressed: list[int] = []
        for name, parsed in parts:
            sealed = self._sealer.seal(name, parsed, at)
            blocks.extend(sealed.blocks)
            ranges.append(sealed.span)
            suppressed.extend(sealed.suppressed_lines)
        files: tuple[DataFile, ...] = ()
        blocks_made = sum(part.height for part in blocks)
        if blocks_made:
            rows = alone(pl.concat(blocks))
            partition, folder = day_partition(at.date())
            written = self._table.write_file(
                rows, partition=partition, folder=folder, random=RANDOM_COLUMNS, bodies=BODY_COLUMNS
            )
            files = (written,)
        stored_bytes = sum(f.file_size_in_bytes for f in files)
        return Prepared(
            files,
            tuple(ranges),
            epoch,
            frozenset(self._sealer.named),
            blocks_made,
            stored_bytes,
            tuple(suppressed),
            letters,
        )

    def _letter_key(self, day: date) -> LetterKey:
        """The day's key, else one that becomes it with this batch."""
        head = self._table.snapshot()
        known = letter_keys_of(summary_of(head)).keys.get(day) if head is not None else None
        return LetterKey(day, self._sealer.letters_under(known, self._nobody), known)
