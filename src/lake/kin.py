"""Events of one person under several handles, where a range of handles parts them.

Each block of an erased person that is severed stands under a fresh handle of the same bucket, and keeps its
tags. A range that begins or ends inside of a bucket may leave out blocks whose events decide which of those
inside count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from attrs import evolve
from pyiceberg.manifest import DataFile

from lake.blocks import unpack_tags
from lake.runs import PREFIX_BYTES
from lake.selection import INGEST_ORDER, HandleRange, Selection, StoredBlocks, some_rows, stored_blocks
from lake.table import IcebergTable


def parts_kin(table: IcebergTable, files: Sequence[DataFile], wanted: Selection) -> bool:
    """Whether a bucket that a range begins or ends within, or that one handle is of, has severed blocks.

    Raises:
        StorageFailed: the store cannot be read.
    """
    return any(
        (some_rows(table, files, _apart(wanted, bucket), ("generation",))["generation"] == 0).any()
        for bucket in _cut(wanted)
    )


def kin(
    table: IcebergTable, files: Sequence[DataFile], wanted: Selection, tags: pl.Series, columns: Sequence[str]
) -> StoredBlocks | None:
    """The blocks outside that share a tag with events inside; None where there are none.

    Args:
        tags: of the events inside.
        columns: of the blocks.

    Raises:
        StorageFailed: the store cannot be read.
        CorruptBlock: a block has more or fewer tags than events.
    """
    found = pl.concat(
        some_rows(table, files, _apart(wanted, span), ("block_id", "run", "event_count", "tags"))
        for span in _outside(wanted)
    )
    counts = found["event_count"].to_numpy()
    shared = unpack_tags(found["tags"], counts).is_in(tags.implode()).to_numpy()
    near = found[np.unique(np.repeat(np.arange(found.height), counts)[shared])]
    if near.is_empty():
        return None
    cut = _cut(wanted)
    alike = evolve(
        _apart(wanted, (cut[0][0], cut[-1][1])),
        block_ids=near["block_id"].to_list(),
        runs=near["run"].drop_nulls().unique().to_list(),
    )
    return stored_blocks(table, files, alike, columns)


def of_range(frame: pl.DataFrame, wanted: Selection) -> pl.DataFrame:
    """The rows of the handles asked for (`subject_ref`), without their kin."""
    low, high = _span(wanted)
    inside = pl.col("subject_ref") >= pl.lit(low, pl.Binary)
    return frame.filter(
        inside if high is None else inside & (pl.col("subject_ref") < pl.lit(high, pl.Binary))
    )


def ordered_together(mine: pl.DataFrame, others: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """The places of both kinds of rows (of `INGEST_ORDER`) in one ingest order."""
    both = pl.concat([mine.select(INGEST_ORDER), others.select(INGEST_ORDER)])
    places = np.empty(both.height, dtype=np.int64)
    places[both.select(pl.arg_sort_by(INGEST_ORDER)).to_series().to_numpy()] = np.arange(both.height)
    numbers = pl.Series(places)
    return numbers.head(mine.height), numbers.slice(mine.height)


def _apart(wanted: Selection, span: HandleRange) -> Selection:
    return evolve(wanted, refs=None, ref_range=span, days=None)


def _span(wanted: Selection) -> HandleRange:
    """What is asked for, as a range; of handles, from the first to the last."""
    if wanted.refs:
        return min(wanted.refs), max(wanted.refs) + b"\0"
    return wanted.ref_range or (b"", None)


def _cut(wanted: Selection) -> list[HandleRange]:
    """The buckets that a range begins or ends within, whole."""
    low, high = _span(wanted)
    cut = [end[:PREFIX_BYTES] for end in (low, high or b"") if end[PREFIX_BYTES:].strip(b"\0")]
    return [(bucket, _behind(bucket)) for bucket in dict.fromkeys(cut)]


def _outside(wanted: Selection) -> list[HandleRange]:
    """What a range leaves out of these."""
    low, high = _span(wanted)
    begins = [(start, low) for start, end in _cut(wanted) if start < low < (end or low + b"\0")]
    ends = [(high, end) for start, end in _cut(wanted) if high and start < high < (end or high + b"\0")]
    return begins + ends


def _behind(bucket: bytes) -> bytes | None:
    number = int.from_bytes(bucket, "big") + 1
    return number.to_bytes(PREFIX_BYTES, "big") if number < 1 << 8 * PREFIX_BYTES else None
