"""Gates before publication: what has to hold of a result before readers may see it. Pure."""

from __future__ import annotations

import polars as pl

from projections.authorcode import run_author_code
from projections.definition import View
from projections.errors import GateClosed


def check_conservation(view: View, counts: pl.DataFrame, stored: int, is_whole: bool) -> None:
    """Events in the lake = counted + superseded + shredded, over all buckets.

    Args:
        counts: `COUNT_COLUMNS` per bucket.
        stored: events of these types in the lake's files.
        is_whole: every bucket has a state.

    Raises:
        GateClosed: says what does not add up.
    """
    off = counts.filter(pl.col("stored") != pl.col("superseded") + pl.col("shredded") + pl.col("counted"))
    if off.height or not is_whole:
        raise GateClosed(f"`{view.name}`: {off.height} buckets do not add up")
    seen, superseded = int(counts["stored"].sum()), int(counts["superseded"].sum())
    # Compaction drops superseded events from the lake; states remember having seen them.
    if not seen - superseded <= stored <= seen:
        raise GateClosed(
            f"`{view.name}`: the lake holds {stored} events, the buckets {seen}",
            next_step=f"Run `shredlake views build {view.name} --rebuild`.",
        )


def check_result(view: View, rows: pl.DataFrame, published: pl.DataFrame | None) -> None:
    """The view's own checks, against what readers see now.

    Raises:
        GateClosed: a check says that something is wrong.
        ViewFailed: a check raised.
    """
    for check in view.checks:
        problem = run_author_code(view, f"check `{check.name}`", check.test, rows, published)
        if problem is not None:
            raise GateClosed(f"`{view.name}`: {check.name} failed: {problem}")
