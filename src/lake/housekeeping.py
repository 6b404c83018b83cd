"""Tags, expiry, and the sweep of files that nothing refers to; no row is read or written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import SnapshotRefType

from lake.lakehouse import Lake
from lake.objects import ObjectStore, StoredObject
from lake.orphans import orphans_of
from lake.resting import NO_REST, Rests
from lake.retention import TagChanges, expendable, ladder
from lake.table import IcebergTable
from lake.upkeeprules import KEEP_SNAPSHOTS, SWEEP_GRACE_SECONDS
from lake.warehouse import VIEWS_NAMESPACE, Warehouse

_SWEPT_AT_ONCE: Final = 256


class Housekeeping:
    """Keeps the events table's metadata small and the folders of all tables clean; safe beside writers."""

    def __init__(self, lake: Lake) -> None:
        self._table: IcebergTable = lake.events
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
        return ladder([(s.snapshot_id, s.timestamp_ms) for s in metadata.snapshots], tags, now)

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
