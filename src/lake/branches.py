"""Snapshots on a branch of a table whose rows are replaced as a whole: each of its own files alone.

What is built waits on the branch `builds`, and `main`, which every other engine reads, stays where it is
until something is put there. A snapshot that is put has no parent and no file of another one, so nothing of
what stood on the branch before comes along. Whoever puts one has looked at both branches: a commit demands
that they are where they were seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from attrs import frozen
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import MAIN_BRANCH, SnapshotRefType
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update import (
    AddSchemaUpdate,
    AssertLastAssignedFieldId,
    AssertRefSnapshotId,
    RemoveSnapshotsUpdate,
    SetCurrentSchemaUpdate,
    SetSnapshotRefUpdate,
    TableUpdate,
    ValidatableTableRequirement,
)
from pyiceberg.table.update.snapshot import _FastAppendFiles
from pyiceberg.types import NestedField

BUILDS: Final = "builds"
"""The branch of what nobody has published yet."""


@frozen
class Branched:
    """A snapshot that is to be the head of a branch.

    Attributes:
        files: all that it holds; they may be those of another snapshot of this table.
        schema: that they were written with, as `evolved` gives it; on `main` it becomes the table's.
        forget: snapshots that go in the same commit.
    """

    files: Sequence[DataFile]
    summary: Mapping[str, str]
    schema: Schema
    forget: Sequence[int] = ()


class _AsSeen(ValidatableTableRequirement):
    """No snapshot was added and no branch was moved meanwhile; for a SQL catalog, which checks it itself."""

    type: Literal["shredlake-as-seen"] = "shredlake-as-seen"
    sequence: int
    heads: dict[str, int | None]

    def validate(self, base_metadata: TableMetadata | None) -> None:  # type: ignore[override]
        """See there."""
        if base_metadata is None or base_metadata.next_sequence_number() != self.sequence:
            raise CommitFailedException("another process has added a snapshot")
        if _heads(base_metadata) != self.heads:
            raise CommitFailedException("another process has moved a branch")


def staged_on(
    catalog: Catalog,
    branch: str,
    choose: Callable[[TableMetadata], Branched],
    transaction: Transaction,
    metadata: TableMetadata,
) -> int:
    """Stages what is chosen by the newest metadata; returns the id of its snapshot."""
    wanted = choose(metadata)
    was, schema = metadata.current_schema_id, wanted.schema
    if schema.schema_id != was:
        known = any(one.schema_id == schema.schema_id for one in metadata.schemas)
        fresh: tuple[TableUpdate, ...] = () if known else (AddSchemaUpdate(schema_=schema),)
        transaction._stage((*fresh, SetCurrentSchemaUpdate(schema_id=schema.schema_id)))
    producer = _FastAppendFiles(
        operation=Operation.OVERWRITE if wanted.files else Operation.DELETE,
        transaction=transaction,
        io=transaction._table.io,
        branch=None,
        snapshot_properties=dict(wanted.summary),
    )
    producer._parent_snapshot_id = None  # pyiceberg takes the head of `main` where no branch is named
    for file in wanted.files:
        producer.append_data_file(file)
    producer.commit()
    updates: list[TableUpdate] = [_branch_update(branch, producer.snapshot_id)]
    if branch != MAIN_BRANCH and schema.schema_id != was:
        updates.append(SetCurrentSchemaUpdate(schema_id=was))
    if wanted.forget:
        updates.append(RemoveSnapshotsUpdate.model_validate({"snapshot-ids": list(wanted.forget)}))
    transaction._stage(tuple(updates))
    transaction._requirements = _as_seen(catalog, metadata)
    return int(producer.snapshot_id)


def evolved(metadata: TableMetadata, wanted: Schema) -> Schema:
    """The wanted columns as the table knows them.

    A column keeps the id that one of its name and type ever had, any other gets a new one: a file of an
    older version of a view is never read as if it had a newer version's columns.
    """
    known: dict[tuple[str, str, bool], int] = {}
    for schema in metadata.schemas:
        for one in schema.fields:
            known.setdefault(_kind(one), one.field_id)
    fresh = itertools.count(metadata.last_column_id + 1)
    fields = [
        NestedField(known.get(_kind(one)) or next(fresh), one.name, one.field_type, required=one.required)
        for one in wanted.fields
    ]
    for schema in metadata.schemas:
        if _columns(schema.fields) == _columns(fields):
            return schema
    return Schema(*fields, schema_id=max(one.schema_id for one in metadata.schemas) + 1)


def same_columns(one: Schema, other: Schema) -> bool:
    """Whether files of one can be read as files of the other: ids, names and types agree."""
    return _columns(one.fields) == _columns(other.fields)


def _kind(field: NestedField) -> tuple[str, str, bool]:
    return field.name, str(field.field_type), field.required


def _columns(fields: Sequence[NestedField]) -> list[tuple[int, tuple[str, str, bool]]]:
    return [(one.field_id, _kind(one)) for one in fields]


def _heads(metadata: TableMetadata) -> dict[str, int | None]:
    refs = metadata.refs
    return {name: refs[name].snapshot_id if name in refs else None for name in (MAIN_BRANCH, BUILDS)}


def _as_seen(catalog: Catalog, metadata: TableMetadata) -> tuple[Any, ...]:
    """Requirements: nobody has put a snapshot on one of the branches since this metadata."""
    heads = _heads(metadata)
    if isinstance(catalog, SqlCatalog):
        return (_AsSeen(sequence=metadata.next_sequence_number(), heads=heads),)
    return (
        *(AssertRefSnapshotId.model_validate({"ref": n, "snapshot-id": at}) for n, at in heads.items()),
        AssertLastAssignedFieldId.model_validate({"last-assigned-field-id": metadata.last_column_id}),
    )


def _branch_update(name: str, snapshot_id: int) -> SetSnapshotRefUpdate:
    return SetSnapshotRefUpdate.model_validate(
        {"ref-name": name, "type": SnapshotRefType.BRANCH, "snapshot-id": snapshot_id}
    )
