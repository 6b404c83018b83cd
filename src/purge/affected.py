"""Drops the publications that count erased people, of the views whose policy says so.

Which these are is told by the event types and days of the people's blocks, which are still there: they are
severed later. A stage that is repeated finds the same ones, those that it dropped before it was killed too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import polars as pl
from attrs import frozen

from keys import ALL_PURPOSES
from lake import Lake, Upkeep, block_rows
from projections import Contribution, Publication, Views


@frozen
class Erased:
    """Whose publications are looked for: handle, purpose or `*`, and the fence's number."""

    ref: bytes
    purpose: str
    epoch: int


def drop_affected(
    lake: Lake, views: Views, policy: Collection[str], erased: Sequence[Erased]
) -> list[dict[str, Any]]:
    """For each: `dropped` publications, and `awaited` ones, whose rows go with the next publication.

    Args:
        policy: names of views; `*` stands for all.

    Raises:
        StorageFailed, CommitConflict: see `projections.Dropping.drop`.
    """
    if not policy:
        return [{} for _ in erased]
    days = _first_days(lake, erased)
    found = [
        views.dropping.affected(policy, Contribution(days[n], one.purpose), one.epoch)
        for n, one in enumerate(erased)
    ]
    together = {one.publication_id: one for some in found for one in some}
    views.dropping.drop(list(together.values()), why="it counts people who were erased since")
    awaited = {one.publication_id for one in views.dropping.owed()}
    return [
        {
            "dropped": [_named(one) for one in some if one.publication_id not in awaited],
            "awaited": [_named(one) for one in some if one.publication_id in awaited],
        }
        for some in found
    ]


def _named(one: Publication) -> dict[str, Any]:
    return {"view": one.view, "publication": one.publication_id}


def _first_days(lake: Lake, erased: Sequence[Erased]) -> list[Mapping[str, Any]]:
    """By person and purpose, event type → first ingest day."""
    refs = list({one.ref for one in erased})
    parts = [
        block_rows(lake.events, files, None, refs)
        .select("subject_ref", "event_type", "facet")
        .with_columns(pl.lit(day).alias("day"))
        for day, files in Upkeep(lake).days().items()
    ]
    if not parts:
        return [{} for _ in erased]
    rows = pl.concat(parts)
    return [
        dict(_of(rows, one).group_by("event_type").agg(pl.col("day").min()).iter_rows()) for one in erased
    ]


def _of(rows: pl.DataFrame, one: Erased) -> pl.DataFrame:
    mine = rows.filter(pl.col("subject_ref") == one.ref)
    if one.purpose == ALL_PURPOSES:
        return mine
    return mine.filter(pl.col("facet").str.ends_with(f"/{one.purpose}"))
