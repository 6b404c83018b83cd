"""The Apache Iceberg Kafka Connect sink 1.12.0 on one standalone worker of Connect 4.3.1.

Its jars are fetched by Maven when the suite first runs, never by the tests. It writes JSON as it comes, two
tasks, into a table that is made for it beforehand, in an SQLite catalog whose newest schema is there already:
two tasks that both upgrade it would race. `iceberg.kafka.auto.offset.reset=earliest` is set because with its
default a sink that is killed before its first commit loses what it had read.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
from attrs import frozen
from confluent_kafka.admin import AdminClient, NewTopic
from pyiceberg.catalog.sql import SqlCatalog

from infra.errors import InfraError
from infra.jars import jars, java_command
from infra.process import ServerProcess, free_port

NAME: Final = "connect-sink"
VERSION: Final = "1.12.0"
COMMIT_SECONDS: Final = 2
_POM: Final = Path(__file__).parent / "pom.xml"
_MAIN: Final = "org.apache.kafka.connect.cli.ConnectStandalone"
_HEAP_MB: Final = 2048
_SECONDS: Final = 300.0
_LOOK_SECONDS: Final = 0.05
_CATALOG: Final = "peer"
_TABLE: Final = "peer.events"
_EVENT: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("specversion", "id", "source", "type", "subject", "time")),
        (
            "data",
            pa.struct(
                [
                    ("page", pa.string()),
                    ("milliseconds", pa.int64()),
                    ("query", pa.string()),
                    ("address", pa.string()),
                ]
            ),
        ),
    ]
)


@frozen
class Sunk:
    """One run of the sink over a topic.

    Attributes:
        seconds: from the first consumer's place in the topic, when worker, connector and tasks are up, to the
            commit that holds the last record; the figure that is compared.
        seconds_from_start: the same from the start of the process.
        commits: how many it made.
    """

    records: int
    seconds: float
    seconds_from_start: float
    commits: int


def sink(folder: Path, bootstrap: str, topic: str, records: int) -> Sunk:
    """Brings a topic's records into a table, and counts them there.

    Args:
        folder: of catalog, table, settings and log.
        records: how many different ones the topic holds.

    Raises:
        NotAvailable: no Java, no Maven or no jars.
        InfraError: it stopped, was not done in five minutes, or the table does not hold each record once.
    """
    libraries = jars(NAME, VERSION, _POM)
    folder.mkdir(parents=True)
    catalog = _table(folder)
    name = f"{NAME}-{uuid.uuid4().hex}"  # of its consumer group and control topic: every run begins anew
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(name, 1)])[name].result(30)
    worker, connector = folder / "worker.properties", folder / "sink.properties"
    worker.write_text(_lines(_worker(folder, bootstrap)))
    connector.write_text(_lines(_connector(name, folder, bootstrap, topic)))
    java, heap, *rest = java_command([libraries], _HEAP_MB, _MAIN, worker, connector)
    process = ServerProcess(folder, "the Iceberg Kafka Connect sink")
    began = time.time()
    process.start([java, heap, "-Dlog4j2.level=INFO", *rest])
    try:
        process.wait_until(lambda: _is_placed(folder / "log", topic), _SECONDS)
        placed = time.time()
        process.wait_until(lambda: _committed(catalog) >= records, _SECONDS)
    finally:
        process.stop()
    _check(catalog, records)
    snapshots = catalog.load_table(_TABLE).metadata.snapshots
    done = next(s for s in snapshots if int(s.summary["total-records"]) >= records).timestamp_ms / 1000  # type: ignore[index]
    return Sunk(records, done - placed, done - began, len(snapshots))


def _table(folder: Path) -> SqlCatalog:
    where = f"sqlite:///{folder}/catalog.db"
    catalog = SqlCatalog(_CATALOG, uri=where, warehouse=(folder / "warehouse").as_uri())
    catalog.create_namespace(_TABLE.partition(".")[0])
    catalog.create_table(_TABLE, _EVENT)
    return catalog


def _worker(folder: Path, bootstrap: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": bootstrap,
        "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "false",
        "offset.storage.file.filename": folder / "offsets",
        "offset.flush.interval.ms": 1000,
        "plugin.discovery": "service_load",
        "listeners": f"http://127.0.0.1:{free_port()}",
    }


def _connector(name: str, folder: Path, bootstrap: str, topic: str) -> dict[str, Any]:
    return {
        "name": name,
        "connector.class": "org.apache.iceberg.connect.IcebergSinkConnector",
        "tasks.max": 2,
        "topics": topic,
        "iceberg.tables": _TABLE,
        "iceberg.control.topic": name,
        "iceberg.control.commit.interval-ms": COMMIT_SECONDS * 1000,
        "iceberg.kafka.bootstrap.servers": bootstrap,
        "iceberg.kafka.auto.offset.reset": "earliest",
        "iceberg.catalog": _CATALOG,
        "iceberg.catalog.catalog-impl": "org.apache.iceberg.jdbc.JdbcCatalog",
        "iceberg.catalog.uri": f"jdbc:sqlite:{folder}/catalog.db",
        "iceberg.catalog.jdbc.schema-version": "V1",
        "iceberg.catalog.warehouse": (folder / "warehouse").as_uri(),
    }


def _lines(settings: dict[str, Any]) -> str:
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _is_placed(log: Path, topic: str) -> bool:
    """Whether a consumer of the topic knows where it begins: its first fetch comes next."""
    return f"Resetting offset for partition {topic}-" in log.read_text(errors="replace")


def _committed(catalog: SqlCatalog) -> int:
    time.sleep(_LOOK_SECONDS)
    newest = catalog.load_table(_TABLE).metadata.current_snapshot()
    return 0 if newest is None or newest.summary is None else int(newest.summary["total-records"] or 0)


def _check(catalog: SqlCatalog, records: int) -> None:
    ids = _ids(catalog)
    rows, different = sum(len(one) for one in ids), pl.concat(ids).n_unique()
    if (rows, different) != (records, records):
        raise InfraError(f"the sink's table holds {rows} rows, {different} different of {records} records")


def _ids(catalog: SqlCatalog) -> list[pl.Series]:
    batches: Iterator[pa.RecordBatch] = (
        catalog.load_table(_TABLE).scan(selected_fields=("id",)).to_arrow_batch_reader()
    )
    return [pl.Series(batch.column("id")) for batch in batches]
