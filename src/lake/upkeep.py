"""Rewriting data files: L0 merge, L0 → L1 compaction (`lake.compaction`), severing dead blocks."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date

import polars as pl
from attrs import field, frozen
from pyiceberg.exceptions import ValidationException
from pyiceberg.manifest import DataFile
from pyiceberg.table.refs import MAIN_BRANCH

from lake.blocks import BLOCK_COLUMNS
from lake.compaction import Compactor, check_conservation, severed
from lake.errors import ConservationBroken, EpochMoved
from lake.eventtypes import Facet
from lake.inputs import marks_of
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
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0

    def and_one_more(self, files: Sequence[DataFile], fresh: DataFile) -> Merged:
        """With a group that became a file."""
        return Merged(
            self.day,
            self.files_before + len(files),
            self.files_after + 1,
            self.bytes_before + sum(file.file_size_in_bytes for file in files),
            self.bytes_after + fresh.file_size_in_bytes,
        )


@frozen
class Severed:
    """Dead blocks taken out of a day's live files, of each handle too, and the bytes written for it."""

    blocks: int
    bytes_written: int
    blocks_of: Mapping[bytes, int] = field(factory=dict, repr=False)


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
        done = Merged(day)
        while not should_stop():
            live = self._live(day)
            metadata = self._table.metadata()
            tags = {name: one.snapshot_id for name, one in metadata.refs.items() if name != MAIN_BRANCH}
            marks = marks_of(metadata, tags)
            groups = mergeable(live, marks, max(at_least, 2), piece_bytes)  # one alone would go on for ever
            if not groups:
                break
            group = groups[0]
            files = [file for file, _ in group]
            epoch = self._keyring.epoch()
            rows = self._rows(files)
            fresh = self._write(day, rows.select(BLOCK_COLUMNS), together(Level.MERGED, group), arrange=False)
            if fresh.record_count != sum(file.record_count for file in files):
                raise ConservationBroken("a merge would have changed the number of blocks")
            try:
                self._commit([fresh], files, epoch)
            except (EpochMoved, ValidationException):
                continue
            done = done.and_one_more(files, fresh)
            rests.rest()
        return done

    def sever(self, day: date, refs: Sequence[bytes]) -> Severed:
        """Takes sealed bytes and handles of these people's dead blocks out of a day's live files.

        Opens nothing of anybody else: what is sealed is copied as it is. Open parts are laid into new runs.

        Raises:
            ConservationBroken: counts would change; nothing was committed.
        """
        while True:
            epoch = self._keyring.catch_up()
            live = self._holding(self._live(day), refs)
            files = [file for file, _ in live]
            rows = self._rows(files)
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
            counts = Counter(mine.filter(pl.col("block_id").is_in(dead))["subject_ref"].to_list())
            return Severed(len(dead), fresh.file_size_in_bytes, counts)

    def days_with_dead(self, live: Sequence[Sequenced], today: date) -> list[date]:
        """Closed days that are sorted and hold sealed bytes whose key is destroyed, oldest first.

        An erasure takes its own dead bytes out; who was shredded by keys alone, or for one purpose, is
        still there. Once for each fence three small columns are read, and that there is nothing is
        written down in a commit.
        """
        epoch = self._keyring.catch_up()
        if not self.has_unseen_fence():
            return []
        files = [file for file, at in live if origin(file, at).level is Level.SORTED]
        dead = self.dead_blocks(file for file in files if day_of(file) < today)
        found = sorted({day_of(file) for file in files if dead.get(file.file_path)})
        if not found:
            with contextlib.suppress(EpochMoved):  # the next round looks again
                self._commit([], [], epoch, dropped=epoch)
        return found

    def has_unseen_fence(self) -> bool:
        """Whether sorted days are still to be looked through for somebody."""
        head = self._table.snapshot()
        if head is None or self._keyring.fences.covering() is None:
            return False
        return dropped_of(summary_of(head)) < self._keyring.catch_up()

    def days_of(self, refs: Sequence[bytes]) -> list[date]:
        """Ingest days whose live files hold blocks of these handles."""
        return [
            day for day, files in self.days().items() if block_rows(self._table, files, None, refs).height
        ]
