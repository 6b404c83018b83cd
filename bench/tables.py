"""Figures of the table itself: commits over thousands of snapshots, one person out of millions, memory."""

from __future__ import annotations

import resource
import statistics
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from pyiceberg.catalog.sql import SqlCatalog

from bench.clicks import CLICKED, clicked
from bench.measure import Figure, at_most, seconds
from lake import HttpBatch, Maintenance, UpkeepPolicy
from lake.offsets import ranges_of
from lake.table import summary_of
from service.runtime import Runtime, initialise, open_runtime

COMMITS: Final = 5000
STOCK_COMMITS: Final = 500
ROUND: Final = 50
PEOPLE: Final = 100_000
STEADY_RATE: Final = 20_000
STEADY_SECONDS: Final = 30


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


def steady(folder: Path, bootstrap: str, follow: Any) -> list[Figure]:
    """Accepted by the broker → committed, at a steady rate.

    Args:
        follow: runs a consumer into a runtime until told to stop.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic("steady", 4)])["steady"].result(30)
    accepted: dict[tuple[int, int], float] = {}
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})

    def noted(error: object, message: Any) -> None:
        accepted[message.partition(), message.offset()] = time.time()

    def produce() -> None:
        began = time.monotonic()
        for number in range(STEADY_RATE * STEADY_SECONDS):
            producer.produce("steady", clicked(number, PEOPLE), on_delivery=noted)
            if number % 200 == 0:
                producer.poll(0)
                ahead = number / STEADY_RATE - (time.monotonic() - began)
                if ahead > 0:
                    time.sleep(ahead)
        producer.flush()

    with _world(folder / "steady") as runtime:
        stop = threading.Event()
        thread = threading.Thread(target=produce)
        consumer = threading.Thread(target=follow, args=(runtime, "steady", stop))
        consumer.start()
        time.sleep(3)
        thread.start()
        thread.join()
        time.sleep(5)
        stop.set()
        consumer.join()
        waited = _waits(runtime, accepted)
    waited.sort()
    return [
        Figure(f"accepted → committed at {STEADY_RATE:,} events/s: median", waited[len(waited) // 2], "s"),
        at_most("accepted → committed: p99", waited[len(waited) * 99 // 100], "s", 2),
        at_most(
            "memory of the process, producer and consumer together",
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "MiB",
            1024,
        ),
    ]


def _waits(runtime: Runtime, accepted: dict[tuple[int, int], float]) -> list[float]:
    found = []
    for snapshot in runtime.lake.events.history():
        for one in ranges_of(summary_of(snapshot)):
            partition = int(one.source.rpartition(":")[2])
            landed = snapshot.timestamp_ms / 1000
            found += [
                landed - accepted[partition, offset]
                for offset in range(one.start, one.end)
                if (partition, offset) in accepted
            ]
    return found
