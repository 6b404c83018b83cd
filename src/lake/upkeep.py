"""Rewriting data files: L0 merge, L0 → L1 compaction (`lake.compaction`), severing dead blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import date

import polars as pl
from attrs import frozen
from pyiceberg.exceptions import ValidationException
from pyiceberg.manifest import DataFile
from pyiceberg.table.refs import SnapshotRefType

from lake.blocks import BLOCK_COLUMNS
from lake.compaction import Compactor, check_conservation, severed
from lake.errors import ConservationBroken, EpochMoved
from lake.eventtypes import Facet
from lake.levels import Level, Sequenced, origin, together
from lake.merging import L0_FILE_BYTES, MERGE_FILES, day_of, mergeable
from lake.offsets import dropped_of
from lake.resting import NO_REST, Rests
from lake.selection import block_rows
from lake.table import summary_of


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


class Upkeep(Compactor):
    """Maintenance of the events table; every step is one guarded commit and safe beside ingest."""

    def days(self) -> dict[date, list[DataFile]]:
        """Live data files per ingest day."""
        found: dict[date, list[DataFile]] = {}
        for file in self._table.files():
            found.setdefault(day_of(file), []).append(file)
        return found

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
            at_least: fewer small files are left alone, and one file always is.
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
            groups = mergeable(live, marks, max(at_least, 2), piece_bytes)  # one alone would go on for ever
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
            after = pl.concat([rows.filter(~is_dead).select(BLOCK_COLUMNS), severed(rows.filter(is_dead))])
            check_conservation(rows, after, 0)
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

    def days_of(self, refs: Sequence[bytes]) -> list[date]:
        """Ingest days whose live files hold blocks of these handles."""
        return [
            day for day, files in self.days().items() if block_rows(self._table, files, None, refs).height
        ]
