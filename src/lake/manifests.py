"""Manifests and their lists: each file is read once per process, because it never changes.

pyiceberg works out anew for each file how its records are read, which takes fifty times as long as reading
them; and it carries manifests that list nothing but deleted files into every later snapshot, so that each
commit costs as much as there were commits before it. Neither is so here.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from pyiceberg.avro.decoder import new_decoder
from pyiceberg.avro.file import META_SCHEMA, AvroFile, AvroFileHeader
from pyiceberg.avro.reader import Reader
from pyiceberg.avro.resolver import construct_reader, resolve_reader
from pyiceberg.io import FileIO
from pyiceberg.manifest import (
    DEFAULT_READ_VERSION,
    MANIFEST_ENTRY_SCHEMAS,
    MANIFEST_LIST_FILE_SCHEMAS,
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    PartitionFieldSummary,
    _inherit_from_manifest,
)
from pyiceberg.schema import Schema
from pyiceberg.table import Transaction
from pyiceberg.table.snapshots import Operation, Snapshot
from pyiceberg.table.update.snapshot import _OverwriteFiles
from pyiceberg.utils.schema_conversion import AvroSchemaConversion

_MOST_RECORDS: Final = 50_000
"""That are kept of manifests and of lists: an entry takes some two kilobytes."""
_ENTRY_TYPES: Final[dict[int, Any]] = {-1: ManifestEntry, 2: DataFile}
_ENTRY_ENUMS: Final[dict[int, Any]] = {0: ManifestEntryStatus, 101: FileFormat, 134: DataFileContent}
_LIST_TYPES: Final[dict[int, Any]] = {-1: ManifestFile, 508: PartitionFieldSummary}
_LIST_ENUMS: Final[dict[int, Any]] = {517: ManifestContent}


class _Kept:
    """The records of files by path, those longest unused let go of first."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, tuple[Any, ...]] = OrderedDict()
        self._records = 0
        self._mutex = threading.Lock()

    def get(self, path: str) -> tuple[Any, ...] | None:
        """What a file holds; None where it is not known."""
        with self._mutex:
            found = self._found.get(path)
            if found is not None:
                self._found.move_to_end(path)
            return found

    def put(self, path: str, records: tuple[Any, ...]) -> None:
        """Remembers what a file holds."""
        with self._mutex:
            if path in self._found:
                return
            self._found[path] = records
            self._records += len(records) + 1
            while self._records > _MOST_RECORDS and len(self._found) > 1:
                self._records -= len(self._found.popitem(last=False)[1]) + 1


_manifests, _lists = _Kept(), _Kept()


@lru_cache(maxsize=1)
def _header_reader() -> Reader:
    return construct_reader(META_SCHEMA, {-1: AvroFileHeader})


@lru_cache(maxsize=64)
def _record_reader(written_as: str, is_list: bool) -> Reader:
    """How records are read that were written by this Avro schema."""
    schema: Schema = AvroSchemaConversion().avro_to_iceberg(json.loads(written_as))
    if is_list:
        return resolve_reader(
            schema, MANIFEST_LIST_FILE_SCHEMAS[DEFAULT_READ_VERSION], _LIST_TYPES, _LIST_ENUMS
        )
    return resolve_reader(schema, MANIFEST_ENTRY_SCHEMAS[DEFAULT_READ_VERSION], _ENTRY_TYPES, _ENTRY_ENUMS)


class _RecordFile(AvroFile[Any]):
    """An Avro file of records that are read like those of the files before it."""

    def __init__(self, io: FileIO, path: str, is_list: bool) -> None:
        super().__init__(io.new_input(path))
        self._is_list = is_list

    def __enter__(self) -> _RecordFile:
        with self.input_file.open() as file:
            self.decoder = new_decoder(file.read())
        self.header = _header_reader().read(self.decoder)
        self.reader = _record_reader(self.header.meta["avro.schema"], self._is_list)
        return self


def manifests_of(io: FileIO, snapshot: Snapshot) -> tuple[ManifestFile, ...]:
    """The manifests of a snapshot. Raises what `io` does."""
    path = snapshot.manifest_list
    found = _lists.get(path)
    if found is None:
        with _RecordFile(io, path, is_list=True) as records:
            found = tuple(records)
        _lists.put(path, found)
    return found


def entries_of(io: FileIO, manifest: ManifestFile) -> tuple[ManifestEntry, ...]:
    """What a manifest lists, but for deleted files. Nobody may change it. Raises what `io` does."""
    path = manifest.manifest_path
    found = _manifests.get(path)
    if found is None:
        if not (manifest.has_added_files() or manifest.has_existing_files()):
            return ()
        with _RecordFile(io, path, is_list=False) as records:
            found = tuple(
                _inherit_from_manifest(entry, manifest)
                for entry in records
                if entry.status != ManifestEntryStatus.DELETED
            )
        _manifests.put(path, found)
    return found


def live_entries(io: FileIO, snapshot: Snapshot) -> Iterator[ManifestEntry]:
    """The live files of a snapshot. Raises what `io` does."""
    for manifest in manifests_of(io, snapshot):
        yield from entries_of(io, manifest)


class Replacement(_OverwriteFiles):
    """A snapshot in which files are replaced by others; manifests without a live file end with it.

    Args:
        summary: properties of the snapshot.
    """

    def __init__(self, transaction: Transaction, io: FileIO, summary: Mapping[str, str]) -> None:
        super().__init__(Operation.OVERWRITE, transaction, io, snapshot_properties=dict(summary))

    def _build_delete_files_partition_predicate(self) -> None:
        """Nothing: entries are told apart by their files alone."""

    def _existing_manifests(self) -> list[ManifestFile]:
        kept: list[ManifestFile] = []
        for manifest in self._parents():
            if manifest.content != ManifestContent.DATA:
                kept.append(manifest)
                continue
            entries = entries_of(self._io, manifest)
            left = [one for one in entries if one.data_file not in self._deleted_data_files]
            if left and len(left) == len(entries):
                kept.append(manifest)
            elif left:
                with self.new_manifest_writer(self.spec(manifest.partition_spec_id)) as writer:
                    for entry in left:
                        writer.add_entry(self._entry(entry, ManifestEntryStatus.EXISTING, entry.snapshot_id))
                kept.append(writer.to_manifest_file())
        return kept

    def _deleted_entries(self) -> list[ManifestEntry]:
        gone = [
            self._entry(entry, ManifestEntryStatus.DELETED, self._snapshot_id)
            for manifest in self._parents()
            if manifest.content == ManifestContent.DATA
            for entry in entries_of(self._io, manifest)
            if entry.data_file in self._deleted_data_files
        ]
        self._validate_required_deletes(gone)
        return gone

    def _parents(self) -> Sequence[ManifestFile]:
        parent = self._transaction.table_metadata.snapshot_by_name(name=self._target_branch)
        return manifests_of(self._io, parent) if parent is not None else ()

    def _entry(
        self, entry: ManifestEntry, status: ManifestEntryStatus, snapshot_id: int | None
    ) -> ManifestEntry:
        return ManifestEntry.from_args(
            status=status,
            snapshot_id=snapshot_id,
            sequence_number=entry.sequence_number,
            file_sequence_number=entry.file_sequence_number,
            data_file=entry.data_file,
        )
