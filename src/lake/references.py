"""What must still be true of snapshots and their names when a change of them lands.

An update of pyiceberg is applied to whatever head the catalog has by then. Forgetting a snapshot takes
away every tag on it, also one that was set since the snapshot was chosen: a build's pinned input.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import MAIN_BRANCH, SnapshotRefType
from pyiceberg.table.update import AssertRefSnapshotId, SetSnapshotRefUpdate, ValidatableTableRequirement


class _Kept(ValidatableTableRequirement):
    """All of these snapshots are there."""

    type: Literal["shredlake-kept"] = "shredlake-kept"
    snapshot_ids: list[int]

    def validate(self, base_metadata: TableMetadata | None) -> None:  # type: ignore[override]
        """See there."""
        there = {one.snapshot_id for one in base_metadata.snapshots} if base_metadata else set()
        if not there.issuperset(self.snapshot_ids):
            raise CommitFailedException("another process has forgotten one of the snapshots")


class _Unnamed(_Kept):
    """They are there, and nothing names one of them."""

    def validate(self, base_metadata: TableMetadata | None) -> None:  # type: ignore[override]
        """See there."""
        super().validate(base_metadata)
        refs = base_metadata.refs.values() if base_metadata else ()
        if not {ref.snapshot_id for ref in refs}.isdisjoint(self.snapshot_ids):
            raise CommitFailedException("another process has named one of the snapshots")


def kept(catalog: Catalog, snapshot_ids: Collection[int]) -> tuple[Any, ...]:
    """Requirements: these snapshots are there. A REST server sees to that itself."""
    return (_Kept(snapshot_ids=list(snapshot_ids)),) if isinstance(catalog, SqlCatalog) else ()


def unnamed(catalog: Catalog, seen: TableMetadata, snapshot_ids: Collection[int]) -> tuple[Any, ...]:
    """Requirements: these snapshots are there, and have no name that was not `seen`.

    A SQL catalog checks ours in its own compare-and-set. REST knows requirements on names that exist: there
    a tag that was moved is noticed, a fresh one of the same moment is not (docs/stores.md).
    """
    if isinstance(catalog, SqlCatalog):
        return (_Unnamed(snapshot_ids=list(snapshot_ids)),)
    return tuple(
        AssertRefSnapshotId.model_validate({"ref": name, "snapshot-id": ref.snapshot_id})
        for name, ref in seen.refs.items()
        if name != MAIN_BRANCH
    )


def sequences_of(metadata: TableMetadata, snapshot_ids: Collection[int]) -> list[int]:
    """The sequence numbers of those snapshots that are there."""
    found = map(metadata.snapshot_by_id, snapshot_ids)
    return [one.sequence_number or 0 for one in found if one is not None]


def tag_update(name: str, snapshot_id: int) -> SetSnapshotRefUpdate:
    """Names a snapshot."""
    return SetSnapshotRefUpdate.model_validate(
        {"ref-name": name, "type": SnapshotRefType.TAG, "snapshot-id": snapshot_id}
    )
