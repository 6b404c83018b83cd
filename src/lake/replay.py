"""The replay reader: a pinned snapshot, or what came between two, as Polars frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

import polars as pl
from attrs import evolve, field, frozen
from pyiceberg.manifest import DataFile
from pyiceberg.table.snapshots import Snapshot

from keys import OpeningKeys
from lake.blocks import BUCKET_PREFIX_BYTES, bucket_of
from lake.dedup import settle, settle_among
from lake.errors import SnapshotGone
from lake.eventreader import EventReader, OpenedEvents, Read
from lake.eventtypes import DEAD_LETTER, TAG_FIELDS
from lake.increments import added_between
from lake.inputs import cut
from lake.kin import of_range, parts_kin
from lake.leanreads import parted
from lake.moments import Found, Nearest, checked_moment, commits_of, head_at, remembered_of
from lake.objects import collected
from lake.pieces import Cell, Pace, cuts, packed
from lake.rivals import Rivals, of_days, tags_of
from lake.selection import (
    INGEST_ORDER,
    Days,
    EventRead,
    HandleRange,
    Selection,
    StoredBlocks,
    block_rows,
    in_ingest_order,
    ordered_rows,
    selected,
    stored_blocks,
)
from lake.table import IcebergTable
from lake.typeregistry import TypeRegistry

CLEAR_FIELDS: Final = frozenset({"occurred_on", "subject_ref", "ingest_day"})
DEFAULT_MEMORY_BYTES: Final = 512 * 1024 * 1024
EVERYBODY: Final[HandleRange] = (b"", None)
Progress = Callable[[int, int], None]
"""Called with (events read, events in all)."""


@frozen
class Events:
    """Settled events of one type: duplicates and corrections are decided; a person's are in ingest order.

    Attributes:
        frame: `subject_ref`, `ingest_day`, `occurred_on`, `shredded`, the fields asked for; and `_tag`,
            `_rev` and `_first_day` for somebody who settles again.
        stored: events read, of the days asked for; `superseded` of them lost to the duplicate rule.
        shredded, held: events of the blocks read that have no personal part, and why.
        peak_bytes: about what reading them took at the peak.
    """

    frame: pl.DataFrame
    stored: int
    superseded: int
    shredded: int
    held: int
    shredded_refs: frozenset[bytes]
    peak_bytes: int = field(default=0, eq=False)

    def untagged(self) -> Events:
        """The same without what somebody needs who settles again."""
        return evolve(self, frame=self.frame.drop(*TAG_FIELDS, "_first_day", strict=False))

    def __add__(self, other: Events) -> Events:
        """Both, of different people."""
        return Events(
            pl.concat([self.frame, other.frame]),
            self.stored + other.stored,
            self.superseded + other.superseded,
            self.shredded + other.shredded,
            self.held + other.held,
            self.shredded_refs | other.shredded_refs,
            self.peak_bytes + other.peak_bytes,
        )


class Replay:
    """Reads `lake.events`.

    Args:
        table: the events table.
        keyring: opens; asked for one opener per reader.
        types: registered event types; older versions are brought forward to the newest by its upcasts.

    Attributes:
        types: the same.
    """

    def __init__(self, table: IcebergTable, keyring: OpeningKeys, types: TypeRegistry) -> None:
        self._table = table
        self.types = types
        self._reader = EventReader(types, keyring.opener(), table.metadata().table_uuid.bytes)
        self._rivals = Rivals(table, self._reader)

    def resolve(self, as_of: datetime | None) -> Snapshot | None:
        """The snapshot that was the head at a moment; the head now for None.

        Raises:
            MomentRefused, SnapshotExpired, SnapshotGone: see `as_of`.
        """
        if as_of is None:
            return self._table.snapshot()
        return self._table.snapshot(self.as_of(as_of).commit.snapshot_id)

    def as_of(self, moment: datetime, nearest: Nearest | None = None) -> Found:
        """The commit that was the head at a moment.

        Args:
            nearest: which kept neighbour is taken where the snapshot of that moment has expired.

        Raises:
            MomentRefused: no moment of the past.
            SnapshotExpired: its snapshot has expired; names both neighbours.
            SnapshotGone: nothing had been committed then.
        """
        moment = checked_moment(moment, datetime.now(UTC))
        metadata = self._table.metadata()
        kept, last = commits_of(metadata), metadata.next_sequence_number() - 1
        return head_at(kept, last, remembered_of(metadata), moment, nearest)

    def files_between(self, after: int, until: int, after_sequence: int = 0) -> list[DataFile]:
        """Data files with what ingest added after one snapshot and up to another.

        Args:
            after_sequence: see `lake.increments.added_between`.

        Raises:
            SnapshotGone: see `lake.increments.added_between`.
        """
        return added_between(self._table, after, until, after_sequence)

    def files(self, snapshot_id: int, until: int | None = None) -> list[DataFile]:
        """Live data files of a snapshot.

        Args:
            until: only what had been committed by the commit of this sequence number.

        Raises:
            SnapshotGone: it is not there, or mixes later events with earlier ones.
        """
        live = self._table.sequenced_files(snapshot_id)
        found = [file for file, _ in live] if until is None else cut(live, until)
        if found is None:
            raise SnapshotGone(f"snapshot {snapshot_id} has files with events from before and after {until}")
        return found

    def events(
        self,
        files: Sequence[DataFile],
        read: EventRead,
        *,
        refs: Sequence[bytes] | None = None,
        ref_range: HandleRange | None = None,
        settled: bool = True,
        tagged: bool = True,
    ) -> Events:
        """Events of one type out of data files, all at once; `frames` for more than fits into memory.

        Args:
            refs: only these subjects.
            ref_range: only handles in [from, to); `to` None is open-ended. One bucket is one range.
            settled: whether to apply the duplicate rule.
            tagged: whether the frame is for somebody who settles again. Otherwise people whom L1 left nothing
                to settle are read without looking at it.

        Raises:
            UnknownEventType: not registered.
            EnvelopeError, KeysError: see `keys.Opener.open`; never where a person was erased.
        """
        known = self._reader.read(read)
        chosen = Selection(read.event_type, read.facet, refs, ref_range, read.days, arrival=read.arrival)
        apart = settled and refs is None and parts_kin(self._table, files, chosen)
        # Letters that a redaction sealed again look like blocks of L1, and nobody has settled them.
        if tagged or apart or not settled or read.days is not None or read.event_type == DEAD_LETTER:
            blocks = stored_blocks(self._table, files, chosen, known.columns)
            whole = self._from_blocks(files, known, chosen, blocks, settled, apart)
            return whole if tagged else whole.untagged()
        plain, others = parted(self._table, files, known, chosen)
        opened = self._reader.open(plain.rows.with_row_index("_n"), plain.runs, known, tagged=False)
        found = _events(opened, opened.frame, opened.frame.height)
        if others is None:
            return found
        return found + self._from_blocks(files, known, chosen, others, settled).untagged()

    def _from_blocks(
        self,
        files: Sequence[DataFile],
        known: Read,
        chosen: Selection,
        blocks: StoredBlocks,
        settled: bool,
        apart: bool = False,
    ) -> Events:
        """Events of the blocks of a selection; `apart` where it leaves out blocks that are their kin."""
        read, window = known.wanted, known.newest.dedup_window_days
        near = self._rivals.kin(files, known, chosen, tags_of(blocks.rows)) if apart else None
        rows = in_ingest_order(
            blocks.rows if near is None else pl.concat([blocks.rows, near.rows], how="diagonal")
        )
        opened = self._reader.open(rows if near is None else of_range(rows, chosen), blocks.runs, known)
        frame = opened.frame
        if near is not None:
            outside = rows.join(near.rows, on="block_id", how="semi", maintain_order="left")
            others = self._reader.open(outside, near.runs, known.tags_alone()).frame
            frame = pl.concat([frame, others], how="diagonal").sort("_order", maintain_order=True)
        if not settled:
            kept = frame = frame if read.days is None else of_days(frame, read.days)
        elif read.days is None:
            kept = settle(frame, window)
        else:
            frame, rivals = self._rivals.on_other_days(
                files, known, chosen, rows.select(*INGEST_ORDER, "_n"), frame
            )
            kept = of_days(settle_among(frame, rivals, window), read.days)
            frame = of_days(frame, read.days)
        if near is not None:
            kept, frame = of_range(kept, chosen), of_range(frame, chosen)
        return _events(opened, kept, frame.height)

    def frames(
        self,
        files: Sequence[DataFile],
        read: EventRead,
        *,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        refs: Sequence[bytes] | None = None,
        ref_range: HandleRange | None = None,
        progress: Progress = lambda done, total: None,
    ) -> Iterator[Events]:
        """The same events in pieces, each of a range of handles, so that a person's events come together.

        A person who does not fit comes in several pieces, one after the other, in ingest order; what the
        duplicate rule looks at (some 150 bytes an event) is then held for all of that person's events.

        Args:
            memory_bytes: that the blocks and events of a piece may take, at the peak of reading it. What it
                takes to look for them comes on top: a few row groups, and of each file the runs that the
                piece reaches over, a megabyte each at most.

        Raises:
            see `events`.
        """
        known = self._reader.read(read)
        wanted = Selection(read.event_type, read.facet, refs, ref_range, read.days)
        pace = Pace(memory_bytes)
        cells = self._cells(files, [wanted], pace)
        total, done = sum(cell.events for cell in cells), 0
        for cell in self._fitting(files, [wanted], cells, pace):
            alone = cell.events > pace.most_events
            span = _within(cell, ref_range)
            pieces = (
                (one.untagged() for one in self._person(files, known, wanted, cell, pace))
                if alone
                else iter((self.events(files, read, refs=refs, ref_range=span, tagged=False),))
            )
            for piece in pieces:
                pace.note(piece.stored, piece.peak_bytes)
                if piece.stored:
                    yield piece
            done += cell.events
            progress(done, total)

    def ranges(
        self, files: Sequence[DataFile], reads: Sequence[EventRead], span: HandleRange, pace: Pace
    ) -> Iterator[HandleRange]:
        """Ranges of handles whose events fit, of several reads together; a person is never cut.

        Args:
            pace: note what a range took before the next is asked for.
        """
        wanted = [
            Selection(one.event_type, one.facet, ref_range=span, days=one.days, arrival=one.arrival)
            for one in reads
        ]
        cells = self._cells(files, wanted, pace)
        found = False
        for cell in self._fitting(files, wanted, cells, pace):
            found = True
            yield _within(cell, span)
        if not found:
            yield span

    def stored(
        self,
        files: Sequence[DataFile],
        read: EventRead,
        bits: int,
        ref_range: HandleRange | None = None,
    ) -> pl.DataFrame:
        """`bucket`, `stored`: events per bucket, counted from block columns without opening anything."""
        columns = ("subject_ref", "event_count")
        rows = block_rows(self._table, files, read, ref_range=ref_range, columns=columns)
        return rows.group_by(bucket_of(pl.col("subject_ref"), bits).alias("bucket")).agg(
            pl.col("event_count").cast(pl.Int64).sum().alias("stored")
        )

    # -- pieces ------------------------------------------------------------------------------------

    def _cells(self, files: Sequence[DataFile], wanted: Sequence[Selection], pace: Pace) -> list[Cell]:
        """Events per leading bits of the handles; the pace gets a first guess of what one takes."""
        prefix = bucket_of(pl.col("subject_ref"), 8 * BUCKET_PREFIX_BYTES)
        counts = self._counted(files, wanted, prefix)
        cells = [
            Cell(
                at.to_bytes(BUCKET_PREFIX_BYTES, "big"),
                (at + 1).to_bytes(BUCKET_PREFIX_BYTES, "big") if at < 0xFFFF else None,
                events,
            )
            for at, events in counts.iter_rows()
        ]
        there = [file for file in files if any(one.may_be_in(file) for one in wanted)]
        pace.guess(there, sum(cell.events for cell in cells))
        return cells

    def _fitting(
        self, files: Sequence[DataFile], wanted: Sequence[Selection], cells: Sequence[Cell], pace: Pace
    ) -> Iterator[Cell]:
        """Ranges that fit; where one prefix does not, ranges of its people, and who does not fit alone."""
        for cell in packed(cells, pace):
            if cell.events <= pace.most_events:
                yield cell
                continue
            inside = [evolve(one, ref_range=_within(cell, one.ref_range)) for one in wanted]
            people = self._counted(files, inside, pl.col("subject_ref"))
            yield from packed([Cell(ref, ref + b"\0", count) for ref, count in people.iter_rows()], pace)

    def _counted(self, files: Sequence[DataFile], wanted: Sequence[Selection], by: pl.Expr) -> pl.DataFrame:
        """(value, events) in order, counted from two clear columns a part at a time."""
        parts = [selected(self._table, files, one, ("subject_ref", "event_count")) for one in wanted]
        scans = [scan for scan in parts if scan is not None]
        if not scans:
            return pl.DataFrame(schema={"by": pl.UInt32(), "events": pl.Int64()})
        grouped = pl.concat(scans).group_by(by.alias("by")).agg(pl.col("event_count").cast(pl.Int64).sum())
        return collected(grouped, engine="streaming").sort("by")

    def _person(
        self, files: Sequence[DataFile], known: Read, wanted: Selection, cell: Cell, pace: Pace
    ) -> Iterator[Events]:
        """One person's events, some blocks at a time; settled over all of them beforehand."""
        mine = evolve(wanted, refs=[cell.low], ref_range=None, days=None)
        blocks = ordered_rows(
            self._table, files, mine, ("event_count", "occurred_from", "occurred_to", "run", *INGEST_ORDER)
        )
        bounds = cuts(blocks.get_column("event_count").to_list(), pace.most_events)
        spans = [blocks.slice(a, b - a) for a, b in pairwise(bounds)]
        tags = [
            self._opened(files, mine, some, known.tags_alone()).frame.select(
                "_tag", "_rev", "ingest_day", pl.col("_order") + begin
            )
            for begin, some in zip(bounds, spans, strict=False)
        ]
        # Whoever asks for some handles asks for these alone, as in `events`.
        winners = self._rivals.winners(
            files, known, mine, blocks, pl.concat(tags), alone=wanted.refs is not None
        ).select("_at", "_first_day")
        sizes = [one.height for one in tags]
        del tags
        start = 0
        for some, size in zip(spans, sizes, strict=True):
            begin, end = winners.get_column("_at").search_sorted(pl.Series([start, start + size])).to_list()
            won = winners.slice(begin, end - begin)
            opened = self._opened(files, mine, some, known)
            kept = opened.frame[won.get_column("_at") - start].with_columns(won.get_column("_first_day"))
            start += size
            stored = opened.frame
            if wanted.days is not None:
                kept, stored = of_days(kept, wanted.days), of_days(stored, wanted.days)
            yield _events(opened, kept, stored.height)

    def _opened(
        self, files: Sequence[DataFile], mine: Selection, blocks: pl.DataFrame, read: Read
    ) -> OpenedEvents:
        days = blocks.get_column("ingested_at").dt.date()
        span: Days = (days.min(), days.max())  # type: ignore[assignment]
        chosen = evolve(
            mine,
            block_ids=blocks.get_column("block_id").to_list(),
            runs=blocks.get_column("run").drop_nulls().unique().to_list(),
            ingest_days=span,
        )
        found = stored_blocks(self._table, files, chosen, read.columns)
        return self._reader.open(in_ingest_order(found.rows), found.runs, read)


def _events(opened: OpenedEvents, kept: pl.DataFrame, stored: int) -> Events:
    return Events(
        kept.drop("_order"),
        stored,
        stored - kept.height,
        opened.shredded,
        opened.held,
        opened.shredded_refs,
        opened.peak_bytes,
    )


def _within(cell: Cell, outer: HandleRange | None) -> HandleRange:
    """The handles that are in both."""
    low, high = outer or EVERYBODY
    highs = [one for one in (high, cell.high) if one is not None]
    return max(low, cell.low), min(highs) if highs else None
