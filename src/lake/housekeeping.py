"""Tags, expiry, and the sweep of files that nothing refers to; no row is read or written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Final

from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import SnapshotRefType

from lake.inputs import Inputs
from lake.lakehouse import Lake
from lake.moments import is_rewrite
from lake.objects import ObjectStore, StoredObject, local_path
from lake.orphans import orphans_of
from lake.resting import NO_REST, Rests
from lake.retention import TagChanges, expendable, ladder
from lake.table import IcebergTable
from lake.upkeeprules import KEEP_SNAPSHOTS, LEAST_GRACE_SECONDS, SWEEP_GRACE_SECONDS
from lake.warehouse import VIEWS_NAMESPACE, Warehouse

_SWEPT_AT_ONCE: Final = 256
_YOUNG_SECONDS: Final = LEAST_GRACE_SECONDS / 2


class Housekeeping:
    """Keeps the events table's metadata small and the folders of all tables clean; safe beside writers."""

    def __init__(self, lake: Lake) -> None:
        self._table: IcebergTable = lake.events
        self._inputs = Inputs(lake.events)
        self._effects = lake.effects
        self._warehouse: Warehouse = lake.warehouse
        self._objects: ObjectStore = lake.warehouse.objects

    def expire(self, keep: int = KEEP_SNAPSHOTS, keep_seconds: float = 0.0) -> list[int]:
        """Forgets snapshots that no tag names and that are neither among the newest nor younger.

        Of the events alone: what a view's table held is what was reported, and stays.
        """
        return self._table.expire(lambda metadata: self.expendable_of(metadata, keep, keep_seconds))

    def expendable(self, keep: int = KEEP_SNAPSHOTS, keep_seconds: float = 0.0) -> list[int]:
        """What `expire` would forget now."""
        return self.expendable_of(self._table.metadata(), keep, keep_seconds)

    def expendable_of(
        self,
        metadata: TableMetadata,
        keep: int,
        keep_seconds: float,
        tags: Mapping[str, int] | None = None,
        coming: int = 0,
    ) -> list[int]:
        """What would be forgotten of this metadata.

        Args:
            tags: that there will be; default: those that there are.
            coming: commits that come before; each brings a snapshot, with an id below 0 here.
        """
        named = tags or {name: ref.snapshot_id for name, ref in metadata.refs.items()}
        now_ms = time.time() * 1000
        fresh = [(-number, int(now_ms) - 1) for number in range(coming, 0, -1)]
        times = [(s.snapshot_id, s.timestamp_ms) for s in self._table.history(metadata)]
        return expendable([*fresh, *times], named.values(), keep, now_ms - keep_seconds * 1000)

    def forget_rewritten(self) -> list[int]:
        """Forgets snapshots that show what the one before them shows: what erasures rewrote in between.

        As of their moments the one before is the answer, so nothing is lost. Only where the files that
        nothing refers to then are so young that no sweep takes them for a while: somebody may be reading
        them. Returns the ids.
        """
        return self._table.expire(self._rewritten)

    def _rewritten(self, metadata: TableMetadata) -> list[int]:
        named = {ref.snapshot_id for ref in metadata.refs.values()}
        kept = sorted(metadata.snapshots, key=lambda one: one.sequence_number or 0)
        files = {
            one.snapshot_id: {local_path(file.file_path) for file, _ in self._table.sequenced_of(one)}
            for one in kept
        }
        doubles = {
            one.snapshot_id
            for before, one in pairwise(kept)
            if one.snapshot_id not in named and is_rewrite(one, before)
        }
        if not doubles:
            return []
        age_limit = datetime.now(UTC) - timedelta(seconds=_YOUNG_SECONDS)
        below = f"{self._table.load().location()}/data"
        listed = self._objects.objects(below)
        young = {local_path(one.location) for one in listed if one.modified_at > age_limit}
        gone: list[int] = []
        for one in kept:
            if one.snapshot_id in doubles:
                mine = files.pop(one.snapshot_id)
                if mine - young <= set().union(*files.values()):
                    gone.append(one.snapshot_id)
                else:
                    files[one.snapshot_id] = mine
        return gone

    def climb(self, now: datetime) -> TagChanges:
        """Brings the ladder of tags up to a moment."""
        return self._table.change_tags(lambda metadata: self.tag_changes(metadata, now))

    def tag_changes(self, metadata: TableMetadata, now: datetime) -> TagChanges:
        """What `climb` would do."""
        tags = {
            name: ref.snapshot_id
            for name, ref in metadata.refs.items()
            if ref.snapshot_ref_type == SnapshotRefType.TAG
        }
        rungs = ladder([(s.snapshot_id, s.timestamp_ms) for s in metadata.snapshots], tags, now)
        inputs = self._inputs.forward(metadata)
        return TagChanges(rungs.tags | inputs.tags, tuple(sorted({*rungs.remove, *inputs.remove})))

    def forward_inputs(self) -> TagChanges:
        """Lets tags of inputs go on to the head, where it tells them; see `lake.inputs`."""
        return self._table.change_tags(self._inputs.forward)

    def sweep(
        self,
        grace_seconds: float = SWEEP_GRACE_SECONDS,
        dry_run: bool = False,
        rests: Rests = NO_REST,
    ) -> list[StoredObject]:
        """Deletes files below the tables that no kept snapshot refers to and that are old enough.

        Of the events and of every view. What is gone already is no error.

        Args:
            grace_seconds: longer than any writer takes from a file to the commit that names it; with
                less, nobody may be writing.
            rests: taken behind the listing and behind each batch of files.

        Raises:
            StorageFailed: the store cannot be listed, or keeps something.
        """
        limit = datetime.now(UTC) - timedelta(seconds=grace_seconds)
        views = self._warehouse.tables(VIEWS_NAMESPACE)
        found = [one for table in (self._table, *views) for one in orphans_of(table, self._objects)]
        orphans = [one for one in found if one.modified_at <= limit]
        if not dry_run:
            rests.rest()
            for start in range(0, len(orphans), _SWEPT_AT_ONCE):
                with self._effects("sweep"):
                    self._objects.delete(orphans[start : start + _SWEPT_AT_ONCE])
                rests.rest()
        return orphans

    def sweep_to_come(self, grace_seconds: float, forgotten: list[int], commits: int) -> list[StoredObject]:
        """What a sweep would delete once these snapshots have expired and so many commits have come."""
        limit = datetime.now(UTC) - timedelta(seconds=grace_seconds)
        found = orphans_of(self._table, self._objects, set(forgotten), commits)
        views = self._warehouse.tables(VIEWS_NAMESPACE)
        found += [one for table in views for one in orphans_of(table, self._objects)]
        return [one for one in found if one.modified_at <= limit]

    def orphans(self) -> list[StoredObject]:
        """Files of the events' table that nothing refers to; see `orphans_of`."""
        return orphans_of(self._table, self._objects)
