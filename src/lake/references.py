"""What must still be true of snapshots and their names when a change of them lands.

An update of pyiceberg is applied to whatever head the catalog has by then. Forgetting a snapshot takes
away every tag on it, also one that was set since the snapshot was chosen: a build's pinned input
(docs/adr/0031).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, Literal

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import MAIN_BRANCH, SnapshotRefType
from pyiceberg.table.update import (
    AssertRefSnapshotId,
    RemoveSnapshotRefUpdate,
    SetSnapshotRefUpdate,
    TableUpdate,
    ValidatableTableRequirement,
)

from lake.errors import TagLost
from lake.moments import EXPIRED_PROPERTY
from lake.objects import storage_errors
from lake.retention import TagChanges

LAST_TAGGED: Final = "tagged"
"""The tag on the snapshot that was tagged last; on REST catalogs alone."""


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


class _Remembered(ValidatableTableRequirement):
    """Nobody has forgotten snapshots meanwhile: what is remembered of expired ones is as it was seen."""

    type: Literal["shredlake-remembered"] = "shredlake-remembered"
    text: str | None

    def validate(self, base_metadata: TableMetadata | None) -> None:  # type: ignore[override]
        """See there."""
        if base_metadata is not None and base_metadata.properties.get(EXPIRED_PROPERTY) != self.text:
            raise CommitFailedException("another process has forgotten snapshots")


def kept(catalog: Catalog, snapshot_ids: Collection[int]) -> tuple[Any, ...]:
    """Requirements: these snapshots are there. A REST server sees to that itself."""
    return (_Kept(snapshot_ids=list(snapshot_ids)),) if isinstance(catalog, SqlCatalog) else ()


def unnamed(catalog: Catalog, seen: TableMetadata, snapshot_ids: Collection[int]) -> tuple[Any, ...]:
    """Requirements: these snapshots are there, and have no name that was not `seen`.

    A SQL catalog checks ours in its own compare-and-set. REST knows requirements on names alone, and nobody
    knows the names that will be: so who names a snapshot moves `LAST_TAGGED` to it as well, and that one
    is asked for, also for not being there. What is remembered of expired ones cannot be asked for: of two
    expiries in one moment one may be remembered alone, and the commits of the other count as unknown.
    """
    if isinstance(catalog, SqlCatalog):
        remembered = _Remembered(text=seen.properties.get(EXPIRED_PROPERTY))
        return (_Unnamed(snapshot_ids=list(snapshot_ids)), remembered)
    names = {name: ref.snapshot_id for name, ref in seen.refs.items() if name != MAIN_BRANCH}
    return tuple(
        AssertRefSnapshotId.model_validate({"ref": name, "snapshot-id": snapshot_id})
        for name, snapshot_id in ({LAST_TAGGED: None} | names).items()
    )


def with_last_tagged(catalog: Catalog, seen: TableMetadata, changes: TagChanges) -> tuple[TableUpdate, ...]:
    """Updates that name snapshots and forget names, so that an expiry under way notices.

    `LAST_TAGGED` keeps no snapshot by itself: it goes with the last other tag on what it names.
    """
    updates: tuple[TableUpdate, ...] = (
        *(tag_update(name, snapshot_id) for name, snapshot_id in changes.tags.items()),
        *(RemoveSnapshotRefUpdate.model_validate({"ref-name": name}) for name in changes.remove),
    )
    if isinstance(catalog, SqlCatalog):
        return updates
    gone = {*changes.remove, MAIN_BRANCH, LAST_TAGGED}
    named = {name: ref.snapshot_id for name, ref in seen.refs.items() if name not in gone} | changes.tags
    was = seen.refs.get(LAST_TAGGED)
    if changes.tags:
        moved = [one for one in changes.tags.values() if was is None or one != was.snapshot_id]
        return (*updates, tag_update(LAST_TAGGED, (moved or list(changes.tags.values()))[0]))
    if was is not None and was.snapshot_id not in named.values():
        return (*updates, RemoveSnapshotRefUpdate.model_validate({"ref-name": LAST_TAGGED}))
    return updates


def check_names(table: Table, forgotten: Sequence[int]) -> None:
    """Whether a name went with these snapshots, by what the catalog applied the forgetting to.

    That is the newest old metadata that has them. They cannot be brought back: a catalog takes no snapshot
    that is older than its newest.

    Raises:
        TagLost: somebody had named one meanwhile.
    """
    for entry in reversed(table.metadata.metadata_log):
        with storage_errors():
            before = FromInputFile.table_metadata(table.io.new_input(entry.metadata_file))
        if before.snapshot_by_id(forgotten[0]) is None:
            continue
        lost = sum(ref.snapshot_id in forgotten for ref in before.refs.values())
        if lost:
            raise TagLost(f"{lost} tag(s) went with snapshots that were forgotten in the same moment")
        return


def sequences_of(metadata: TableMetadata, snapshot_ids: Collection[int]) -> list[int]:
    """The sequence numbers of those snapshots that are there."""
    found = map(metadata.snapshot_by_id, snapshot_ids)
    return [one.sequence_number or 0 for one in found if one is not None]


def tag_update(name: str, snapshot_id: int) -> SetSnapshotRefUpdate:
    """Names a snapshot."""
    return SetSnapshotRefUpdate.model_validate(
        {"ref-name": name, "type": SnapshotRefType.TAG, "snapshot-id": snapshot_id}
    )
