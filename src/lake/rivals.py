"""Events of other blocks that decide which of those read count: of other days, of other handles."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import polars as pl
from attrs import evolve
from pyiceberg.manifest import DataFile

from lake.blocks import unpack_tags
from lake.dedup import settle, settle_among
from lake.eventreader import EventReader, Read
from lake.kin import kin, ordered_together, parts_kin
from lake.selection import Days, Selection, StoredBlocks, in_ingest_order, stored_blocks
from lake.table import IcebergTable


class Rivals:
    """Looks for them.

    Args:
        reader: opens the anonymous part of their blocks.
    """

    def __init__(self, table: IcebergTable, reader: EventReader) -> None:
        self._table = table
        self._reader = reader

    def on_other_days(
        self,
        files: Sequence[DataFile],
        known: Read,
        chosen: Selection,
        places: pl.DataFrame,
        frame: pl.DataFrame,
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """(the events, and those of other blocks that may supersede them, with one `_order` for both).

        A correction may lie on another day than what it corrects, so the days' own blocks do not tell what
        counts. Open parts alone do, of blocks ingested at most a window apart: the search widens until
        it finds no more. (Tags that no chain of windows connects begin anew, as in `settle`.)
        """
        assert chosen.days is not None
        window = timedelta(days=known.newest.dedup_window_days)
        mine = of_days(frame, chosen.days)
        tags = mine.get_column("_tag").unique()
        met = frame.filter(pl.col("_tag").is_in(tags.implode()))
        looked: Days | None = None
        rivals, order = frame.clear(), places.get_column("_n")
        while met.height:
            days = met.get_column("ingest_day")
            first, last = days.min(), days.max()
            span: Days = (first - window, last + window)  # type: ignore[operator, assignment]
            if span == looked:
                break
            elsewhere = evolve(chosen, days=None, apart_from=chosen.days, ingest_days=span)
            blocks = stored_blocks(self._table, files, elsewhere, known.tags_alone().columns)
            rows = in_ingest_order(blocks.rows)
            order, numbers = ordered_together(places, rows)
            rows = rows.with_columns(numbers.alias("_n"))
            rivals = self._reader.open(rows, blocks.runs, known.tags_alone()).frame
            rivals = rivals.filter(pl.col("_tag").is_in(tags.implode()))
            met = pl.concat([met.select("ingest_day"), rivals.select("ingest_day")])
            looked = span
        if looked is None:
            return frame, rivals
        return frame.with_columns(order.gather(frame.get_column("_order")).alias("_order")), rivals

    def kin(
        self, files: Sequence[DataFile], known: Read, chosen: Selection, tags: pl.Series
    ) -> StoredBlocks | None:
        """See `lake.kin.kin`; blocks with what settles them, without any field."""
        return kin(self._table, files, chosen, tags, known.tags_alone().columns)

    def winners(
        self,
        files: Sequence[DataFile],
        known: Read,
        mine: Selection,
        blocks: pl.DataFrame,
        events: pl.DataFrame,
        alone: bool,
    ) -> pl.DataFrame:
        """Of one person's events those that count, by their place `_at`.

        Args:
            blocks: of the person, in ingest order.
            events: as for `settle`, with `_order`, the number of their block.
            alone: whether blocks of other handles do not matter.
        """
        window, numbered = known.newest.dedup_window_days, events.with_row_index("_at")
        apart = not alone and parts_kin(self._table, files, mine)
        near = self.kin(files, known, mine, events.get_column("_tag")) if apart else None
        if near is None:
            return settle(numbered, window)
        ours, theirs = ordered_together(blocks, near.rows)
        rows = near.rows.with_columns(theirs.alias("_n")).sort("_n")
        rivals = self._reader.open(rows, near.runs, known.tags_alone()).frame
        placed = numbered.with_columns(ours.gather(numbered.get_column("_order")).alias("_order"))
        return settle_among(placed, rivals, window)


def tags_of(rows: pl.DataFrame) -> pl.Series:
    """Of the events of block rows. Raises as `unpack_tags`."""
    return unpack_tags(rows.get_column("tags"), rows.get_column("event_count").to_numpy())


def of_days(frame: pl.DataFrame, days: Days) -> pl.DataFrame:
    """The events of these days."""
    return frame.filter(pl.col("occurred_on").is_between(*days))
