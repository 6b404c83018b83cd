"""Seals parsed events: names people, seals their parts, and says what became of every line."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import numpy as np
import polars as pl
import pyarrow.compute as pc
from attrs import frozen

from keys import Identity, InvalidName, KeyRecordMissing, Provisioned, SealSession, SubjectId, WritingKeys
from lake.blocks import BLOCK_COLUMNS, event_tags, seal_events
from lake.errors import Unsealable
from lake.events import sealing_context
from lake.eventtypes import DEAD_LETTER, PRIMARY, EventType, Facet
from lake.offsets import Range, source_number
from lake.parsed import Parsed, Rejected
from lake.typeregistry import TypeRegistry
from lake.validate import Flaw

_SERVICE: Final = PRIMARY.purpose
LETTER_PURPOSE: Final = _SERVICE


@frozen
class Sealed:
    """Block rows of one source's lines.

    Attributes:
        span: the lines, and what became of them.
        suppressed_lines: of erased people.
    """

    blocks: tuple[pl.DataFrame, ...]
    span: Range
    suppressed_lines: tuple[int, ...]


class Sealer:
    """Turns lines of a source into block rows.

    Args:
        keyring: names people and seals.
        types: registered event types.
        table_uuid: 16 bytes; what is sealed opens in this table alone.
        one_each: a block per event instead of a block per person.

    Attributes:
        named: the handles that were named since `begin`.
    """

    def __init__(
        self, keyring: WritingKeys, types: TypeRegistry, table_uuid: bytes, one_each: bool = False
    ) -> None:
        self._keyring = keyring
        self._types = types
        self._table_uuid = table_uuid
        self._one_each = one_each
        self._session: SealSession = keyring.session()
        self._nobody: bytes | None = None
        self.named: set[bytes] = set()

    def begin(self) -> int:
        """Begins a batch; returns the newest fence that it is sealed after."""
        epoch = self._keyring.catch_up()
        self._nobody = None
        self.named = set()  # everybody this batch counts on, also who is erased meanwhile
        return epoch

    def letters_under(self, *keys: bytes | None) -> bytes:
        """The key of this batch's letters of nobody's: the first that there is, else a fresh one."""
        given = [ref for ref in keys if ref is not None]
        alive = self._session.tag_keys(given) if given else {}
        self._nobody = next((ref for ref in given if ref in alive), None) or self._fresh()
        return self._nobody

    def _fresh(self) -> bytes:
        return self._keyring.mint(1, LETTER_PURPOSE)[0].ref

    def seal(self, name: str, parsed: Parsed, at: datetime) -> Sealed:
        """Seals lines of a source.

        Args:
            at: becomes `ingested_at`.

        Raises:
            Unsealable: lines that a producer sealed are not authentic.
            KeysError: nothing of these lines may be used.
        """
        number = source_number(name)
        blocks: list[pl.DataFrame] = []
        events = 0
        suppressed: list[int] = []
        future = 0
        for event_type, frame in parsed.accepted:
            sealed, stored, refused = self._seal_type(event_type, frame, at, number)
            blocks.extend(sealed)
            events += stored
            future += _ahead(event_type, frame, refused, at)
            suppressed.extend(refused)
        letters, dead, refused = self._seal_letters(name, parsed.rejected, at, number)
        blocks.extend(letters)
        suppressed.extend(refused)
        if parsed.sealed is not None:
            taken, stored, kept_dead, refused = self._take_sealed(name, parsed.sealed, at, number)
            blocks.append(taken)
            events, dead = events + stored, dead + kept_dead
            suppressed.extend(refused)
        span = Range(name, parsed.start, parsed.end, events, dead, len(suppressed), parsed.blank, future)
        assert span.adds_up(), "every line is an event, a dead letter, suppressed or blank"
        return Sealed(tuple(blocks), span, tuple(suppressed))

    def _alive(self, name: str, rows: pl.DataFrame) -> set[bytes]:
        """The handles that have a key.

        Raises:
            Unsealable: of some handles nobody knows: they were neither given out by these keys nor erased.
        """
        refs = rows["subject_ref"].unique(maintain_order=True).to_list()
        try:
            return set(self._session.tag_keys(refs))
        except KeyRecordMissing:
            lines = rows.filter(pl.col("subject_ref").is_in(self._unknown(refs)))["source_from"]
            raise Unsealable({name: dict.fromkeys(lines, Flaw("unknown_handle"))}) from None

    def _unknown(self, refs: Sequence[bytes]) -> list[bytes]:
        """The handles that nobody knows, found in halves."""
        try:
            self._session.tag_keys(refs)
        except KeyRecordMissing:
            if len(refs) == 1:
                return list(refs)
            middle = len(refs) // 2
            return [*self._unknown(refs[:middle]), *self._unknown(refs[middle:])]
        return []

    def _check_sealed(self, name: str, rows: pl.DataFrame) -> None:
        """Everything that a producer has sealed can be opened: one that cannot would break every read.

        Raises:
            Unsealable: see `seal`.
        """
        odd: set[int] = set()
        for (kind, version, facet), some in rows.group_by("event_type", "schema_version", "facet"):
            event_type = self._types.get(str(kind), int(str(version)))
            part = next(one for one in event_type.facets if str(one) == facet)
            context = sealing_context(self._table_uuid, event_type, part)
            columns = (some[one].to_list() for one in ("subject_ref", "block_id", "sealed"))
            fine = self._keyring.authentic(context, *columns)
            odd.update(some.filter(~pl.Series(fine, dtype=pl.Boolean))["source_from"])
        if odd:
            raise Unsealable({name: dict.fromkeys(sorted(odd), Flaw("not_authentic"))})

    def _take_sealed(
        self, name: str, rows: pl.DataFrame, at: datetime, number: int
    ) -> tuple[pl.DataFrame, int, int, list[int]]:
        """(block rows, events, dead letters, lines of erased people) of what a producer has sealed.

        A handle that has no key any more belongs to an erased person. Raises as `_check_sealed`.
        """
        alive = self._alive(name, rows)
        self.named.update(alive)
        primary = rows.filter("primary")
        gone = primary.filter(~pl.col("subject_ref").is_in(list(alive)))["source_from"].to_list()
        kept = rows.filter(
            ~pl.col("source_from").is_in(gone) & pl.col("subject_ref").is_in(list(alive))
        ).with_columns(
            pl.lit(at).cast(pl.Datetime("us", "UTC")).alias("ingested_at"),
            pl.lit(number, pl.Int32).alias("source"),
        )
        self._check_sealed(name, kept)
        lines = kept.filter("primary")
        letters = lines.filter(pl.col("event_type") == DEAD_LETTER).height
        return kept.select(BLOCK_COLUMNS), lines.height - letters, letters, gone

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
                    one_each=self._one_each,
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
        """Adds `ref`, in block order; rows of erased people are dropped."""
        if frame.height == 0:
            return frame.with_columns(pl.lit(None, pl.Binary).alias("ref"))
        named = pc.dictionary_encode(frame.get_column(column).rechunk().to_arrow())
        outcomes = self._keyring.provision(
            [SubjectId(name) for name in named.dictionary.to_pylist()], purpose
        )
        given = [o.ref if isinstance(o, Provisioned) else None for o in outcomes]
        self.named.update(ref for ref in given if ref is not None)
        refs, who = pl.Series("ref", given, dtype=pl.Binary), named.indices.to_numpy()
        rows = frame.with_columns(refs.gather(who), _rank(refs).gather(who).alias("_who"))
        if refs.null_count():
            rows = rows.filter(pl.col("ref").is_not_null())
        # A number of each handle sorts five times as fast as the handle, and most lines are in order already.
        in_order = rows.get_column("position").is_sorted()
        return rows.sort("_who" if in_order else ["_who", "position"], maintain_order=True).drop("_who")

    def _tagged(self, rows: pl.DataFrame) -> pl.DataFrame:
        runs = rows.get_column("ref").rle().struct
        refs, counts = runs.field("value").to_list(), runs.field("len").to_list()
        keys = self._session.tag_keys(refs)
        if len(keys) < len(refs):  # erased since they were provisioned; the guard will ask for a new batch
            return self._tagged(rows.filter(pl.col("ref").is_in(list(keys))))
        return rows.with_columns(event_tags(rows, [keys[ref] for ref in refs], counts))

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
            minted = self._nobody or self._fresh()
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
                    one_each=self._one_each,
                )
            )
        return parts, known.height + nobody.height, _lines_without(named, known)


def _rank(refs: pl.Series) -> pl.Series:
    """The place of each when they are sorted."""
    rank = np.empty(len(refs), dtype=np.uint32)
    rank[refs.arg_sort().to_numpy()] = np.arange(len(refs), dtype=np.uint32)
    return pl.Series(rank)


def _lines_without(all_rows: pl.DataFrame, kept: pl.DataFrame) -> list[int]:
    if kept.height == all_rows.height:
        return []
    return all_rows.join(kept, on="position", how="anti").get_column("position").to_list()


_BASE64: Final = "base64,"


def letter_text(raw: bytes) -> str:
    """A rejected line as text; bytes that are not UTF-8 travel as base64 behind `base64,`."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = _BASE64
    return text if not text.startswith(_BASE64) else _BASE64 + base64.b64encode(raw).decode()


def letter_bytes(text: str) -> bytes:
    """Undoes `letter_text`; a text that only looks like base64 was stored as it was, once."""
    if not text.startswith(_BASE64):
        return text.encode()
    try:
        return base64.b64decode(text[len(_BASE64) :], validate=True)
    except binascii.Error:
        return text.encode()


def _ahead(event_type: EventType, frame: pl.DataFrame, refused: Sequence[int], at: datetime) -> int:
    """Of the events that are stored, those dated further ahead than their type may be."""
    late = frame.filter(pl.col("occurred_at") > at + timedelta(days=event_type.future_days))
    return late.height - int(late["position"].is_in(list(refused)).sum()) if late.height else 0
