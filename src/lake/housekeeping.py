"""Tags, expiry, and the sweep of files that nothing refers to; no row is read or written."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final

from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import SnapshotRefType

from lake.lakehouse import Lake
from lake.objects import ObjectStore, StoredObject, local_path, storage_errors
from lake.offsets import settled_of
from lake.resting import NO_REST, Rests
from lake.retention import TagChanges, expendable, ladder
from lake.table import IcebergTable, beside, summary_of

KEEP_SNAPSHOTS: Final = 100
SWEEP_GRACE_SECONDS: Final = 3600
_SWEPT_AT_ONCE: Final = 256


class Housekeeping:
    """Keeps the events table's metadata small and its folder clean; safe beside ingest."""

    def __init__(self, lake: Lake) -> None:
        self._table: IcebergTable = lake.events
        self._effects = lake.effects
        self._objects: ObjectStore = lake.warehouse.objects

    def expire(self, keep: int = KEEP_SNAPSHOTS, keep_seconds: float = 0.0) -> list[int]:
        """Forgets snapshots that no tag names and that are neither among the newest nor younger."""

        return self._table.expire(lambda metadata: self._expendable(metadata, keep, keep_seconds))

    def expendable(self, keep: int = KEEP_SNAPSHOTS, keep_seconds: float = 0.0) -> list[int]:
        """What `expire` would forget now."""
        return self._expendable(self._table.metadata(), keep, keep_seconds)

    def _expendable(self, metadata: TableMetadata, keep: int, keep_seconds: float) -> list[int]:
        tagged = [ref.snapshot_id for ref in metadata.refs.values()]
        times = [(s.snapshot_id, s.timestamp_ms) for s in self._table.history(metadata)]
        return expendable(times, tagged, keep, (time.time() - keep_seconds) * 1000)

    def climb(self, now: datetime) -> TagChanges:
        """Brings the ladder of tags up to a moment."""

        def choose(metadata: TableMetadata) -> TagChanges:
            tags = {
                name: ref.snapshot_id
                for name, ref in metadata.refs.items()
                if ref.snapshot_ref_type == SnapshotRefType.TAG
            }
            return ladder([(s.snapshot_id, s.timestamp_ms) for s in metadata.snapshots], tags, now)

        return self._table.change_tags(choose)

    def sweep(
        self,
        grace_seconds: float = SWEEP_GRACE_SECONDS,
        dry_run: bool = False,
        rests: Rests = NO_REST,
    ) -> list[StoredObject]:
        """Deletes files of the table's folder that no kept snapshot refers to and that are old enough.

        What is gone already is no error.

        Args:
            rests: taken behind the listing and behind each batch of files.

        Raises:
            StorageFailed: the store cannot be listed, or keeps something.
        """
        limit = datetime.now(UTC) - timedelta(seconds=grace_seconds)
        orphans = [one for one in self.orphans() if one.modified_at <= limit]
        if not dry_run:
            rests.rest()
            for start in range(0, len(orphans), _SWEPT_AT_ONCE):
                with self._effects("sweep"):
                    self._objects.delete(orphans[start : start + _SWEPT_AT_ONCE])
                rests.rest()
        return orphans

    def orphans(self) -> list[StoredObject]:
        """Files that no kept snapshot refers to, those of commits under way included.

        Metadata files as well: a SQL catalog writes one before it asks whether the commit wins, and what
        is deleted from a bucket stays as an older version. Those ahead of the head are left alone: a
        commit under way may make one the head.
        """
        # Listed before the metadata is read: what is committed in between is referred to.
        listed = list(self._objects.objects(self._table.load().location()))
        table = self._table.load()
        head = StoredObject(table.metadata_location, 0, datetime.now(UTC)).metadata_number
        found = [
            one
            for one in listed
            if one.is_data
            or (head is not None and one.metadata_number is not None and one.metadata_number <= head)
        ]
        referenced = {local_path(location) for location in self._referenced(table)}
        return [one for one in found if local_path(one.location) not in referenced]

    def _referenced(self, table: Table) -> set[str]:
        found = {table.metadata_location, *(one.metadata_file for one in table.metadata.metadata_log)}
        with storage_errors():
            for snapshot in table.metadata.snapshots:
                found.add(snapshot.manifest_list)
                found.update(f"{beside(table)}/{one.name}" for one in settled_of(summary_of(snapshot)))
                for manifest in snapshot.manifests(table.io):
                    if manifest.manifest_path not in found:
                        found.add(manifest.manifest_path)
                        entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
                        found.update(entry.data_file.file_path for entry in entries)
        return found
