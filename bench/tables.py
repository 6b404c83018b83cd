"""Figures of the table itself: commits over thousands of snapshots, one person out of millions, memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from pyiceberg.catalog.sql import SqlCatalog

from bench.clicks import CLICKED, clicked
from bench.measure import Figure, at_most, peak_mib, seconds
from lake import HttpBatch, Maintenance, UpkeepPolicy
from lake.offsets import ranges_of
from lake.table import summary_of
from service.runtime import Runtime, initialise, open_runtime

COMMITS: Final = 5000
STOCK_COMMITS: Final = 1000
ROUND: Final = 50
PEOPLE: Final = 100_000
STEADY_RATE: Final = 20_000
STEADY_SECONDS: Final = 40
_JOIN_SECONDS: Final = 6.0


def _world(home: Path) -> Runtime:
    initialise(home)
    runtime = open_runtime(home)
    runtime.lake.types.register(CLICKED)
    return runtime


def commits(folder: Path) -> list[Figure]:
    """Latency of a commit from the tenth to the five-thousandth, upkeep running every fifty."""
    took: list[float] = []
    with _world(folder / "commits") as runtime:
        ingestor = runtime.lake.ingestor()
        policy = UpkeepPolicy(merge_files=ROUND, keep_seconds=0, grace_seconds=0)
        upkeep = Maintenance(runtime.lake, policy)
        for number in range(COMMITS):
            batch = HttpBatch([clicked(number, 7)], f"k{number}", runtime.lake.types)
            took.append(seconds(lambda batch=batch: ingestor.run(batch)))  # type: ignore[misc]
            if number % ROUND == ROUND - 1:
                upkeep.run(datetime.now(UTC))
        files = len(runtime.lake.events.files())
    early = statistics.median(took[5:25]) * 1000
    late = statistics.median(took[-50:]) * 1000
    stock = _stock(folder / "stock")
    stock_early, stock_late = statistics.median(stock[5:25]) * 1000, statistics.median(stock[-20:]) * 1000
    return [
        at_most("a commit, around commit 10", early, "ms", 30),
        at_most(f"a commit, around commit {COMMITS:,}", late, "ms", 30),
        at_most(f"a commit at {COMMITS:,} / at 10", late / early, "×", 1.5, "the same run"),
        Figure(f"live files after {COMMITS:,} commits", files, "files"),
        Figure("stock pyiceberg append, around commit 10", stock_early, "ms"),
        Figure(f"stock pyiceberg append, around commit {STOCK_COMMITS}", stock_late, "ms"),
    ]


def _stock(folder: Path) -> list[float]:
    folder.mkdir(parents=True)
    catalog = SqlCatalog("stock", uri=f"sqlite:///{folder}/c.db", warehouse=folder.as_uri())
    catalog.create_namespace("s")
    rows = pa.table({"page": ["/shop/1"], "number": [1]})
    table = catalog.create_table("s.t", rows.schema)
    return [seconds(lambda: table.append(rows)) for _ in range(STOCK_COMMITS)]


def steady(folder: Path, bootstrap: str) -> list[Figure]:
    """Accepted by the broker → committed, at a steady rate; the consumer is `shredlake ingest kafka`."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic("steady", 4)])["steady"].result(30)
    home = folder / "steady"
    _world(home).close()
    config = home / "shredlake.toml"
    config.write_text(config.read_text() + f'\n[kafka]\nbootstrap = "{bootstrap}"\ntopics = ["steady"]\n')
    command = [sys.executable, "-c", "from service.cli import main; main()", "--home", str(home)]
    with subprocess.Popen([*command, "ingest", "kafka"], stderr=subprocess.DEVNULL) as consumer:
        time.sleep(_JOIN_SECONDS)
        accepted = _produce(bootstrap)
        time.sleep(_JOIN_SECONDS)
        peak = max(peak_mib(pid) for pid in _family(consumer.pid))
        consumer.terminate()
    with open_runtime(home) as runtime:
        waits = _waits(runtime, accepted)
    assert len(waits) == STEADY_RATE * STEADY_SECONDS
    half = sorted(accepted.values())[len(accepted) // 2]  # by then everybody is known and nothing waits
    new = sorted(wait for at, wait in waits if at < half)
    known = sorted(wait for at, wait in waits if at >= half)
    return [
        Figure(f"accepted → committed at {STEADY_RATE:,} events/s: median", known[len(known) // 2], "s"),
        at_most("accepted → committed: p99", known[len(known) * 99 // 100], "s", 2),
        Figure(
            f"the same while {PEOPLE:,} new people come in five seconds: p99", new[len(new) * 99 // 100], "s"
        ),
        at_most("memory of the consumer, 100 k new people", peak, "MiB", 1024),
    ]


def _produce(bootstrap: str) -> dict[tuple[int, int], float]:
    """(partition, offset) → when the broker said that it has it."""
    accepted: dict[tuple[int, int], float] = {}
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})

    def noted(error: object, message: Any) -> None:
        accepted[message.partition(), message.offset()] = time.time()

    began = time.monotonic()
    for number in range(STEADY_RATE * STEADY_SECONDS):
        producer.produce("steady", clicked(number, PEOPLE), on_delivery=noted)
        if number % 200 == 0:
            producer.poll(0)
            ahead = number / STEADY_RATE - (time.monotonic() - began)
            if ahead > 0:
                time.sleep(ahead)
    producer.flush()
    return accepted


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _family(int(child)))]


def _waits(runtime: Runtime, accepted: dict[tuple[int, int], float]) -> list[tuple[float, float]]:
    """(when it was accepted, seconds until it was in the table) of every event."""
    found = []
    for snapshot in runtime.lake.events.history():
        for one in ranges_of(summary_of(snapshot)):
            partition = int(one.source.rpartition(":")[2])
            landed = snapshot.timestamp_ms / 1000
            found += [
                (accepted[partition, offset], landed - accepted[partition, offset])
                for offset in range(one.start, one.end)
                if (partition, offset) in accepted
            ]
    return found
