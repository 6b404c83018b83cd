"""An Iceberg table with guarded commits and files written in one pass.

pyiceberg retries a commit by rebasing it unseen, and its metadata property copies everything at every
access. So one attempt here is exactly one compare-and-set: the guard looks at the newest head, the
snapshot is staged on it, and a commit whose answer was lost is looked up by its snapshot id.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import polars as pl
from attrs import frozen
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import (
    AssertTableUUID,
    RemoveSnapshotsUpdate,
    SetPropertiesUpdate,
    TableRequirement,
    TableUpdate,
    update_table_metadata,
)
from pyiceberg.typedef import Record

from keys import Effects
from lake.branches import Branched, staged_on
from lake.catalog import catalog_errors
from lake.damage import damage_of
from lake.datafiles import write_data_file
from lake.errors import CommitConflict, DataDamaged, SnapshotGone, StorageFailed
from lake.leftovers import clean_up, delete_old_metadata, is_lost
from lake.manifests import Replacement, live_entries
from lake.moments import EXPIRED_PROPERTY, remembering
from lake.objects import cloud_options, local_path, scan_parquet, storage_errors, storage_failed
from lake.references import check_names, kept, tag_update, unnamed, with_last_tagged
from lake.retention import TagChanges

MAX_ATTEMPTS: Final = 20
_FIRST_WAIT_SECONDS: Final = 0.02
Guard = Callable[[TableMetadata], Mapping[str, str]]
"""Looks at the newest head inside an attempt; returns the summary properties or raises to stop."""
_Change = tuple[tuple[TableUpdate, ...], tuple[TableRequirement, ...]]


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
        return [] if snapshot is None else self.sequenced_of(snapshot)

    def sequenced_of(self, snapshot: Snapshot) -> list[tuple[DataFile, int]]:
        """The same of a snapshot that somebody has seen; it may have expired since."""
        io = self.load().io
        with storage_errors():
            return [(entry.data_file, entry.sequence_number or 0) for entry in live_entries(io, snapshot)]

    def sequence_of(self, snapshot_id: int, within: Snapshot) -> int | None:
        """The sequence number of a snapshot, by a later one's files; None where it added none of them."""
        io = self.load().io
        with storage_errors():
            for entry in live_entries(io, within):
                if entry.snapshot_id == snapshot_id:
                    return entry.sequence_number
        return None

    def kept_files(self) -> list[DataFile]:
        """Data files of every kept snapshot, each once, as of one look at the metadata.

        One look, because upkeep beside it may expire a snapshot between two.
        """
        table = self.load()
        with storage_errors():
            found = {
                entry.data_file.file_path: entry.data_file
                for snapshot in table.metadata.snapshots
                for entry in live_entries(table.io, snapshot)
            }
        return list(found.values())

    def scan(self, files: Iterable[DataFile]) -> pl.LazyFrame:
        """Rows of data files of this table."""
        return scan_parquet([one.file_path for one in files], self.load().io.properties)

    def damage_of(self, file: DataFile) -> DataDamaged | None:
        """What is wrong with a data file; None where it can be read to its end."""
        properties = self.load().io.properties
        is_far = file.file_path.startswith("s3://")
        return damage_of(local_path(file.file_path), cloud_options(properties) if is_far else None)

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
        footers: Collection[str] = (),
        body_codec: str = "ZSTD",
        row_group_rows: int = 65_536,
        schema: Schema | None = None,
    ) -> DataFile:
        """Writes one Parquet file of the table's schema; it is not part of the table before a commit.

        Args:
            frame: columns by name; cast to the table's types.
            prefix: what the file's name begins with.
            random: columns stored as they are; they hold ciphertext and the like.
            bodies: columns stored without a dictionary, because hardly a value comes twice.
            footers: columns whose bounds stand in the file alone, beside those that have metrics.
            body_codec: Parquet's name of how `bodies` are compressed.
            schema: another one than the table has now; see `lake.branches`.

        Raises:
            StorageFailed: the store refused; nothing of the file is left.
        """
        return write_data_file(
            self.load(),
            frame,
            self._effects,
            partition=partition or Record(),
            folder=folder,
            prefix=prefix,
            random=random,
            bodies=bodies,
            footers=footers,
            body_codec=body_codec,
            row_group_rows=row_group_rows,
            schema=schema,
        )

    def write_beside(self, name: str, content: bytes) -> None:
        """Writes a file of ours beside the table's metadata. Raises `StorageFailed`."""
        table = self.load()
        output = table.io.new_output(f"{beside(table)}/{name}")
        with storage_errors(), self._effects("write-beside"), output.create() as sink:
            sink.write(content)

    def read_beside(self, name: str) -> bytes:
        """Such a file. Raises `StorageFailed`."""
        table = self.load()
        try:
            with storage_errors(), table.io.new_input(f"{beside(table)}/{name}").open() as file:
                return file.read()
        except FileNotFoundError as error:
            raise StorageFailed("a file beside the table's metadata is gone") from error

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
            summary = dict(guard(metadata))
            producer: Any = (
                Replacement(transaction, transaction._table.io, summary)
                if removes
                else transaction.update_snapshot(snapshot_properties=summary).merge_append()
            )
            for file in adds:
                producer.append_data_file(file)
            for file in removes:
                producer.delete_data_file(file)
            producer.commit()
            if tag is not None:
                reference = tag_update(tag, producer.snapshot_id)
                transaction._stage((reference,))
            return int(producer.snapshot_id)

        return self._attempts(stage)

    def put(self, branch: str, choose: Callable[[TableMetadata], Branched]) -> Committed:
        """Makes a snapshot the head of a branch; see `lake.branches`.

        Args:
            choose: called inside every attempt with the newest metadata; raises to stop.

        Raises:
            CommitConflict, StorageFailed, Exception: as `commit`.
        """
        return self._attempts(functools.partial(staged_on, self._catalog, branch, choose))

    def set_tags(self, tags: Mapping[str, int], remove: Collection[str] = ()) -> None:
        """Names snapshots, and forgets names, in one commit.

        Raises:
            SnapshotGone: one of them is not there (any more).
        """

        def choose(metadata: TableMetadata) -> TagChanges:
            for snapshot_id in tags.values():
                if metadata.snapshot_by_id(snapshot_id) is None:
                    raise SnapshotGone(f"snapshot {snapshot_id} of {self.identifier} does not exist")
            return TagChanges(dict(tags), tuple(remove))

        self.change_tags(choose)

    def change_tags(self, choose: Callable[[TableMetadata], TagChanges]) -> TagChanges:
        """Names snapshots, and forgets names, as chosen by the newest metadata; returns what was changed."""
        chosen = TagChanges({}, ())

        def change(metadata: TableMetadata) -> _Change:
            nonlocal chosen
            chosen = choose(metadata)
            if not chosen.any:
                return (), ()
            updates = with_last_tagged(self._catalog, metadata, chosen)
            return updates, kept(self._catalog, chosen.tags.values())

        self._change(change)
        return chosen

    def expire(self, choose: Callable[[TableMetadata], Sequence[int]]) -> list[int]:
        """Forgets the chosen snapshots, and remembers when they landed; deletes no file. Returns the ids.

        One that was named, or forgotten by another process, between the choice and the commit makes the
        choice be made anew.

        Raises:
            TagLost: at a REST catalog, a tag that others set in that moment went with its snapshot.
        """
        gone: list[int] = []

        def change(metadata: TableMetadata) -> _Change:
            gone[:] = choose(metadata)
            if not gone:
                return (), ()
            forget = RemoveSnapshotsUpdate.model_validate({"snapshot-ids": gone})
            remember = SetPropertiesUpdate(updates={EXPIRED_PROPERTY: remembering(metadata, gone)})
            return (forget, remember), unnamed(self._catalog, metadata, gone)

        self._change(change)
        if gone and not isinstance(self._catalog, SqlCatalog):
            check_names(self.load(), gone)
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

    def _change(self, change: Callable[[TableMetadata], _Change]) -> None:
        for wait_seconds in _waits():
            table = self.load()
            updates, requirements = change(table.metadata)
            if not updates:
                return
            same_table = AssertTableUUID(uuid=table.metadata.table_uuid)
            try:
                with storage_errors():
                    self._send(table, (same_table, *requirements), updates)
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
            except Exception as error:
                # Whatever the answer says, the commit may have landed: a proxy or client that sends again
                # after a lost answer is told 409 because of its own first attempt. Only the catalog knows.
                newest = self.metadata()
                if newest.snapshot_by_id(snapshot_id) is None:
                    if isinstance(error, CommitFailedException):
                        if is_lost(table.metadata, newest):
                            clean_up(transaction)
                        time.sleep(wait_seconds)
                        continue
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
            delete_old_metadata(table, response.metadata)


def beside(table: Table) -> str:
    """Where files lie that summaries name."""
    return f"{table.location()}/metadata"


def summary_of(snapshot: Snapshot) -> dict[str, str]:
    """The summary properties of a snapshot."""
    return dict(snapshot.summary.additional_properties) if snapshot.summary is not None else {}


def _waits() -> Iterator[float]:
    for attempt in range(MAX_ATTEMPTS):
        yield _FIRST_WAIT_SECONDS * min(2**attempt, 32) * random.uniform(0.5, 1.5)
