"""The one rule for duplicates and corrections, the same for live, catch-up, rebuild and compaction.

An event is known by its tag, which stands for (subject, source, id). Of events with one tag the
highest revision wins, and of equal revisions the first by ingest position. A tag is remembered for the
type's `dedup_window_days` after the ingest day it was first seen; then it may begin anew.
"""

from __future__ import annotations

from datetime import date

import polars as pl

from lake.blocks import BUCKET_PREFIX_BYTES, L1_SOURCE, bucket_of


def settle(events: pl.DataFrame, window_days: int) -> pl.DataFrame:
    """The events that count.

    Args:
        events: with `_tag`, `_rev`, `ingest_day`, in ingest order.
        window_days: how long a tag is remembered.

    Returns:
        The winners in their order, with `_first_day`: the ingest day their tag was first seen.
    """
    if events.get_column("_tag").n_unique() == events.height:
        return events.with_columns(pl.col("ingest_day").alias("_first_day"))
    numbered = events.with_row_index("_row")
    twice = numbered.filter(pl.col("_tag").is_duplicated()).select("_row", "_tag", "_rev", "ingest_day")
    losers: list[int] = []
    first_days: dict[int, date] = {}
    for (_,), group in twice.sort("_tag", "ingest_day", "_row").group_by("_tag", maintain_order=True):
        first_day, best, best_rev = None, -1, -1
        for row, _, rev, day in group.iter_rows():
            if first_day is None or (day - first_day).days > window_days:
                first_day, best, best_rev = day, row, rev
            elif rev > best_rev:
                losers.append(best)
                best, best_rev = row, rev
            else:
                losers.append(row)
            first_days[best] = first_day
    since = pl.DataFrame(
        {"_row": list(first_days), "_first_day": list(first_days.values())},
        schema={"_row": numbered.schema["_row"], "_first_day": pl.Date()},
    )
    return (
        numbered.filter(~pl.col("_row").is_in(losers))
        .join(since, on="_row", how="left", maintain_order="left")
        .with_columns(pl.coalesce("_first_day", "ingest_day").alias("_first_day"))
        .drop("_row")
    )


def is_settled(rows: pl.DataFrame) -> pl.Series:
    """Which block rows hold nothing that the rule drops, whatever their tags are.

    L1 has applied it to the events of each block that it sealed, so it has nothing to say of people with one
    such block and no other. Blocks that were severed stand under new handles of the same bucket, and may hold
    tags of somebody there: such a bucket is left to the rule as a whole.

    Args:
        rows: all of a selection; `subject_ref`, `generation`, `source`, `schema_version`.
    """
    own = (pl.col("source") == L1_SOURCE) & (pl.col("generation") > 0)
    one_version = pl.col("schema_version").min() == pl.col("schema_version").max()
    refs = rows.get_column("subject_ref")
    alike = rows.select((own.all() & one_version).fill_null(True)).item()
    if alike and (refs[1:] > refs[:-1]).all(ignore_nulls=False):
        return pl.repeat(True, rows.height, eager=True)  # as L1 has sorted them
    bucket = bucket_of(pl.col("subject_ref"), 8 * BUCKET_PREFIX_BYTES)
    alone = own & pl.col("subject_ref").is_unique()
    return rows.select(known=(alone.all() & one_version).over(bucket)).to_series()


def settle_among(events: pl.DataFrame, rivals: pl.DataFrame, window_days: int) -> pl.DataFrame:
    """The events that count, rivals from other blocks considered.

    Args:
        events: as for `settle`, with `_order`.
        rivals: `_tag`, `_rev`, `ingest_day` and `_order`; the order is one for both.

    Returns:
        As `settle`.
    """
    columns = ["_tag", "_rev", "ingest_day", "_order"]
    numbered = events.select(columns).with_row_index("_at")
    others = rivals.select(pl.lit(None, numbered.schema["_at"]).alias("_at"), *columns)
    both = pl.concat([numbered.select("_at", *columns), others]).sort("_order", maintain_order=True)
    winners = settle(both, window_days).filter(pl.col("_at").is_not_null())
    return events[winners.get_column("_at")].with_columns(winners.get_column("_first_day"))
