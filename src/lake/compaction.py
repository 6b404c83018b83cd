"""L0 → L1: a day's blocks sorted and merged, one commit after another.

Compaction merges the blocks of one subject and type, drops what the duplicate rule drops, and severs
dead blocks: their sealed bytes and their handle go, the anonymous remainder stays under a fresh random
handle of the same bucket, so that totals do not move (docs/adr/0004). Which files come next is decided by
`lake.sorting`; every commit conserves the count of blocks or events, and stays whatever becomes of the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import date

import polars as pl
from attrs import asdict, astuple, frozen
from pyiceberg.exceptions import ValidationException
from pyiceberg.manifest import DataFile

from keys import Fence
from lake.blocks import BLOCK_COLUMNS, bucket_of, severed_refs, uuid7s
from lake.dedup import settle
from lake.errors import ConservationBroken, EpochMoved
from lake.eventtypes import PRIMARY, EventType, Facet
from lake.levels import Level, origin, together
from lake.merging import L1_FILE_BYTES
from lake.resting import NO_REST, Rests
from lake.rewriting import Rewriter
from lake.selection import block_rows
from lake.sorting import Rewrite, rewrites

Covering = Callable[[bytes, str, int], Fence | None]
"""Tells which fence covers a handle for a purpose, up to a generation."""


@frozen
class Compacted:
    """What one compaction of a day did.

    Attributes:
        commits: how many there were; 0 where there was nothing to do.
        files_before, bytes_before: of the whole day, as `files_after` and `bytes_after`.
        blocks_before, blocks_after: of what was sorted.
        severed_blocks: blocks of erased people whose sealed bytes are gone from the new files.
        superseded: events that the duplicate rule dropped.
    """

    day: date
    commits: int
    files_before: int
    files_after: int
    blocks_before: int
    blocks_after: int
    bytes_before: int
    bytes_after: int
    severed_blocks: int
    superseded: int


@frozen
class _Rewritten:
    """Blocks that were written anew; an event of several facets is counted by its primary one alone."""

    rows: pl.DataFrame
    severed: int
    superseded: int
    superseded_counted: int


@frozen
class _Done:
    commits: int = 0
    blocks_before: int = 0
    blocks_after: int = 0
    severed_blocks: int = 0
    superseded: int = 0

    def __add__(self, other: _Done) -> _Done:
        return _Done(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Compactor(Rewriter):
    """Brings days to L1; safe beside ingest, erasures and other upkeep."""

    def compact(
        self,
        day: date,
        progress: Callable[[str], None] = lambda text: None,
        piece_bytes: int = L1_FILE_BYTES,
        rests: Rests = NO_REST,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Compacted:
        """Rewrites a day into L1 files sorted by type and subject, each of a range of handles.

        Handles are random, so a range of them is an even share of the people, and a person's file is
        found by its bounds. What is sorted already stays, unless it holds dead bytes. What is ingested
        meanwhile is left to the next time.

        Args:
            piece_bytes: about how large a file becomes; about so much is in memory at a time.
            rests: taken behind each commit.
            should_stop: asked before each commit; what was committed stays.

        Raises:
            ConservationBroken: counts would change; what was committed before stays.
            KeysError: a block could not be opened for a reason that is no erasure.
        """
        first = live = self._live(day)
        here = {file.file_path for file, _ in first}
        sorted_already = [file for file, at in live if origin(file, at).level is Level.SORTED]
        stale = {path for path, dead in self.dead_blocks(sorted_already).items() if dead}
        done = _Done()
        while (todo := rewrites(live, piece_bytes, stale)) and not should_stop():
            what = "dividing" if todo[0].bits else "sorting"
            progress(f"{what} {len(todo[0].files)} file(s), {len(todo) - 1} more")
            if (one := self._replace(day, todo[0])) is not None:
                done += one
                rests.rest()
            live = [
                one
                for one in self._live(day)
                if one[0].file_path in here or origin(*one).level is not Level.INGESTED
            ]
        return Compacted(
            day,
            files_before=len(first),
            files_after=len(live),
            bytes_before=sum(file.file_size_in_bytes for file, _ in first),
            bytes_after=sum(file.file_size_in_bytes for file, _ in live),
            **asdict(done),
        )

    def _replace(self, day: date, work: Rewrite) -> _Done | None:
        """One commit; None where somebody else's came first and the day has to be looked at again."""
        epoch = self._keyring.catch_up()
        try:
            return self._divide(day, work, epoch) if work.bits else self._sort(day, work, epoch)
        except (EpochMoved, ValidationException):
            return None  # somebody was erased, or another rewrite was first
        except ConservationBroken:
            if self._keyring.epoch() == epoch:
                raise
            return None  # somebody was erased after their blocks were opened: they are not sealed again

    def _divide(self, day: date, work: Rewrite, epoch: int) -> _Done:
        """Files by leading bits of the handles instead of by time; opens nothing."""
        files = [file for file, _ in work.files]
        rows = self._rows(files)
        parts = rows.select(*BLOCK_COLUMNS, bucket_of(pl.col("subject_ref"), work.bits).alias("_part"))
        what = together(Level.DIVIDED, work.files)
        fresh = [
            self._write(day, part.drop("_part"), what, arrange=False)
            for part in parts.partition_by("_part", maintain_order=True)
        ]
        _check_blocks(sum(file.record_count for file in fresh), files)
        self._commit(fresh, files, epoch)
        return _Done(commits=1)

    def _sort(self, day: date, work: Rewrite, epoch: int) -> _Done:
        files = [file for file, _ in work.files]
        before = self._rows(files)
        _check_blocks(before.height, files)
        if before.height == 0:  # earlier releases wrote such files where a redaction left nothing
            self._commit([], files, epoch)
            return _Done(commits=1)
        rewritten = self._rewrite(before)
        check_conservation(before, rewritten.rows, rewritten.superseded)
        fresh = self._write(day, rewritten.rows, together(Level.SORTED, work.files))
        self._commit([fresh], files, epoch, superseded=rewritten.superseded_counted)
        return _Done(1, before.height, rewritten.rows.height, rewritten.severed, rewritten.superseded)

    def dead_blocks(self, files: Iterable[DataFile]) -> dict[str, int]:
        """Path → blocks with sealed bytes whose key is destroyed; three small columns are read."""
        covering = self._keyring.fences.covering()
        if covering is None:
            return {}
        return {file.file_path: self._dead_in(file, covering) for file in files}

    def _dead_in(self, file: DataFile, covering: Covering) -> int:
        columns = ("subject_ref", "generation", "facet")
        rows = block_rows(self._table, [file], None, columns=columns).select(columns)
        severed = pl.col("generation") == 0
        return sum(
            covering(ref, facet.partition("/")[2], generation) is not None
            for ref, generation, facet in rows.filter(~severed).iter_rows()
        )

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
        parts = [sealed, severed(dead), kept.select(BLOCK_COLUMNS)]
        superseded = living.height - winners.height
        return _Rewritten(
            pl.concat([part for part in parts if part.height] or parts[:1]),
            dead.height,
            superseded,
            superseded if facet == PRIMARY else 0,
        )


def severed(dead: pl.DataFrame) -> pl.DataFrame:
    """Dead blocks without sealed bytes, under new ids and handles; their counts and dates stay."""
    refs = severed_refs(dead.get_column("subject_ref").to_list())
    return dead.with_columns(
        pl.Series("block_id", uuid7s(dead.height, time.time_ns() // 1_000_000), dtype=pl.Binary),
        pl.Series("subject_ref", refs, dtype=pl.Binary),
        pl.lit(0, pl.Int32).alias("generation"),
        pl.lit(None, pl.Binary).alias("sealed"),
    ).select(BLOCK_COLUMNS)


def check_conservation(before: pl.DataFrame, after: pl.DataFrame, superseded: int) -> None:
    """Raises `ConservationBroken` where a rewrite does not hold the events that it should."""
    was, now = int(before["event_count"].sum()), int(after["event_count"].sum())
    if was != now + superseded:
        raise ConservationBroken(f"{was} events before, {now} after, {superseded} superseded")


def _check_blocks(found: int, files: Iterable[DataFile]) -> None:
    """Their manifests say how many there are."""
    stored = sum(file.record_count for file in files)
    if stored != found:
        raise ConservationBroken(f"{stored} blocks in the files, {found} were read or written")
