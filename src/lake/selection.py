"""Which block rows a reader wants, and how they come: what can be left out is not read.

Files are left out by the bounds in their manifests, row groups by the bounds in their footers, columns
because nobody asked for them. The last matters most: `sealed` is five sixths of a file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import reduce
from operator import and_
from typing import Final

import polars as pl
from attrs import frozen
from pyiceberg.manifest import DataFile

from lake.blocks import BLOCK_COLUMNS, PERSONAL_HEAD
from lake.events import SUBJECT_REF_FIELD_ID
from lake.eventtypes import PRIMARY, EventType, Facet
from lake.levels import is_sorted
from lake.objects import collected
from lake.runs import NO_RUNS, Runs, SchemaOf, out_of_runs
from lake.table import IcebergTable

Days = tuple[date, date]
"""The first and the last of some days."""
HandleRange = tuple[bytes, bytes | None]
"""Handles in [from, to); `to` None is open-ended."""
INGEST_ORDER: Final = ("ingested_at", "source", "source_from", "block_id")
OPEN_COLUMNS: Final = (
    "subject_ref",
    "schema_version",
    "event_count",
    "ingested_at",
    "open",
    "run",
    "run_at",
)
"""What events without their personal part are made of."""
TAG_COLUMNS: Final = ("tags", "source", "source_from", "block_id")
"""What the duplicate rule looks at besides, the ingest order included."""
WHOLE_COLUMNS: Final = (*BLOCK_COLUMNS, "run", "run_at")
CLOSED_COLUMNS: Final = tuple(name for name in BLOCK_COLUMNS if name != "open")
SEALED_COLUMNS: Final = ("sealed", "block_id")
"""What their personal part is made of."""
_INGESTED_FIELD_ID: Final = 9
_FROM_FIELD_ID: Final = 10
_TO_FIELD_ID: Final = 11
_EPOCH: Final = date(1970, 1, 1)
_PEOPLE_APART: Final = 64
"""Runs of more people than these are looked for all the way from the first to the last of them."""


@frozen
class Arrival:
    """How events came into the lake; what is None does not matter. Blocks that were sorted since do not tell.

    Attributes:
        source: number of a source (`lake.offsets.source_number`).
        lines: of that source, [first, end).
        since, until: ingested at or after the one and before the other.
    """

    source: int | None = None
    lines: tuple[int, int] = (0, 0)
    since: datetime | None = None
    until: datetime | None = None

    def wanted(self) -> Iterator[pl.Expr]:
        """What blocks with such an event have; there may be others of the same commit in them."""
        if self.source is not None:
            first, end = self.lines
            yield pl.col("source") == self.source
            yield pl.col("source_from") < end
            yield pl.col("source_to") > first
        if self.since is not None:
            yield pl.col("ingested_at") >= pl.lit(self.since)
        if self.until is not None:
            yield pl.col("ingested_at") < pl.lit(self.until)

    def has_line(self, line: int | None) -> bool:
        """Whether an event of such a block is among those asked for; one that does not tell any more is."""
        return self.source is None or line is None or self.lines[0] <= line < self.lines[1]

    def is_told_by(self, day: date) -> bool:
        """Whether a sorted ingest day tells: it was asked for as a whole, or not at all."""
        if self.source is not None:
            return False
        begin, end = _midnight(day), _midnight(day + timedelta(days=1))
        return all(one is None or not begin < one < end for one in (self.since, self.until))


@frozen
class EventRead:
    """Which part of an event type to read.

    Attributes:
        facet: whose part; the primary counts each event once.
        fields: of the type, or of the head (`occurred_on`, `occurred_at`, `event_id`, `subject`, …).
        days: only events of these days of theirs (`occurred_on`), both included.
        arrival: only blocks that came so.
    """

    event_type: str
    fields: tuple[str, ...]
    facet: Facet = PRIMARY
    days: Days | None = None
    arrival: Arrival | None = None

    def is_personal(self, registered: EventType) -> bool:
        """Whether any field asked for is sealed."""
        sealed = {f.name for f in registered.fields if not f.anonymous}
        return not sealed.union(PERSONAL_HEAD).isdisjoint(self.fields)


@frozen
class Selection:
    """Which blocks; what is None does not matter.

    Attributes:
        days: blocks that can hold an event of these days.
        apart_from: blocks that hold no event of these days.
        ingest_days: blocks that were ingested on these days.
        block_ids: only these.
        arrival: blocks that came so.
        runs: the runs that such blocks are of, where somebody knows them; the first blocks of others are not
            read then.
    """

    event_type: str | None = None
    facet: Facet | None = None
    refs: Sequence[bytes] | None = None
    ref_range: HandleRange | None = None
    days: Days | None = None
    apart_from: Days | None = None
    ingest_days: Days | None = None
    block_ids: Sequence[bytes] | None = None
    arrival: Arrival | None = None
    runs: Sequence[int] | None = None

    def may_be_in(self, file: DataFile) -> bool:
        """Whether a file's bounds leave room for such a block."""
        low = min(self.refs) if self.refs else self.ref_range[0] if self.ref_range else None
        high = max(self.refs) if self.refs else self.ref_range[1] if self.ref_range else None
        if not _overlap(file, SUBJECT_REF_FIELD_ID, SUBJECT_REF_FIELD_ID, low, high):
            return False
        if self.days is not None:
            first, last = (_ordinal(day) for day in self.days)
            if not _overlap(file, _FROM_FIELD_ID, _TO_FIELD_ID, first, last):
                return False
        if self.ingest_days is not None:
            first, last = (_ordinal(day) * 86_400_000_000 for day in _half_open(self.ingest_days))
            return _overlap(file, _INGESTED_FIELD_ID, _INGESTED_FIELD_ID, first, last)
        return True

    def wanted(self) -> pl.Expr:
        """Whether a row is of such a block."""
        return _all([*self._of_kind(), *self._of_people(), *self._others()])

    def wanted_or_first(self) -> pl.Expr:
        """Whether it is, or the first block of a run that may hold such a block."""
        firsts = [pl.col("run_at") == 0, *self._runs_of_people()]
        if self.runs is not None:
            firsts.append(pl.col("run").is_in(list(self.runs)))
        return _all(self._of_kind()) & (_all([*self._of_people(), *self._others()]) | _all(firsts))

    def _of_kind(self) -> Iterator[pl.Expr]:
        if self.event_type is not None:
            yield pl.col("event_type") == self.event_type
        if self.facet is not None:
            yield pl.col("facet") == str(self.facet)

    def _of_people(self) -> Iterator[pl.Expr]:
        if self.refs is not None:
            yield pl.col("subject_ref").is_in(list(self.refs))
        if self.ref_range is not None:
            yield pl.col("subject_ref") >= pl.lit(self.ref_range[0], pl.Binary)
            if self.ref_range[1] is not None:
                yield pl.col("subject_ref") < pl.lit(self.ref_range[1], pl.Binary)

    def _runs_of_people(self) -> Iterator[pl.Expr]:
        """Runs that reach over the leading bits of their handles."""
        if self.refs is not None:
            known = sorted({_prefix(ref) for ref in self.refs})
            near = [(at, at) for at in known] if len(known) <= _PEOPLE_APART else [(known[0], known[-1])]
            yield pl.any_horizontal(
                [(pl.col("run_from") <= high) & (pl.col("run_to") >= low) for low, high in near] or [False]
            )
        if self.ref_range is not None:
            yield pl.col("run_to") >= _prefix(self.ref_range[0])
            if self.ref_range[1] is not None:
                yield pl.col("run_from") <= _prefix(self.ref_range[1])

    def _others(self) -> Iterator[pl.Expr]:
        if self.days is not None:
            yield pl.col("occurred_to") >= self.days[0]
            yield pl.col("occurred_from") <= self.days[1]
        if self.apart_from is not None:
            first_day, last_day = self.apart_from
            yield (pl.col("occurred_to") < first_day) | (pl.col("occurred_from") > last_day)
        if self.ingest_days is not None:
            first, after = (pl.lit(_midnight(day)) for day in _half_open(self.ingest_days))
            yield pl.col("ingested_at") >= first
            yield pl.col("ingested_at") < after
        if self.block_ids is not None:
            yield pl.col("block_id").is_in(list(self.block_ids))
        if self.arrival is not None:
            yield from self.arrival.wanted()


@frozen
class StoredBlocks:
    """Block rows as they are stored, and the bodies of the runs that they are of."""

    rows: pl.DataFrame
    runs: Runs


def selected(
    table: IcebergTable, files: Sequence[DataFile], wanted: Selection, columns: Sequence[str]
) -> pl.LazyFrame | None:
    """These columns of the rows, `open` not among them, in no order; None where no file can hold one."""
    chosen = [file for file in files if wanted.may_be_in(file)]
    return table.scan(chosen).filter(wanted.wanted()).select(columns) if chosen else None


def ordered_rows(
    table: IcebergTable, files: Sequence[DataFile], wanted: Selection, columns: Sequence[str]
) -> pl.DataFrame:
    """These columns (`INGEST_ORDER` among them, not `open`) in ingest order, and the rows' place `_n` in it.

    Raises:
        StorageFailed: the store cannot be read.
    """
    return in_ingest_order(some_rows(table, files, wanted, columns))


def in_ingest_order(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows (with `INGEST_ORDER`) in that order, and their place `_n` in it."""
    return rows.sort(INGEST_ORDER).with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("_n"))


def some_rows(
    table: IcebergTable, files: Sequence[DataFile], wanted: Selection, columns: Sequence[str]
) -> pl.DataFrame:
    """These columns (not `open`) of the rows, in no order.

    Raises:
        StorageFailed: the store cannot be read.
    """
    scan = selected(table, files, wanted, columns)
    return collected(scan) if scan is not None else _no_rows(columns)


def stored_blocks(
    table: IcebergTable, files: Sequence[DataFile], wanted: Selection, columns: Sequence[str]
) -> StoredBlocks:
    """These columns of the rows (`open`, `run` and `run_at` among them), and their runs.

    Rows of sorted files come by their handles, where none holds people of another.

    Raises:
        StorageFailed: the store cannot be read.
        CorruptBlock: see `lake.runs.Runs.among`.
    """
    chosen = sorted((file for file in files if wanted.may_be_in(file)), key=_lowest)
    if not chosen:
        return StoredBlocks(_no_rows(columns), NO_RUNS)
    return stored_in(table.scan(chosen), wanted, columns)


def stored_in(scan: pl.LazyFrame, wanted: Selection, columns: Sequence[str]) -> StoredBlocks:
    """The same of a scan of data files. Raises as `stored_blocks`."""
    found = scan.filter(wanted.wanted_or_first()).select(*columns, wanted.wanted().alias("_wanted"))
    rows = collected(found)
    runs = Runs.among(rows)
    return StoredBlocks(rows.filter("_wanted").drop("_wanted"), runs)


def whole_rows(blocks: StoredBlocks, schema_of: SchemaOf) -> pl.DataFrame:
    """Rows (of `WHOLE_COLUMNS`) in ingest order, each with a body of its own, and their place `_n`.

    Raises:
        CorruptBlock: a body does not hold what it should.
    """
    return in_ingest_order(out_of_runs(blocks.rows, blocks.runs, schema_of))


def block_rows(
    table: IcebergTable,
    files: Sequence[DataFile],
    read: EventRead | None,
    refs: Sequence[bytes] | None = None,
    ref_range: HandleRange | None = None,
    columns: Sequence[str] = CLOSED_COLUMNS,
) -> pl.DataFrame:
    """Block rows without their open part, in ingest order with their place `_n`; or some columns in no order.

    Raises:
        StorageFailed: the store cannot be read.
    """
    wanted = Selection(refs=refs, ref_range=ref_range)
    if read is not None:
        wanted = Selection(read.event_type, read.facet, refs, ref_range, read.days, arrival=read.arrival)
    if set(columns) == set(CLOSED_COLUMNS):
        return ordered_rows(table, files, wanted, CLOSED_COLUMNS)
    return some_rows(table, files, wanted, columns)


def are_apart(files: Sequence[DataFile]) -> bool:
    """Whether L1 wrote these files, and none holds people of another."""
    ordered = sorted(files, key=_lowest)
    highest = [(file.upper_bounds or {}).get(SUBJECT_REF_FIELD_ID, b"\xff" * 16) for file in ordered]
    return all(map(is_sorted, ordered)) and all(
        high < _lowest(file) for high, file in zip(highest, ordered[1:], strict=False)
    )


def _lowest(file: DataFile) -> bytes:
    return (file.lower_bounds or {}).get(SUBJECT_REF_FIELD_ID, b"")


def _overlap(
    file: DataFile, lower_id: int, upper_id: int, low: bytes | int | None, high: bytes | int | None
) -> bool:
    """Whether [low, high] meets what a file says of two columns; numbers are little-endian there."""
    lower, upper = (file.lower_bounds or {}).get(lower_id), (file.upper_bounds or {}).get(upper_id)
    if low is not None and upper is not None and _bound(upper, low) < low:  # type: ignore[operator]
        return False
    return not (high is not None and lower is not None and _bound(lower, high) > high)  # type: ignore[operator]


def _bound(stored: bytes, like: bytes | int) -> bytes | int:
    if isinstance(like, bytes):
        return stored
    return int(struct.unpack("<i" if len(stored) == 4 else "<q", stored)[0])


def _no_rows(columns: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame(schema={name: _BLOCK_TYPES[name] for name in columns})


def _all(conditions: Iterable[pl.Expr]) -> pl.Expr:
    return reduce(and_, conditions, pl.lit(True))


def _prefix(ref: bytes) -> int:
    """The leading sixteen bits of a handle, or of a bound of handles."""
    return int.from_bytes(ref[:2].ljust(2, b"\0"), "big")


def _ordinal(day: date) -> int:
    return (day - _EPOCH).days


def _half_open(days: Days) -> Days:
    return days[0], days[1] + timedelta(days=1)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


_BLOCK_TYPES: Final[dict[str, pl.DataType]] = {
    "block_id": pl.Binary(),
    "subject_ref": pl.Binary(),
    "generation": pl.Int32(),
    "event_type": pl.String(),
    "schema_version": pl.Int32(),
    "facet": pl.String(),
    "primary": pl.Boolean(),
    "event_count": pl.Int32(),
    "ingested_at": pl.Datetime("us", "UTC"),
    "occurred_from": pl.Date(),
    "occurred_to": pl.Date(),
    "source": pl.Int32(),
    "source_from": pl.Int64(),
    "source_to": pl.Int64(),
    "open": pl.Binary(),
    "sealed": pl.Binary(),
    "tags": pl.Binary(),
    "run": pl.Int64(),
    "run_from": pl.Int32(),
    "run_to": pl.Int32(),
    "run_at": pl.Int32(),
}
