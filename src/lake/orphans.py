"""Files of a table's folder that no kept snapshot refers to."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata

from lake.manifests import entries_of, manifests_of
from lake.objects import ObjectStore, StoredObject, local_path, storage_errors
from lake.offsets import settled_of
from lake.table import IcebergTable, beside, summary_of


def orphans_of(
    table: IcebergTable, objects: ObjectStore, forgotten: Collection[int] = (), commits: int = 0
) -> list[StoredObject]:
    """What nothing refers to, files of commits under way included.

    Metadata files as well: a SQL catalog writes one before it asks whether the commit wins, and what
    is deleted from a bucket stays as an older version. Those ahead of the head are left alone: a
    commit under way may make one the head.

    Args:
        forgotten: snapshots that will have expired.
        commits: that will have come; the table's log lets its oldest metadata files go for them.

    Raises:
        StorageFailed, CatalogUnavailable: it could not be looked at.
    """
    # Listed before the metadata is read: what is committed in between is referred to.
    listed = list(objects.objects(table.load().location()))
    loaded = table.load()
    head = StoredObject(loaded.metadata_location, 0, datetime.now(UTC)).metadata_number
    found = [
        one
        for one in listed
        if one.is_data
        or (head is not None and one.metadata_number is not None and one.metadata_number <= head)
    ]
    let_go = {local_path(location) for location in _to_be_let_go(loaded.metadata, commits)}
    referenced = {local_path(location) for location in _referenced(loaded, forgotten)}
    # Who commits deletes what the log has let go; only a store with versions still has it then.
    kept = {path for path in referenced if path not in let_go}
    return [
        one
        for one in found
        if (path := local_path(one.location)) not in kept and (path not in let_go or one.has_versions)
    ]


def _to_be_let_go(metadata: TableMetadata, commits: int) -> list[str]:
    most = int(metadata.properties.get("write.metadata.previous-versions-max", "100"))
    over = len(metadata.metadata_log) + commits - most
    return [one.metadata_file for one in metadata.metadata_log[: max(0, over)]]


def _referenced(table: Table, forgotten: Collection[int]) -> set[str]:
    found = {table.metadata_location, *(one.metadata_file for one in table.metadata.metadata_log)}
    with storage_errors():
        for snapshot in table.metadata.snapshots:
            if snapshot.snapshot_id in forgotten:
                continue
            found.add(snapshot.manifest_list)
            found.update(f"{beside(table)}/{one.name}" for one in settled_of(summary_of(snapshot)))
            for manifest in manifests_of(table.io, snapshot):
                if manifest.manifest_path not in found:
                    found.add(manifest.manifest_path)
                    found.update(one.data_file.file_path for one in entries_of(table.io, manifest))
    return found
