"""The privacy lint: whether anything but allowed forms stands in clear around the data of any table.

Summaries, properties, names of tags and objects, schemas, partitions in manifest lists and manifests,
bounds, and the footers of every file that a kept snapshot refers to. Aggregates are in clear by design: it
is their metadata that may hold nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from attrs import frozen
from pyiceberg.manifest import DataFile, ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from lake.clearforms import is_object, is_tag, property_findings, summary_findings
from lake.damage import named
from lake.errors import DataDamaged, DataFileGone
from lake.events import (
    EVENTS_PROPERTIES,
    EVENTS_SCHEMA,
    EVENTS_SPEC,
    EVENTS_TABLE,
    FOOTER_COLUMNS,
    METRIC_COLUMNS,
)
from lake.lakehouse import Lake
from lake.objects import storage_errors
from lake.table import IcebergTable, summary_of
from lake.warehouse import VIEWS_NAMESPACE

_DAY_BYTES = 4


@frozen
class _Rules:
    """What a table may say: its own properties, columns with bounds, and whether days part it.

    Attributes:
        metrics: columns with bounds in manifests and in footers.
        footers: those with bounds in footers alone.
    """

    properties: Mapping[str, str]
    metrics: Collection[str]
    footers: Collection[str]
    by_day: bool


_EVENTS = _Rules(EVENTS_PROPERTIES, METRIC_COLUMNS, FOOTER_COLUMNS, True)
_VIEWS = _Rules({}, (), (), False)


def privacy_lint(lake: Lake) -> list[str]:
    """What stands in clear around the data outside of the allow-list; empty means clean.

    Raises:
        CatalogUnavailable, StorageFailed: it could not be looked at.
    """
    problems = {f"{EVENTS_TABLE}: {one}" for one in _table_findings(lake.events, _EVENTS)}
    for name in lake.warehouse.names(VIEWS_NAMESPACE):
        # not the table's name: somebody may have called it after a person
        problems |= {f"a view's table: {one}" for one in _table_findings(lake.warehouse.table(name), _VIEWS)}
    objects = lake.warehouse.objects
    names = (one.location.removeprefix(objects.root) for one in objects.objects(objects.root))
    if not all(is_object(unquote(name)) for name in names):
        problems.add("the name of a file below the tables")
    return sorted(problems)


def commit_findings(table: IcebergTable, snapshot_id: int) -> list[str]:
    """What a commit brought outside of the allow-list; its own metadata alone is looked at."""
    loaded = table.load()
    rules = _EVENTS if table.identifier == EVENTS_TABLE else _VIEWS
    snapshot = loaded.snapshot_by_id(snapshot_id)
    if snapshot is None:
        return []
    fresh = [one for one in snapshot.manifests(loaded.io) if one.added_snapshot_id == snapshot_id]
    found = {*_metadata_findings(loaded, rules, [snapshot]), *_manifest_findings(loaded, rules, fresh)}
    return sorted(found)


def _table_findings(table: IcebergTable, rules: _Rules) -> Iterator[str]:
    loaded = table.load()
    yield from _metadata_findings(loaded, rules, loaded.metadata.snapshots)
    manifests: dict[str, ManifestFile] = {}
    with storage_errors():
        for snapshot in loaded.metadata.snapshots:
            manifests |= {one.manifest_path: one for one in snapshot.manifests(loaded.io)}
        yield from _manifest_findings(loaded, rules, manifests.values())
        for file in table.kept_files():
            with contextlib.suppress(FileNotFoundError):  # upkeep beside this may have swept it
                yield from _footer_findings(loaded, rules, file)


def _metadata_findings(table: Table, rules: _Rules, snapshots: Iterable[Snapshot]) -> Iterator[str]:
    metadata = table.metadata
    for snapshot in snapshots:
        yield from summary_findings(summary_of(snapshot))
    yield from property_findings(metadata.properties, rules.properties)
    if not all(is_tag(name) for name in metadata.refs):
        yield "the name of a tag"
    if any(one.doc for schema in metadata.schemas for one in schema.fields):
        yield "a comment in a schema"
    if rules.by_day and any(schema.as_struct() != EVENTS_SCHEMA.as_struct() for schema in metadata.schemas):
        yield "a column that is not ours"
    specs = [spec.fields for spec in metadata.partition_specs]
    if any(fields != (EVENTS_SPEC.fields if rules.by_day else ()) for fields in specs):
        yield "a partition by something else than the ingest day"
    if metadata.statistics or metadata.partition_statistics:
        yield "a file of statistics"


def _manifest_findings(table: Table, rules: _Rules, manifests: Iterable[ManifestFile]) -> Iterator[str]:
    allowed = {table.schema().find_field(name).field_id for name in rules.metrics}
    for manifest in manifests:
        for part in manifest.partitions or ():
            bounds = [one for one in (part.lower_bound, part.upper_bound) if one is not None]
            if bounds and not (rules.by_day and all(len(one) == _DAY_BYTES for one in bounds)):
                yield "bounds of a partition in a manifest list"
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False):
            file = entry.data_file
            if (set(file.lower_bounds or {}) | set(file.upper_bounds or {})) - allowed:
                yield "bounds of a column in a manifest"
            if file.key_metadata is not None:
                yield "key metadata in a manifest"
            if len(file.partition) != rules.by_day:
                yield "a partition value in a manifest"
            if not is_object(file.file_path.removeprefix(_root_of(table))):
                yield "the name of a data file in a manifest"


def _footer_findings(table: Table, rules: _Rules, file: DataFile) -> Iterator[str]:
    try:
        with table.io.new_input(file.file_path).open() as opened:
            footer = pq.ParquetFile(opened).metadata
    except FileNotFoundError:
        yield f"{named(file.file_path)} is gone. {DataFileGone.default_next_step}"
        return
    except (pa.ArrowInvalid, EOFError, OSError) as error:
        is_far = file.file_path.startswith("s3://")  # whose errors have no number either
        if isinstance(error, OSError) and (is_far or error.errno is not None):
            raise
        yield f"the footer of {named(file.file_path)} is damaged. {DataDamaged.default_next_step}"
        return
    if footer.metadata:
        yield "key-value metadata in a footer"
    for group in range(footer.num_row_groups):
        for at in range(footer.num_columns):
            chunk = footer.row_group(group).column(at)
            told = chunk.is_stats_set or chunk.has_column_index
            if told and chunk.path_in_schema not in {*rules.metrics, *rules.footers}:
                yield "statistics of a column in a footer"


def _root_of(table: Table) -> str:
    """The warehouse's root: a table lies two folders below it."""
    return table.location().rsplit("/", 2)[0]
