"""The one rule for duplicates and corrections, the same for live, catch-up, rebuild and compaction.

An event is known by its tag, which stands for (subject, source, id). Of events with one tag the
highest revision wins, and of equal revisions the first by ingest position. A tag is remembered for the
type's `dedup_window_days` after the ingest day it was first seen; then it may begin anew.
"""

from __future__ import annotations

import polars as pl


def settle(events: pl.DataFrame, window_days: int) -> pl.DataFrame:
    """The events that count.

    Args:
        events: with `_tag`, `_rev`, `ingest_day`, in ingest order.
        window_days: how long a tag is remembered.

    Returns:
        The winners in their order; the very same frame where nothing repeats.
    """
    if events.height == 0 or events.get_column("_tag").n_unique() == events.height:
        return events
    numbered = events.with_row_index("_row")
    twice = numbered.filter(pl.col("_tag").is_duplicated()).select("_row", "_tag", "_rev", "ingest_day")
    losers: list[int] = []
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
    gone = pl.Series(losers, dtype=pl.UInt32)
    return numbered.filter(~pl.col("_row").is_in(gone.implode())).drop("_row")
