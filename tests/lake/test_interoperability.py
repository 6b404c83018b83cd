"""Every clear column of `lake.events` through other people's readers, from a folder and from REST and S3."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from pyiceberg.catalog import load_catalog

from infra import spark
from infra.errors import NotAvailable
from lake import Upkeep
from lake.events import EVENTS_SCHEMA
from lake.objects import cloud_options, local_path
from service.runtime import Runtime
from tests.lake.far import lake_at, s3_properties
from tests.servers import CHOSEN, Stores
from tests.world import START, erase, paid, send

ROOT = Path(__file__).parents[2]
BODIES = ("open", "sealed", "tags")
COLUMNS = tuple(one.name for one in EVENTS_SCHEMA.fields if one.name not in BODIES)
SQL_NAMES = ", ".join(f'"{name}"' for name in COLUMNS)


def live(runtime: Runtime) -> None:
    """Merged, compacted, severed and fresh files, and days before 1970."""
    for number in range(12):
        send(runtime, [paid(f"p{number % 4}", number, event_id=f"{number}-{n}") for n in range(3)])
    (day,) = Upkeep(runtime.lake).days()
    Upkeep(runtime.lake).merge(day, at_least=3)
    erase(runtime, "p1")
    old = START.replace(year=1969)
    send(runtime, [paid("p2", 5, event_id="late"), paid("p9", 5, event_id="new", at=old)])


@pytest.fixture
def lived(world: Runtime, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """Such a table in a folder."""
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    live(world)
    return world


@pytest.fixture
def lived_far(
    stores: Stores, versions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Runtime]:
    """Such a table on a REST catalog and S3."""
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    with lake_at(stores, "rest", "bucket", tmp_path) as runtime:
        live(runtime)
        yield runtime


def ours(runtime: Runtime) -> list[tuple[Any, ...]]:
    """What our own reader says, sorted."""
    frame = runtime.lake.events.scan(runtime.lake.events.files()).select(COLUMNS).collect()
    rows = in_order(frame.rows())
    by_name = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    assert {type(one["ingested_at"]) for one in by_name} == {datetime}
    assert {one["occurred_from"] for one in by_name} == {START.date(), date(1969, START.month, START.day)}
    assert 0 in {one["generation"] for one in by_name}, "a severed block is among them"
    return rows


def in_order(rows: Any) -> list[tuple[Any, ...]]:
    """By block, every moment in UTC."""
    moved = [tuple(v.astimezone(UTC) if isinstance(v, datetime) else v for v in row) for row in rows]
    return sorted(moved, key=lambda row: row[0])


def check_polars_and_pyarrow(
    runtime: Runtime, table: Any, storage_options: dict[str, str] | None = None
) -> None:
    """Through Iceberg's metadata; Polars has names of its own for how a store is reached."""
    expected = ours(runtime)
    by_polars = pl.scan_iceberg(table, storage_options=storage_options)
    assert in_order(by_polars.select(COLUMNS).collect().rows()) == expected
    by_arrow = table.scan(selected_fields=COLUMNS).to_arrow()
    assert in_order(zip(*(by_arrow[name].to_pylist() for name in COLUMNS), strict=True)) == expected


def test_polars_and_pyarrow_read_the_same(lived: Runtime) -> None:
    """From a folder."""
    check_polars_and_pyarrow(lived, lived.lake.events.load())


def test_polars_pyarrow_and_duckdb_read_the_same_from_rest_and_s3(lived_far: Runtime, stores: Stores) -> None:
    """With a catalog of their own that knows an address and a log-in alone; DuckDB through Arrow."""
    where = {"type": "rest", "uri": stores.catalog.address()["CATALOG_URI"], **s3_properties(stores)}
    table = load_catalog("readers", **where).load_table("lake.events")
    check_polars_and_pyarrow(lived_far, table, cloud_options(s3_properties(stores)))
    arrow = table.scan(selected_fields=COLUMNS).to_arrow()
    assert in_order(duckdb.sql(f"select {SQL_NAMES} from arrow").pl().rows()) == ours(lived_far)
    assert arrow.num_rows == len(ours(lived_far))


def test_an_old_snapshot_reads_the_same(lived: Runtime) -> None:
    """Time travel by a snapshot's id."""
    oldest = lived.lake.events.history()[-1]
    frame = pl.scan_iceberg(lived.lake.events.load(), snapshot_id=oldest.snapshot_id).collect()
    mine = lived.lake.events.scan(lived.lake.events.files(oldest.snapshot_id)).collect()
    assert in_order(frame.select(COLUMNS).rows()) == in_order(mine.select(COLUMNS).rows())
    assert frame.height == 1
    assert frame["event_count"].sum() == 3


def test_duckdb_reads_the_same_from_arrow_and_from_the_files(lived: Runtime) -> None:
    """Its Iceberg extension needs a server of its own; the files of a scan and Arrow do not."""
    files = [local_path(one.file_path) for one in lived.lake.events.files()]
    from_files = duckdb.sql(f"select {SQL_NAMES} from read_parquet({files!r}, hive_partitioning=false)")
    assert in_order(from_files.pl().rows()) == ours(lived)
    arrow = lived.lake.events.load().scan(selected_fields=COLUMNS).to_arrow()
    assert in_order(duckdb.sql(f"select {SQL_NAMES} from arrow").pl().rows()) == ours(lived)
    assert arrow.num_rows == len(ours(lived))


def by_spark(table: str, scratch: Path, rest: dict[str, str] | None = None) -> list[tuple[Any, ...]]:
    """Rows as Spark's own types say them: bytes in hex, a moment in microseconds, a day as text."""
    if spark.NAME not in os.environ.get(CHOSEN, spark.NAME).split(","):
        pytest.skip(f"{spark.NAME} was not chosen in {CHOSEN}")
    shown = {"block_id": "hex", "subject_ref": "hex", "ingested_at": "unix_micros"}
    names = ", ".join(f"{shown.get(name, '')}(`{name}`) as `{name}`" for name in COLUMNS)
    try:
        rows = spark.query(table, f"select {names} from t", scratch, rest)
    except NotAvailable as missing:
        pytest.skip(str(missing))
    return in_order(tuple(from_spark(name, row.get(name)) for name in COLUMNS) for row in rows)


def from_spark(name: str, value: Any) -> Any:
    """The value; Spark leaves null out of its JSON."""
    if value is None:
        return None
    if name in ("block_id", "subject_ref"):
        return bytes.fromhex(value)
    if name == "ingested_at":
        seconds, micros = divmod(value, 1_000_000)
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros)
    return date.fromisoformat(value) if name.startswith("occurred_") else value


def test_spark_reads_the_same(lived: Runtime, tmp_path: Path) -> None:
    """With Iceberg's own runtime, by the metadata file."""
    assert by_spark(lived.lake.events.load().metadata_location, tmp_path) == ours(lived)


def test_spark_reads_the_same_from_rest_and_s3(lived_far: Runtime, stores: Stores, tmp_path: Path) -> None:
    """By the table's name in the catalog, with Iceberg's own client of S3."""
    known = s3_properties(stores)
    rest = {
        "type": "rest",
        "uri": stores.catalog.address()["CATALOG_URI"],
        "io-impl": "org.apache.iceberg.aws.s3.S3FileIO",
        "s3.endpoint": known["s3.endpoint"],
        "s3.path-style-access": "true",
        "s3.access-key-id": known["s3.access-key-id"],
        "s3.secret-access-key": known["s3.secret-access-key"],
        "client.region": known["s3.region"],
    }
    assert by_spark("rest.lake.events", tmp_path, rest) == ours(lived_far)


def test_the_versions_in_the_documentation_are_those_tested() -> None:
    """Read from what is installed, and from what Spark is started with."""
    row = {
        "PyArrow": f"{version('pyarrow')}, {version('pyiceberg')}",
        "Polars": version("polars"),
        "DuckDB": version("duckdb"),
        "Spark": f"{spark.VERSION}, 1.11.0",
    }
    text = (ROOT / "docs" / "stores.md").read_text()
    for reader, tested in row.items():
        assert re.search(rf"^\| {reader}[^|]*\| {re.escape(tested)} \|", text, re.MULTILINE), reader
