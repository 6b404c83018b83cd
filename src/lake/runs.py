"""Runs: blocks of sorted files whose open parts lie together in one body, that of the first block.

One body of thousands of events is read several times as fast as one of each person's twenty, and texts that
many people have in common are in it once. Nobody is named in an open part; whose events are whose is told
by the blocks' places in it. The format is docs/formats/block-body.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import polars as pl
from attrs import field, frozen

from lake.bodies import Array, Schema, pack
from lake.bodyreader import unpack
from lake.errors import CorruptBlock

RUN_EVENTS: Final = 16_384
RUN_BYTES: Final = 1024 * 1024
"""A run ends with the block in which it reaches either: whoever reads a person reads the whole body."""
PREFIX_BYTES: Final = 2
"""Leading bytes of a handle that tell where it belongs: its bucket, its run."""
_MOST_EVENTS: Final = 1 << 20
"""In a run; one that claims more is not believed."""
_AT_ONCE: Final = 1 << 20
"""Events that are decoded together where few of them are wanted."""
_SPARSE: Final = 2
_COUNT_BYTES: Final = 4
_COLUMNS: Final = {"run": pl.Int64(), "run_from": pl.Int32(), "run_to": pl.Int32(), "run_at": pl.Int32()}
_GROUP: Final = ("event_type", "schema_version", "facet")
SchemaOf = Callable[[str, int], Schema]
"""The open schema of an event type's version."""


@frozen(eq=False)
class Runs:
    """Bodies of runs.

    Attributes:
        numbers: int64, ascending.
        places: of each in `bodies`.
    """

    numbers: Array
    places: Array
    bodies: pl.Series = field(repr=False)

    @classmethod
    def among(cls, rows: pl.DataFrame) -> Runs:
        """Those whose first blocks are among stored rows (`run`, `run_at`, `open`).

        Raises:
            CorruptBlock: a run has several first blocks.
        """
        firsts = rows.filter(pl.col("run_at") == 0, pl.col("run").is_not_null())
        numbers = firsts.get_column("run").to_numpy()
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        if (ordered[1:] == ordered[:-1]).any():
            raise CorruptBlock("a run has several first blocks")
        return cls(ordered, order, firsts.get_column("open"))

    def of(self, numbers: Array) -> tuple[pl.Series, Array]:
        """(bodies of these runs, each once; the body of each number).

        Raises:
            CorruptBlock: there is none of a number.
        """
        begins = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1]))
        distinct = numbers[begins]
        of = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(numbers))))
        if len(np.unique(distinct)) < len(distinct):  # the blocks of a run stand apart
            distinct, of = np.unique(numbers, return_inverse=True)
        at = np.searchsorted(self.numbers, distinct)
        if len(self.numbers) == 0 or (self.numbers[at.clip(max=len(self.numbers) - 1)] != distinct).any():
            raise CorruptBlock("the first block of a run is missing")
        return self.bodies.gather(self.places[at]), of


NO_RUNS: Final = Runs(np.empty(0, np.int64), np.empty(0, np.int64), pl.Series("open", [], pl.Binary))


def open_events(rows: pl.DataFrame, runs: Runs, schema: Schema, columns: Sequence[str]) -> pl.DataFrame:
    """What the open parts of blocks of one schema say, in the order of rows and of events inside.

    Args:
        rows: `open` and `event_count`; and of those that may be of a run, `run` and `run_at`.
        columns: which fields; at least one.

    Raises:
        CorruptBlock: a body does not hold what it should.
    """
    counts = rows.get_column("event_count").to_numpy().astype(np.int64)
    run = rows.get_column("run") if "run" in rows.columns else None
    if run is None or run.null_count() == rows.height:
        return unpack(rows.get_column("open"), counts, schema, columns)
    in_run = run.is_not_null()
    if in_run.all():
        events, places = _events_of_runs(rows, runs, schema, columns)
    else:
        chosen, own = in_run.to_numpy(), counts[~in_run.to_numpy()]
        events, firsts = _events_of_runs(rows.filter(in_run), runs, schema, columns)
        places = np.empty(rows.height, dtype=np.int64)
        places[chosen], places[~chosen] = firsts, events.height + np.cumsum(own) - own
        others = unpack(rows.get_column("open").filter(~in_run), own, schema, columns)
        events = pl.concat([events, others])
    shifts = places - (np.cumsum(counts) - counts)
    if (shifts == shifts[0]).all():
        return events.slice(int(shifts[0]), int(counts.sum()))
    return events[np.repeat(shifts, counts) + np.arange(counts.sum())]


def _events_of_runs(
    rows: pl.DataFrame, runs: Runs, schema: Schema, columns: Sequence[str]
) -> tuple[pl.DataFrame, Array]:
    """(events of the runs of some blocks, where each block's begin)."""
    bodies, of = runs.of(rows.get_column("run").to_numpy())
    heads = bodies.bin.slice(0, _COUNT_BYTES).bin.reinterpret(dtype=pl.UInt32, endianness="little")
    sizes = heads.fill_null(0).to_numpy().astype(np.int64)
    at = rows.get_column("run_at").fill_null(-1).to_numpy().astype(np.int64)
    counts = rows.get_column("event_count").to_numpy().astype(np.int64)
    if (
        counts.min() < 1
        or sizes.min() < 1
        or sizes.max() > _MOST_EVENTS
        or at.min() < 0
        or (at + counts > sizes[of]).any()
        or (np.bincount(of, weights=counts) > sizes).any()
    ):
        raise CorruptBlock("a run has fewer events than its blocks, or more than one can have")
    bodies, starts = bodies.bin.slice(_COUNT_BYTES), np.cumsum(sizes) - sizes
    if _SPARSE * counts.sum() >= sizes.sum():
        return unpack(bodies, sizes, schema, columns), starts[of] + at
    parts, places, done = [], np.empty(rows.height, dtype=np.int64), 0
    order = np.argsort(of, kind="stable")
    groups = np.flatnonzero(np.diff(starts // _AT_ONCE, prepend=-1))
    for first, last in pairwise([*groups, len(sizes)]):
        mine = order[slice(*np.searchsorted(of[order], (first, last)))]
        some = unpack(bodies[first:last], sizes[first:last], schema, columns)
        wanted = np.cumsum(counts[mine]) - counts[mine]
        shifts = starts[of[mine]] - starts[first] + at[mine] - wanted
        parts.append(some[np.repeat(shifts, counts[mine]) + np.arange(counts[mine].sum())])
        places[mine] = done + wanted
        done += parts[-1].height
    return pl.concat(parts), places


def in_runs(
    rows: pl.DataFrame, schema_of: SchemaOf, random_bytes: Callable[[int], bytes] = os.urandom
) -> pl.DataFrame:
    """Blocks (none is of a run) in the order of a sorted file, as they are stored: in runs of their kind."""
    parts = [
        _run_of_a_kind(group, schema_of(str(name), int(str(version))), random_bytes)
        for (name, version, _), group in rows.with_row_index("_at").group_by(*_GROUP, maintain_order=True)
    ]
    return pl.concat(parts).sort("_at").drop("_at") if parts else alone(rows)


def _run_of_a_kind(rows: pl.DataFrame, schema: Schema, random_bytes: Callable[[int], bytes]) -> pl.DataFrame:
    counts = rows.get_column("event_count").to_numpy().astype(np.int64)
    starts = np.cumsum(counts) - counts
    sizes = rows.get_column("open").bin.size().to_numpy().astype(np.int64)
    steps = starts // RUN_EVENTS + (np.cumsum(sizes) - sizes) // RUN_BYTES
    firsts = np.flatnonzero(np.diff(steps, prepend=-1))
    blocks = np.diff(np.append(firsts, rows.height))
    cuts = np.append(starts[firsts], counts.sum())
    packed = pack(open_events(rows, NO_RUNS, schema, list(schema)), cuts).to_list()
    bodies: list[bytes | None] = [None] * rows.height
    for first, count, body in zip(firsts, np.diff(cuts), packed, strict=True):
        bodies[first] = int(count).to_bytes(_COUNT_BYTES, "little") + body
    prefixes = rows.select(prefix_of(pl.col("subject_ref"))).to_series().to_numpy()
    numbers = np.frombuffer(random_bytes(8 * len(firsts)), dtype=np.int64) & (2**63 - 1)
    columns: dict[str, Any] = {
        "run": np.repeat(numbers, blocks),
        "run_from": np.repeat(np.minimum.reduceat(prefixes, firsts), blocks),
        "run_to": np.repeat(np.maximum.reduceat(prefixes, firsts), blocks),
        "run_at": starts - np.repeat(starts[firsts], blocks),
    }
    told = [pl.Series(name, columns[name], dtype=kind) for name, kind in _COLUMNS.items()]
    return rows.with_columns(pl.Series("open", bodies, dtype=pl.Binary), *told)


def alone(rows: pl.DataFrame) -> pl.DataFrame:
    """Blocks with bodies of their own, as they are stored."""
    return rows.with_columns(pl.lit(None, kind).alias(name) for name, kind in _COLUMNS.items())


def out_of_runs(rows: pl.DataFrame, runs: Runs, schema_of: SchemaOf) -> pl.DataFrame:
    """Stored blocks, each with a body of its own."""
    if rows.get_column("run").null_count() == rows.height:
        return rows.drop(_COLUMNS, strict=False)
    numbered = rows.with_row_index("_at")
    in_run = pl.col("run").is_not_null()
    parts = [numbered.filter(~in_run)]
    for (name, version, _), group in numbered.filter(in_run).group_by(*_GROUP, maintain_order=True):
        schema = schema_of(str(name), int(str(version)))
        cuts = np.append(0, np.cumsum(group.get_column("event_count").to_numpy()))
        bodies = pack(open_events(group, runs, schema, list(schema)), cuts)
        parts.append(group.with_columns(bodies.alias("open")))
    return pl.concat(parts).sort("_at").drop("_at", *_COLUMNS, strict=False)


def prefix_of(refs: pl.Expr) -> pl.Expr:
    """The leading sixteen bits of handles, as Int32."""
    number = refs.bin.slice(0, PREFIX_BYTES).bin.reinterpret(dtype=pl.UInt16, endianness="big")
    return number.cast(pl.Int32)
