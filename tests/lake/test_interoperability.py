"""The clear columns of `lake.events` through other people's readers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from infra import spark
from infra.errors import NotAvailable
from lake import Upkeep
from lake.objects import local_path
from service.runtime import Runtime
from tests.servers import CHOSEN
from tests.world import erase, paid, send

COLUMNS = ("block_id", "event_type", "schema_version", "facet", "primary", "event_count", "source_from")


@pytest.fixture
def lived(world: Runtime, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """A table with merged, compacted, severed and fresh files."""
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    for number in range(12):
        send(world, [paid(f"p{number % 4}", number, event_id=f"{number}-{n}") for n in range(3)])
    (day,) = Upkeep(world.lake).days()
    Upkeep(world.lake).merge(day, at_least=3)
    erase(world, "p1")
    send(world, [paid("p2", 5, event_id="late"), paid("p9", 5, event_id="new")])
    return world


def ours(world: Runtime) -> list[tuple[Any, ...]]:
    """What our own reader says, sorted."""
    frame = world.lake.events.scan(world.lake.events.files()).select(COLUMNS).collect()
    return sorted(frame.rows())


def test_polars_and_pyarrow_read_the_same(lived: Runtime) -> None:
    """Through Iceberg's metadata, with no code of ours."""
    table = lived.lake.events.load()
    by_polars = pl.scan_iceberg(table).select(COLUMNS).collect()
    assert sorted(by_polars.rows()) == ours(lived)
    by_arrow = table.scan(selected_fields=COLUMNS).to_arrow()
    rows = zip(*(by_arrow[name].to_pylist() for name in COLUMNS), strict=True)
    assert sorted(rows) == ours(lived)


def test_an_old_snapshot_reads_the_same(lived: Runtime) -> None:
    """Time travel by a snapshot's id."""
    oldest = lived.lake.events.history()[-1]
    frame = pl.scan_iceberg(lived.lake.events.load(), snapshot_id=oldest.snapshot_id).collect()
    mine = lived.lake.events.scan(lived.lake.events.files(oldest.snapshot_id)).collect()
    assert frame.height == mine.height == 1
    assert frame["event_count"].sum() == mine["event_count"].sum() == 3


def test_duckdb_reads_the_same_from_arrow_and_from_the_files(lived: Runtime) -> None:
    """Its Iceberg extension needs a server of its own; the files of a scan and Arrow do not."""
    files = [local_path(one.file_path) for one in lived.lake.events.files()]
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    from_files = duckdb.sql(f"select {names} from read_parquet({files!r}, hive_partitioning=false)")
    assert sorted(from_files.fetchall()) == ours(lived)
    arrow = lived.lake.events.load().scan(selected_fields=COLUMNS).to_arrow()
    assert sorted(duckdb.sql(f"select {names} from arrow").fetchall()) == ours(lived)
    assert arrow.num_rows == len(ours(lived))


def test_spark_reads_the_same(lived: Runtime, tmp_path: Path) -> None:
    """With Iceberg's own runtime, by the metadata file."""
    if spark.NAME not in os.environ.get(CHOSEN, spark.NAME).split(","):
        pytest.skip(f"{spark.NAME} was not chosen in {CHOSEN}")
    names = ", ".join(["hex(block_id) as block_id", *COLUMNS[1:]])
    try:
        rows = spark.query(lived.lake.events.load().metadata_location, f"select {names} from t", tmp_path)
    except NotAvailable as missing:
        pytest.skip(str(missing))
    found = [(bytes.fromhex(row["block_id"]), *(row[name] for name in COLUMNS[1:])) for row in rows]
    assert sorted(found) == ours(lived)
