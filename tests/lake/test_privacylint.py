"""The privacy lint finds somebody's name wherever it could stand in clear, and never repeats it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl
import pyarrow.parquet as pq
import pytest
from pyiceberg.manifest import DataFile
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.transforms import IdentityTransform
from pyiceberg.typedef import Record
from pyiceberg.types import NestedField, StringType

from lake import IcebergTable, Upkeep, privacy_lint
from lake.clearforms import is_object, is_tag
from lake.objects import local_path
from lake.offsets import BATCH, EPOCH, OFFSETS, RANGES, upkeep_summary
from lake.table import summary_of
from service.runtime import Runtime
from tests.world import compact_all, paid, publish, send

CANARY = "ann.archer@example.com"
OTHER = "views.extra__00000000"


@pytest.fixture
def lived_in(world: Runtime) -> Runtime:
    """A lake that has been used: ingest, compaction, views published twice."""
    send(world, [paid("ann", 1, event_id="1"), paid("bob", 2, event_id="2")])
    publish(world)
    send(world, [paid("ann", 3, event_id="3")])
    compact_all(world)
    publish(world)
    assert privacy_lint(world.lake) == []
    return world


def guarded(runtime: Runtime, more: dict[str, str]) -> Callable[[TableMetadata], dict[str, str]]:
    """The summary of an ordinary commit, and something more."""
    head = runtime.lake.events.snapshot()
    assert head is not None
    summary = upkeep_summary(summary_of(head), epoch=0) | more
    return lambda _: summary


def in_properties(runtime: Runtime) -> str:
    """As the value of a property."""
    with runtime.lake.events.load().transaction() as change:
        change.set_properties({"write.object-storage.path": CANARY})
    return "lake.events: a table property"


def in_tag(runtime: Runtime) -> str:
    """As the name of a snapshot."""
    head = runtime.lake.events.snapshot()
    assert head is not None
    runtime.lake.events.set_tags({CANARY: head.snapshot_id})
    return "lake.events: the name of a tag"


def in_comment(runtime: Runtime) -> str:
    """As the comment of a column."""
    with runtime.lake.events.load().update_schema() as change:
        change.update_column("open", doc=CANARY)
    return "lake.events: a comment in a schema"


def in_column(runtime: Runtime) -> str:
    """As the name of a column."""
    with runtime.lake.events.load().update_schema() as change:
        change.add_column(CANARY.replace(".", "_"), StringType())
    return "lake.events: a column that is not ours"


def in_bounds(runtime: Runtime) -> str:
    """As the smallest value of a column, in a manifest."""
    table = runtime.lake.events
    (old,) = table.files()
    names = ("content", "file_path", "file_format", "partition", "record_count", "file_size_in_bytes")
    fresh = DataFile.from_args(
        **{name: getattr(old, name) for name in names}, lower_bounds={4: CANARY.encode()}
    )
    fresh.spec_id = old.spec_id
    table.commit([fresh], guarded(runtime, {}), removes=[old])
    return "lake.events: bounds of a column in a manifest"


def in_object_name(runtime: Runtime) -> str:
    """As the name of a file that nothing refers to."""
    Path(local_path(runtime.lake.events.load().location()), "data", f"{CANARY}.parquet").write_bytes(b"")
    return "the name of a file below the tables"


def in_footer_of_a_file_that_is_kept(runtime: Runtime) -> str:
    """As statistics of a column in a file that an older snapshot alone refers to."""
    live = {file.file_path for file in runtime.lake.events.files()}
    (old, *_) = (one for one in runtime.lake.events.kept_files() if one.file_path not in live)
    path = local_path(old.file_path)
    pq.write_table(pq.read_table(path), path, write_statistics=["event_type"], store_schema=False)
    return "lake.events: statistics of a column in a footer"


def in_footer_key(runtime: Runtime) -> str:
    """As metadata of a live file."""
    (file,) = runtime.lake.events.files()
    path = local_path(file.file_path)
    rows = pq.read_table(path).replace_schema_metadata({"who": CANARY})
    pq.write_table(rows, path, write_statistics=False)
    return "lake.events: key-value metadata in a footer"


def in_statistics_of_a_view(runtime: Runtime) -> str:
    """As the smallest value of a column of a view whose table says nothing of metrics."""
    schema = Schema(NestedField(1, "who", StringType(), required=False))
    add_row(runtime.lake.warehouse.create(OTHER, schema, {}), Record(), "")
    return "a view's table: bounds of a column in a manifest"


def in_partition(runtime: Runtime) -> str:
    """As a partition: in the spec, in the manifest, in the manifest list, in the file's folder."""
    schema = Schema(NestedField(1, "who", StringType(), required=False))
    spec = PartitionSpec(PartitionField(1, 1000, IdentityTransform(), "who"))
    off = {"write.metadata.metrics.default": "none"}
    table = runtime.lake.warehouse.create(OTHER, schema, off, spec)
    add_row(table, Record(CANARY), f"who={CANARY}/")
    found = privacy_lint(runtime.lake)
    assert "a view's table: a partition by something else than the ingest day" in found
    assert "a view's table: a partition value in a manifest" in found
    assert "a view's table: the name of a data file in a manifest" in found
    return "a view's table: bounds of a partition in a manifest list"


def add_row(table: IcebergTable, partition: Record, folder: str) -> None:
    """One row that holds the canary."""
    file = table.write_file(pl.DataFrame({"who": [CANARY]}), partition=partition, folder=folder)
    table.commit([file], lambda _: {})


@pytest.mark.parametrize(
    "plant",
    [
        in_properties,
        in_tag,
        in_comment,
        in_column,
        in_bounds,
        in_object_name,
        in_footer_of_a_file_that_is_kept,
        in_footer_key,
        in_statistics_of_a_view,
        in_partition,
    ],
)
def test_a_name_is_found_wherever_it_is_planted(
    lived_in: Runtime, every_commit_is_linted: list[str], plant: Callable[[Runtime], str]
) -> None:
    """Each place by its own; the finding says where, and not what."""
    expected = plant(lived_in)
    found = privacy_lint(lived_in.lake)
    assert expected in found
    assert not any(CANARY in one or "ann" in one.split() for one in found)
    every_commit_is_linted.clear()


@pytest.mark.parametrize(
    "more",
    [
        {CANARY: "1"},
        {BATCH: CANARY},
        {EPOCH: CANARY},
        {"total-records-of": CANARY},
        {OFFSETS: json.dumps({CANARY: [0, 0, 0, 0, 0]})},
        {OFFSETS: json.dumps({f"file:{'0' * 64}": [CANARY, 0, 0, 0, 0]})},
        {RANGES: json.dumps([CANARY])},
        {"shredlake.totals": json.dumps({CANARY: 1})},
        {"shredlake.settled": json.dumps([[CANARY, "0" * 64, 1]])},
    ],
)
def test_a_name_in_a_summary_is_found_by_the_lint_and_by_the_check_of_each_commit(
    lived_in: Runtime, every_commit_is_linted: list[str], more: dict[str, str]
) -> None:
    """In a key, in a value, and within the JSON of a value."""
    assert every_commit_is_linted == []
    lived_in.lake.events.commit([], guarded(lived_in, more))
    (found,) = privacy_lint(lived_in.lake)
    assert "summary" in found
    assert CANARY not in found
    assert found.endswith(every_commit_is_linted.pop())


@pytest.mark.parametrize("name", ["main", "hour-2026-01-01T10", "input-42", "audit", "audit-2026-01"])
def test_names_of_our_tags_and_plain_words_of_others_pass(name: str) -> None:
    """The ladder, builds, inputs of publications, and what an auditor would write."""
    assert is_tag(name)
    assert not is_tag(f"{name}-4711")


def test_every_file_that_a_used_lake_has_is_called_as_it_may_be(lived_in: Runtime) -> None:
    """Merged, sorted, metadata and all; one letter more is not."""
    for number in range(2):
        send(lived_in, [paid("cy", number, event_id=f"c{number}")])
    (day,) = Upkeep(lived_in.lake).days()
    Upkeep(lived_in.lake).merge(day, at_least=2)
    objects: Any = lived_in.lake.warehouse.objects
    paths = [unquote(one.location.removeprefix(objects.root)) for one in objects.objects(objects.root)]
    assert len(paths) > 20
    assert all(is_object(path) for path in paths)
    assert not any(is_object(f"{path}x") or is_object(path[1:]) for path in paths)
