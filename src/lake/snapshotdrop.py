"""Snapshots of a table are dropped together with the rows that they alone hold.

Expiry forgets a snapshot and leaves its files to a later sweep. Here the rows go at once, and go first: a
process that is killed in between leaves a snapshot without its files, which the next try forgets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from typing import Final

from pyiceberg.table.metadata import TableMetadata

from keys import Effects
from lake.branches import BUILDS, Branched
from lake.objects import ObjectStore, StoredObject, local_path
from lake.offsets import BATCH, KIND
from lake.table import IcebergTable, summary_of

EMPTIED: Final = "emptied"
"""The kind of a snapshot that took the rows of a dropped head away."""


def drop_snapshots(
    table: IcebergTable, objects: ObjectStore, snapshot_ids: Collection[int], effects: Effects
) -> list[StoredObject]:
    """Deletes the data files that only these snapshots refer to, then forgets them; repeating it is success.

    The head of a branch cannot be forgotten, so an empty one is committed in its place. Files that another
    snapshot refers to stay. Returns the deleted files, every version of each.

    Raises:
        StorageFailed: the store cannot be listed, or keeps something.
        CommitConflict: see `IcebergTable.commit`.
    """
    there = {s.snapshot_id for s in table.history()}.intersection(snapshot_ids)
    if not there:
        return []
    head = table.snapshot()
    if head is not None and head.snapshot_id in there:
        _empty(table, head.snapshot_id)
    _empty_builds(table, there)
    kept = {
        local_path(file.file_path)
        for one in table.history()
        if one.snapshot_id not in there
        for file in table.files(one.snapshot_id)
    }
    doomed = {local_path(file.file_path) for one in there for file in table.files(one)} - kept
    found = [one for one in objects.objects(table.load().location()) if local_path(one.location) in doomed]
    if found:
        with effects(f"drop:{table.identifier}"):
            objects.delete(found)
    table.expire(lambda metadata: [s.snapshot_id for s in metadata.snapshots if s.snapshot_id in there])
    return found


def _empty(table: IcebergTable, snapshot_id: int) -> None:
    """Takes all rows of a head away, unless somebody has committed behind it."""

    def guard(metadata: TableMetadata) -> Mapping[str, str]:
        if metadata.current_snapshot_id != snapshot_id:
            raise _HeadMoved
        return {KIND: EMPTIED, BATCH: str(snapshot_id)}

    try:
        table.commit([], guard, removes=table.files(snapshot_id))
    except _HeadMoved:
        return


def _empty_builds(table: IcebergTable, snapshot_ids: Collection[int]) -> None:
    """Lets the branch of builds name an empty snapshot where it names one of these."""

    def choose(metadata: TableMetadata) -> Branched:
        named = {ref.snapshot_id for ref in metadata.refs.values()}
        newest = metadata.refs.get(BUILDS)
        if newest is None or newest.snapshot_id not in snapshot_ids:
            raise _HeadMoved
        emptied = [s.snapshot_id for s in metadata.snapshots if summary_of(s).get(KIND) == EMPTIED]
        summary = {KIND: EMPTIED, BATCH: str(newest.snapshot_id)}
        return Branched([], summary, metadata.schema(), [one for one in emptied if one not in named])

    with contextlib.suppress(_HeadMoved):
        table.put(BUILDS, choose)


class _HeadMoved(Exception):
    """Another commit was first, so that the head is no longer the dropped one."""
