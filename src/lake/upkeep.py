"""Rewriting data files: L0 merge, L0 → L1 compaction, severing dead blocks.

Compaction merges the blocks of one subject and type, drops what the duplicate rule drops, and severs
dead blocks: their sealed bytes and their handle go, the anonymous remainder stays under a fresh random
handle of the same bucket, so that totals do not move (docs/adr/0004).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import date
from typing import Final

import polars as pl
from attrs import astuple, frozen
from pyiceberg.exceptions import ValidationException
from pyiceberg.manifest import DataFile
from pyiceberg.table.refs import SnapshotRefType

from keys import Fence
from lake.blocks import BLOCK_COLUMNS, severed_refs, uuid7s
from lake.dedup import settle
from lake.errors import ConservationBroken, EpochMoved
from lake.eventtypes import PRIMARY, EventType, Facet
from lake.levels import Level, Sequenced, origin, together
from lake.merging import L0_FILE_BYTES, L1_FILE_BYTES, MERGE_FILES, day_of, handle_ranges, mergeable
from lake.offsets import dropped_of
from lake.resting import NO_REST, Rests
from lake.rewriting import Rewriter
from lake.selection import block_rows
from lake.table import summary_of

L1_ROW_GROUP: Final = 16_384
Covering = Callable[[bytes, str, int], Fence | None]
"""Tells which fence covers a handle for a purpose, up to a generation."""


@frozen
class Compacted:
    """What one compaction of a day did.

    Attributes:
        severed_blocks: blocks of erased people whose sealed bytes are gone from the new files.
        superseded: events that the duplicate rule dropped.
    """

    day: date
    snapshot_id: int | None
    files_before: int
    files_after: int
    blocks_before: int
    blocks_after: int
    bytes_before: int
    bytes_after: int
    severed_blocks: int
    superseded: int


@frozen
class Merged:
    """Small L0 files of a day that were put together."""

    day: date
    files_before: int
    files_after: int


@frozen
class Severed:
    """Dead blocks taken out of a day's live files, and the bytes written for it."""

    blocks: int
    bytes_written: int


@frozen
class _Rewritten:
    """Blocks of a piece, written anew; an event of several facets is counted by its primary one alone."""

    rows: pl.DataFrame
    severed: int
    superseded: int
    superseded_counted: int


@frozen
class _Counts:
    events: int = 0
    before: int = 0
    after: int = 0
    severed: int = 0
    superseded: int = 0
    superseded_counted: int = 0

    def __add__(self, other: _Counts) -> _Counts:
        return _Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Upkeep(Rewriter):
    """Maintenance of the events table; every step is one guarded commit and safe beside ingest."""

    def days(self) -> dict[date, list[DataFile]]:
        """Live data files per ingest day."""
        found: dict[date, list[DataFile]] = {}
        for file in self._table.files():
            found.setdefault(day_of(file), []).append(file)
        return found

    def compact(
        self,
        day: date,
        progress: Callable[[str], None] = lambda text: None,
        piece_bytes: int = L1_FILE_BYTES,
        rests: Rests = NO_REST,
    ) -> Compacted:
        """Rewrites a day into L1 files sorted by type and subject, each of a range of handles.

        Handles are random, so a range of them is an even share of the people, and a person's file is
        found by its bounds. One piece is in memory at a time.

        Args:
            piece_bytes: about how large a file becomes at the most.
            rests: taken behind each piece.

        Raises:
            ConservationBroken: counts would change; nothing was committed.
            KeysError: a block could not be opened for a reason that is no erasure.
        """
        while True:
            live = self._live(day)
            if not live:
                return Compacted(day, None, 0, 0, 0, 0, 0, 0, 0, 0)
            epoch = self._keyring.catch_up()
            try:
                return self._compact(day, live, epoch, progress, piece_bytes, rests)
            except (EpochMoved, ValidationException):
                continue  # somebody was erased, or another compaction was first: look again
            except ConservationBroken:
                if self._keyring.epoch() == epoch:
                    raise
                # Somebody was erased after their blocks were opened: they are not sealed again.

    def _compact(
        self,
        day: date,
        live: Sequence[Sequenced],
        epoch: int,
        progress: Callable[[str], None],
        piece_bytes: int,
        rests: Rests,
    ) -> Compacted:
        files = [file for file, _ in live]
        size = sum(f.file_size_in_bytes for f in files)
        fresh: list[DataFile] = []
        done = _Counts()
        for number, span in enumerate(spans := handle_ranges(size, piece_bytes), start=1):
            before = block_rows(self._table, files, None, ref_range=span)
            if before.height == 0:
                continue
            progress(f"piece {number} of {len(spans)}")
            rewritten = self._rewrite(before)
            _check_conservation(before, rewritten.rows, rewritten.superseded)
            done += _Counts(
                int(before["event_count"].sum()),
                before.height,
                rewritten.rows.height,
                rewritten.severed,
                rewritten.superseded,
                rewritten.superseded_counted,
            )
            fresh.append(self._write(day, rewritten.rows, together(Level.SORTED, live)))
            rests.rest()
        stored = self._event_count(files)
        if stored != done.events:
            raise ConservationBroken(f"{stored} events in the files, {done.events} were read")
        landed = self._commit(fresh, files, epoch, superseded=done.superseded_counted)
        return Compacted(
            day,
            landed.snapshot_id,
            len(files),
            len(fresh),
            done.before,
            done.after,
            size,
            sum(f.file_size_in_bytes for f in fresh),
            done.severed,
            done.superseded,
        )

    def merge(
        self,
        day: date,
        at_least: int = MERGE_FILES,
        piece_bytes: int = L0_FILE_BYTES,
        should_stop: Callable[[], bool] = lambda: False,
        rests: Rests = NO_REST,
    ) -> Merged:
        """Puts a day's small L0 files together, row by row as they are; opens nothing.

        Files on either side of a tagged snapshot stay apart: what was ingested after a publication's
        input can then still be read alone.

        Args:
            at_least: fewer small files are left alone.
            piece_bytes: about how large a file becomes at the most.
            should_stop: asked before each group; what was committed stays.
            rests: taken behind each group.
        """
        before = after = 0
        while not should_stop():
            live = self._live(day)
            metadata = self._table.metadata()
            marks = [
                snapshot.sequence_number or 0
                for ref in metadata.refs.values()
                if ref.snapshot_ref_type == SnapshotRefType.TAG
                and (snapshot := metadata.snapshot_by_id(ref.snapshot_id)) is not None
            ]
            groups = mergeable(live, marks, at_least, piece_bytes)
            if not groups:
                return Merged(day, before, after)
            group = groups[0]
            files = [file for file, _ in group]
            epoch = self._keyring.epoch()
            rows = block_rows(self._table, files, None)
            fresh = self._write(day, rows.select(BLOCK_COLUMNS), together(Level.MERGED, group), arrange=False)
            if fresh.record_count != sum(file.record_count for file in files):
                raise ConservationBroken("a merge would have changed the number of blocks")
            try:
                self._commit([fresh], files, epoch)
            except (EpochMoved, ValidationException):
                continue
            before, after = before + len(files), after + 1
            rests.rest()
        return Merged(day, before, after)

    def sever(self, day: date, refs: Sequence[bytes]) -> Severed:
        """Takes sealed bytes and handles of these people's dead blocks out of a day's live files.

        Opens nothing of anybody else: the other rows are copied as they are.

        Raises:
            ConservationBroken: counts would change; nothing was committed.
        """
        while True:
            epoch = self._keyring.catch_up()
            live = [one for one in self._live(day) if block_rows(self._table, [one[0]], None, refs).height]
            files = [file for file, _ in live]
            rows = block_rows(self._table, files, None)
            mine = rows.filter(pl.col("subject_ref").is_in(list(refs)) & pl.col("sealed").is_not_null())
            dead: list[bytes] = []
            for (name, version, facet), group in mine.group_by("event_type", "schema_version", "facet"):
                role, _, purpose = str(facet).partition("/")
                event_type = self._types.get(str(name), int(str(version)))
                gone = self._open_group(group, event_type, Facet(role, purpose)).shredded_refs
                dead += group.filter(pl.col("subject_ref").is_in(list(gone)))["block_id"].to_list()
            if not dead:
                return Severed(0, 0)
            is_dead = pl.col("block_id").is_in(dead)
            after = pl.concat([rows.filter(~is_dead).select(BLOCK_COLUMNS), _sever(rows.filter(is_dead))])
            _check_conservation(rows, after, 0)
            try:
                fresh = self._write(day, after, together(Level.REWRITTEN, live))
                self._commit([fresh], files, epoch)
            except (EpochMoved, ValidationException):
                continue
            return Severed(len(dead), fresh.file_size_in_bytes)

    def days_with_dead(self, live: Sequence[Sequenced], today: date) -> list[date]:
        """Closed days that are sorted and hold sealed bytes whose key is destroyed, oldest first.

        An erasure takes its own dead bytes out; who was shredded by keys alone, or for one purpose, is
        still there. Once for each fence three small columns are read, and that there is nothing is
        written down in a commit.
        """
        head = self._table.snapshot()
        epoch = self._keyring.catch_up()
        covering = self._keyring.fences.covering()
        if head is None or covering is None or dropped_of(summary_of(head)) >= epoch:
            return []
        days: dict[date, list[DataFile]] = {}
        for file, sequence in live:
            if day_of(file) < today and origin(file, sequence).level is Level.SORTED:
                days.setdefault(day_of(file), []).append(file)
        found = [day for day, files in sorted(days.items()) if self._holds_dead(files, covering)]
        if not found:
            with contextlib.suppress(EpochMoved):  # the next round looks again
                self._commit([], [], epoch, dropped=epoch)
        return found

    def _holds_dead(self, files: Sequence[DataFile], covering: Covering) -> bool:
        columns = ("subject_ref", "generation", "facet")
        rows = block_rows(self._table, files, None, columns=columns).select(columns)
        severed = pl.col("generation") == 0
        return any(
            covering(ref, facet.partition("/")[2], generation) is not None
            for ref, generation, facet in rows.filter(~severed).iter_rows()
        )

    def days_of(self, refs: Sequence[bytes]) -> list[date]:
        """Ingest days whose live files hold blocks of these handles."""
        return [
            day for day, files in self.days().items() if block_rows(self._table, files, None, refs).height
        ]

    def _rewrite(self, before: pl.DataFrame) -> _Rewritten:
        parts: list[_Rewritten] = []
        keys = ("event_type", "schema_version", "facet")
        for (name, version, facet), rows in before.group_by(*keys, maintain_order=True):
            role, _, purpose = str(facet).partition("/")
            event_type = self._types.get(str(name), int(str(version)))
            parts.append(self._rewrite_group(rows, event_type, Facet(role, purpose)))
        return _Rewritten(
            pl.concat([part.rows for part in parts]),
            sum(part.severed for part in parts),
            sum(part.superseded for part in parts),
            sum(part.superseded_counted for part in parts),
        )

    def _rewrite_group(self, rows: pl.DataFrame, event_type: EventType, facet: Facet) -> _Rewritten:
        opened = self._open_group(rows, event_type, facet)
        living = opened.frame.filter(~pl.col("shredded"))
        alive_blocks = set(living.get_column("_order").unique().to_list())
        rest = rows.filter(~pl.col("_n").is_in(list(alive_blocks)))
        dead = rest.filter(
            pl.col("subject_ref").is_in(list(opened.shredded_refs)) & pl.col("sealed").is_not_null()
        )
        kept = rest.filter(~pl.col("block_id").is_in(dead.get_column("block_id").to_list()))
        winners = settle(living, event_type.dedup_window_days)
        renamed = winners.rename({"subject_ref": "ref", "occurred_on": "_day"})
        sealed = self._sealed(renamed, event_type, facet, rows)
        parts = [sealed, _sever(dead), kept.select(BLOCK_COLUMNS)]
        superseded = living.height - winners.height
        return _Rewritten(
            pl.concat([part for part in parts if part.height] or parts[:1]),
            dead.height,
            superseded,
            superseded if facet == PRIMARY else 0,
        )


def _sever(dead: pl.DataFrame) -> pl.DataFrame:
    """Dead blocks without sealed bytes, under new ids and handles; their counts and dates stay."""
    refs = severed_refs(dead.get_column("subject_ref").to_list())
    return dead.with_columns(
        pl.Series("block_id", uuid7s(dead.height, time.time_ns() // 1_000_000), dtype=pl.Binary),
        pl.Series("subject_ref", refs, dtype=pl.Binary),
        pl.lit(0, pl.Int32).alias("generation"),
        pl.lit(None, pl.Binary).alias("sealed"),
    ).select(BLOCK_COLUMNS)


def _check_conservation(before: pl.DataFrame, after: pl.DataFrame, superseded: int) -> None:
    was, now = int(before["event_count"].sum()), int(after["event_count"].sum())
    if was != now + superseded:
        raise ConservationBroken(f"{was} events before, {now} after, {superseded} superseded")
