"""An Iceberg table with guarded commits and files written in one pass.

pyiceberg retries a commit by rebasing it unseen, and its metadata property copies everything at every
access. So one attempt here is exactly one compare-and-set: the guard looks at the newest head, the
snapshot is staged on it, and a commit whose answer was lost is looked up by its snapshot id.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from attrs import frozen
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io.pyarrow import (
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
    schema_to_pyarrow,
)
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestFile,
)
from pyiceberg.table import Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import (
    AssertTableUUID,
    RemoveSnapshotRefUpdate,
    RemoveSnapshotsUpdate,
    SetSnapshotRefUpdate,
    TableRequirement,
    TableUpdate,
    update_table_metadata,
)
from pyiceberg.typedef import Record

from keys import Effects
from lake.catalog import catalog_errors
from lake.errors import CommitConflict, SnapshotGone
from lake.objects import scan_parquet, storage_errors, storage_failed

MAX_ATTEMPTS: Final = 20
_FIRST_WAIT_SECONDS: Final = 0.02
Guard = Callable[[TableMetadata], Mapping[str, str]]
"""Looks at the newest head inside an attempt; returns the summary properties or raises to stop."""


@frozen
class Committed:
    """A snapshot that landed."""

    snapshot_id: int
    sequence_number: int
    committed_at_ms: int


class _MemoTransaction(Transaction):
    """A transaction whose metadata is computed once per staged update, not once per look."""

    _memo: tuple[int, TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        if not self._updates:
            return self._table.metadata
        if self._memo is None or self._memo[0] != len(self._updates):
            staged = update_table_metadata(self._table.metadata, self._updates)
            self._memo = (len(self._updates), staged)
        return self._memo[1]


class IcebergTable:
    """One table of a catalog.

    Args:
        catalog: where the table's head is kept.
        identifier: `namespace.name`.
        effects: the gate of durable effects; commits pass it as `commit:<identifier>`.
    """

    def __init__(self, catalog: Catalog, identifier: str, effects: Effects | None = None) -> None:
        self._catalog = catalog
        self.identifier = identifier
        self._effects = effects or Effects()

    # -- reading -----------------------------------------------------------------------------------

    def load(self) -> Table:
        """The table at its newest head. Raises `CatalogUnavailable`, `CatalogRefused`."""
        with storage_errors(), catalog_errors():
            return self._catalog.load_table(self.identifier)

    def metadata(self) -> TableMetadata:
        """The newest metadata."""
        return self.load().metadata

    def snapshot(self, snapshot_id: int | None = None) -> Snapshot | None:
        """A snapshot, the head where none is named; None while the table is empty.

        Raises:
            SnapshotGone: it was named and is not there.
        """
        metadata = self.metadata()
        if snapshot_id is None:
            return metadata.current_snapshot()
        found = metadata.snapshot_by_id(snapshot_id)
        if found is None:
            raise SnapshotGone(f"snapshot {snapshot_id} of {self.identifier} does not exist")
        return found

    def history(self, metadata: TableMetadata | None = None) -> list[Snapshot]:
        """Every kept snapshot, newest first.

        There is one branch, so sequence numbers order them; parents do not: expiry takes the name of an
        expired one out of its child, and older snapshots that a tag keeps would not be reached.
        """
        metadata = metadata or self.metadata()
        return sorted(metadata.snapshots, key=lambda s: s.sequence_number or 0, reverse=True)

    def files(self, snapshot_id: int | None = None) -> list[DataFile]:
        """Live data files of a snapshot."""
        return [file for file, _ in self.sequenced_files(snapshot_id)]

    def sequenced_files(self, snapshot_id: int | None = None) -> list[tuple[DataFile, int]]:
        """Live data files of a snapshot, each with the sequence number of the commit that added it."""
        snapshot = self.snapshot(snapshot_id)
        if snapshot is None:
            return []
        io = self.load().io
        with storage_errors():
            return [
                (entry.data_file, entry.sequence_number or 0)
                for manifest in snapshot.manifests(io)
                for entry in manifest.fetch_manifest_entry(io, discard_deleted=True)
            ]

    def sequence_of(self, snapshot_id: int, within: Snapshot) -> int | None:
        """The sequence number of a snapshot, by a later one's files; None where it added none of them."""
        io = self.load().io
        with storage_errors():
            for manifest in within.manifests(io):
                for entry in manifest.fetch_manifest_entry(io, discard_deleted=True):
                    if entry.snapshot_id == snapshot_id:
                        return entry.sequence_number
        return None

    def kept_files(self) -> list[DataFile]:
        """Data files of every kept snapshot, each once, as of one look at the metadata.

        One look, because upkeep beside it may expire a snapshot between two.
        """
        table = self.load()
        manifests: dict[str, ManifestFile] = {}
        with storage_errors():
            for snapshot in table.metadata.snapshots:
                manifests |= {one.manifest_path: one for one in snapshot.manifests(table.io)}
            found = {
                entry.data_file.file_path: entry.data_file
                for manifest in manifests.values()
                for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True)
            }
        return list(found.values())

    def scan(self, files: Iterable[DataFile]) -> pl.LazyFrame:
        """Rows of data files of this table."""
        return scan_parquet([one.file_path for one in files], self.load().io.properties)

    # -- writing -----------------------------------------------------------------------------------

    def write_file(
        self,
        frame: pl.DataFrame,
        *,
        partition: Record | None = None,
        folder: str = "",
        prefix: str = "",
        random: Collection[str] = (),
        bodies: Collection[str] = (),
        row_group_rows: int = 65_536,
    ) -> DataFile:
        """Writes one Parquet file of the table's schema; it is not part of the table before a commit.

        Args:
            frame: columns by name; cast to the table's types.
            prefix: what the file's name begins with.
            random: columns stored as they are; they hold ciphertext and the like.
            bodies: columns stored without a dictionary, because hardly a value comes twice.

        Raises:
            StorageFailed: the store refused.
        """
        table = self.load()
        schema = table.schema()
        arrow_schema = schema_to_pyarrow(schema)
        arrow = frame.select(arrow_schema.names).to_arrow().cast(arrow_schema)
        stats_plan = compute_statistics_plan(schema, table.metadata.properties)
        names = {f.field_id: f.name for f in schema.fields}
        kept = [names[i] for i, plan in stats_plan.items() if plan.mode.type.value != "none"]
        path = f"{table.location()}/data/{folder}{prefix}{uuid.uuid4().hex}.parquet"
        coded = [n for n in arrow_schema.names if n not in random and n not in bodies]
        with storage_errors(), self._effects("write-file"), table.io.new_output(path).create() as sink:
            writer = pq.ParquetWriter(
                pa.PythonFile(sink, mode="w"),
                arrow_schema,
                compression={n: "NONE" if n in random else "ZSTD" for n in arrow_schema.names},
                use_dictionary=coded,
                write_statistics=kept,
                store_schema=False,
            )
            writer.write_table(arrow, row_group_size=row_group_rows)
            writer.close()
        footer = writer.writer.metadata
        statistics = data_file_statistics_from_parquet_metadata(
            footer, stats_plan, parquet_path_to_id_mapping(schema)
        )
        return DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=path,
            file_format=FileFormat.PARQUET,
            partition=partition or Record(),
            file_size_in_bytes=len(table.io.new_input(path)),
            sort_order_id=None,
            spec_id=table.metadata.default_spec_id,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )

    def commit(
        self, adds: Sequence[DataFile], guard: Guard, removes: Sequence[DataFile] = (), tag: str | None = None
    ) -> Committed:
        """Adds and removes files in one snapshot.

        Args:
            guard: called inside every attempt with the newest metadata; its answer becomes the summary.
            tag: set on the new snapshot in the same commit.

        Raises:
            CommitConflict: other writers won every attempt.
            StorageFailed: the store refused; the table is as it was.
            Exception: whatever the guard raises.
        """

        def stage(transaction: _MemoTransaction, metadata: TableMetadata) -> int:
            update = transaction.update_snapshot(snapshot_properties=dict(guard(metadata)))
            producer: Any = update.overwrite() if removes else update.merge_append()
            for file in adds:
                producer.append_data_file(file)
            for file in removes:
                producer.delete_data_file(file)
            producer.commit()
            if tag is not None:
                reference = _tag_update(tag, producer.snapshot_id)
                transaction._stage((reference,))
            return int(producer.snapshot_id)

        return self._attempts(stage)

    def set_tags(self, tags: Mapping[str, int], remove: Collection[str] = ()) -> None:
        """Names snapshots, and forgets names, in one commit."""
        self._change(
            lambda _: (
                *(_tag_update(name, snapshot_id) for name, snapshot_id in tags.items()),
                *(RemoveSnapshotRefUpdate.model_validate({"ref-name": name}) for name in remove),
            )
        )

    def expire(self, choose: Callable[[TableMetadata], Sequence[int]]) -> list[int]:
        """Forgets the chosen snapshots; deletes no file. Returns the ids."""
        gone: list[int] = []

        def updates(metadata: TableMetadata) -> tuple[TableUpdate, ...]:
            gone[:] = choose(metadata)
            return (RemoveSnapshotsUpdate.model_validate({"snapshot-ids": gone}),) if gone else ()

        self._change(updates)
        return gone

    def rehearse_seconds(self) -> float:
        """How long an empty commit takes until it would be sent; leaves nothing behind.

        Raises:
            CatalogUnavailable, StorageFailed: see `load`, `commit`.
        """
        table = self.load()
        began = time.perf_counter()
        transaction = _MemoTransaction(table)
        with storage_errors():
            update: Any = transaction.update_snapshot()
            producer = update.merge_append()
            producer.commit()
            transaction.table_metadata.model_dump_json()
            took = time.perf_counter() - began
            producer._clean_all_uncommitted()
        return took

    # -- inner -------------------------------------------------------------------------------------

    def _change(self, updates: Callable[[TableMetadata], tuple[TableUpdate, ...]]) -> None:
        for wait_seconds in _waits():
            table = self.load()
            wanted = updates(table.metadata)
            if not wanted:
                return
            try:
                self._send(table, (AssertTableUUID(uuid=table.metadata.table_uuid),), wanted)
            except CommitFailedException:
                time.sleep(wait_seconds)
                continue
            return
        raise CommitConflict(f"{self.identifier}: other writers won {MAX_ATTEMPTS} attempts")

    def _attempts(self, stage: Callable[[_MemoTransaction, TableMetadata], int]) -> Committed:
        for wait_seconds in _waits():
            table = self.load()
            transaction = _MemoTransaction(table)
            with storage_errors():
                snapshot_id = stage(transaction, table.metadata)
            requirements = (
                *transaction._requirements,
                AssertTableUUID(uuid=table.metadata.table_uuid),
            )
            try:
                self._send(table, requirements, transaction._updates)
            except CommitFailedException:
                for producer in transaction._snapshot_producers:
                    producer._clean_all_uncommitted()
                time.sleep(wait_seconds)
                continue
            except Exception as error:
                # The answer is unknown: the commit may have landed. Only the catalog knows.
                if self.metadata().snapshot_by_id(snapshot_id) is None:
                    if isinstance(error, OSError):
                        raise storage_failed(error) from error
                    raise
            landed = self.snapshot(snapshot_id)
            assert landed is not None
            return Committed(snapshot_id, landed.sequence_number or 0, landed.timestamp_ms)
        raise CommitConflict(f"{self.identifier}: other writers won {MAX_ATTEMPTS} attempts")

    def _send(
        self, table: Table, requirements: tuple[TableRequirement, ...], updates: tuple[TableUpdate, ...]
    ) -> None:
        with catalog_errors(), self._effects(f"commit:{self.identifier}"):
            response = self._catalog.commit_table(table, requirements, updates)
        if isinstance(self._catalog, SqlCatalog):  # a REST server does that itself
            _delete_old_metadata(table, response.metadata)


def _delete_old_metadata(table: Table, newer: TableMetadata) -> None:
    """Deletes metadata files that the table's log has let go; another process may have been first."""
    kept = {one.metadata_file for one in newer.metadata_log}
    for one in table.metadata.metadata_log:
        if one.metadata_file not in kept:
            with contextlib.suppress(OSError):
                table.io.delete(one.metadata_file)


def _tag_update(name: str, snapshot_id: int) -> SetSnapshotRefUpdate:
    return SetSnapshotRefUpdate.model_validate(
        {"ref-name": name, "type": SnapshotRefType.TAG, "snapshot-id": snapshot_id}
    )


def summary_of(snapshot: Snapshot) -> dict[str, str]:
    """The summary properties of a snapshot."""
    return dict(snapshot.summary.additional_properties) if snapshot.summary is not None else {}


def _waits() -> Iterator[float]:
    for attempt in range(MAX_ATTEMPTS):
        yield _FIRST_WAIT_SECONDS * min(2**attempt, 32) * random.uniform(0.5, 1.5)
