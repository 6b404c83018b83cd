"""What was ingested after one snapshot and up to another, as data files.

The live files of a snapshot say by their names how old their rows are (`lake.levels`), so one look at the
later snapshot is the usual answer, whatever was expired in between. Where upkeep has mixed old and new in a
file since, a snapshot from before that may still be kept: the way is then made in steps, each of which is
told from the live files of its end.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyiceberg.manifest import DataFile
from pyiceberg.table.snapshots import Snapshot

from lake.errors import SnapshotGone
from lake.levels import added_after, mixed_at
from lake.merging import day_of
from lake.table import IcebergTable


def added_between(table: IcebergTable, after: int, until: int, after_sequence: int = 0) -> list[DataFile]:
    """Data files with just what ingest added after one snapshot and up to another.

    A closed day that was rewritten meanwhile comes as it is now: sorted, and settled within itself.

    Args:
        after_sequence: the sequence number of the one, for when it has expired; 0 where nobody knows it.

    Raises:
        SnapshotGone: one of them is not known any more, or no kept snapshot tells old from new.
    """
    kept = {one.snapshot_id: one for one in table.history()}
    if until not in kept:
        raise SnapshotGone(f"snapshot {until} was expired, or never was")
    low = after_sequence or _sequence_of(table, kept, after, until)
    high = kept[until].sequence_number or 0
    if low > high:
        raise SnapshotGone(f"snapshot {after} is not older than {until}", next_step="Swap the two.")
    steps = sorted(
        (one for one in kept.values() if low < (one.sequence_number or 0) <= high),
        key=lambda one: one.sequence_number or 0,
    )
    found: list[DataFile] = []
    while steps:
        taken, files = _farthest(table, steps, low)
        if not taken:
            raise _mixed(table, after, steps[0], low)
        found.extend(files)
        low = steps[taken - 1].sequence_number or 0
        steps = steps[taken:]
    return found


def _farthest(table: IcebergTable, steps: Sequence[Snapshot], low: int) -> tuple[int, list[DataFile]]:
    """(how many steps one look covers, what came in them); the whole way is tried first."""
    whole = added_after(table.sequenced_files(steps[-1].snapshot_id), low)
    if whole is not None:
        return len(steps), whole
    taken, found = 0, []
    for number, step in enumerate(steps[:-1], start=1):
        files = added_after(table.sequenced_files(step.snapshot_id), low)
        if files is None:
            break
        taken, found = number, files
    return taken, found


def _sequence_of(table: IcebergTable, kept: dict[int, Snapshot], after: int, until: int) -> int:
    """The place of a snapshot, also of an expired one as long as a file that it added is still live."""
    if after in kept:
        return kept[after].sequence_number or 0
    found = table.sequence_of(after, kept[until])
    if found is None:
        raise SnapshotGone(
            f"snapshot {after} was expired, or never was, and no live file says when it was",
            next_step="Read all of the later snapshot instead (a view is rebuilt); a tag keeps a snapshot.",
        )
    return found


def _mixed(table: IcebergTable, after: int, step: Snapshot, low: int) -> SnapshotGone:
    files = mixed_at(table.sequenced_files(step.snapshot_id), low)
    days = ", ".join(sorted({day_of(file).isoformat() for file in files}))
    return SnapshotGone(
        f"upkeep put rows from before and after snapshot {after} into the same files of {days}, and the"
        " snapshots from before that were expired",
        next_step="Read all of the later snapshot instead (a view is rebuilt), or go on from a snapshot that"
        " `shredlake lake snapshots` lists; a tag keeps one, and merging stops at it.",
    )
