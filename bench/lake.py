"""Suite `lake`: a real Kafka broker on this machine → sealed → committed.

The yardstick runs in the same process tree: the same consumer and parser, and pyiceberg's own append of
the same events unsealed, with the offsets in the same snapshot.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import shutil
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import polars as pl
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from pyiceberg.catalog.sql import SqlCatalog

from bench.accepted import accepted
from bench.asof import as_of
from bench.clicks import CLICKED, clicked, person_of
from bench.files import files
from bench.measure import Figure, at_least, at_most, peak_mib
from bench.peers import connectsink
from bench.replays import replays
from bench.tables import commits, steady
from infra.errors import NotAvailable
from infra.kafka import Kafka
from lake import Ingestor
from lake.backlog import CommitRule
from lake.ingest import Part
from lake.kafka import KafkaIngest
from lake.messages import CloudEventMessages
from lake.offsets import OFFSETS
from lake.subscription import Subscription
from service.kafka import run_workers
from service.runtime import Runtime, initialise, open_runtime

EVENTS: Final = 2_000_000
PEOPLE: Final = 100_000
PARTITIONS: Final = 8
RUNS: Final = 3
_LOOK_SECONDS: Final = 0.02
_REBALANCE_DELAY_MS: Final = 3000
"""Kafka's own default, with which the members of a new group begin together, ours and the sink's."""


def run() -> list[Figure]:
    """All figures of the suite."""
    folder = Path(tempfile.mkdtemp(prefix="shredlake-bench-"))
    try:
        with _broker(folder) as bootstrap:
            _fill(bootstrap)
            kafka = _kafka(folder, bootstrap)
            found = [
                *kafka,
                *_sink(folder, bootstrap, kafka[1]),
                *steady(folder, bootstrap),
            ]
        return [
            *found,
            *files(folder),
            *commits(folder),
            *replays(folder),
            *as_of(folder),
            *accepted(folder),
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _broker(folder: Path) -> Iterator[str]:
    server = Kafka(folder, rebalance_delay_ms=_REBALANCE_DELAY_MS)
    try:
        yield server.start()["KAFKA_BOOTSTRAP"]
    finally:
        server.stop()


def _fill(bootstrap: str) -> None:
    """Events of 300 bytes, twenty a person, keyed by the person."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic("clicks", PARTITIONS)])["clicks"].result(30)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 50, "batch.size": 1_000_000})
    for number in range(EVENTS):
        person = person_of(number, PEOPLE)
        producer.produce("clicks", clicked(number, PEOPLE), key=person)
        if number % 10_000 == 0:
            producer.poll(0)
            producer.flush()
    producer.flush()


def _kafka(folder: Path, bootstrap: str) -> list[Figure]:
    ours, theirs, two = [], [], []
    peaks: list[float] = []
    for at in range(RUNS):
        with _lake(folder / f"lake-{at}", bootstrap) as runtime:
            ours.append(EVENTS / _consume(bootstrap, runtime, runtime.lake.ingestor()))
            theirs.append(EVENTS / _consume(bootstrap, runtime, PlainAppend(folder / f"plain-{at}")))
        with _lake(folder / f"crew-{at}", bootstrap) as runtime:
            two.append(EVENTS / _crew(bootstrap, runtime, peaks))
        for name in ("lake", "plain", "crew"):
            shutil.rmtree(folder / f"{name}-{at}")
    ratio = statistics.median(mine / yours for mine, yours in zip(ours, theirs, strict=True))
    return [
        Figure("Kafka → sealed → committed, one consumer", statistics.median(ours), "events/s"),
        at_least("Kafka → sealed → committed, two consumers", statistics.median(two), "events/s", 200_000),
        Figure("Kafka → plain pyiceberg append, one consumer", statistics.median(theirs), "events/s"),
        at_least("sealed / plain append, same consumer", ratio, "×", 1.0, "pyiceberg append, same parser"),
        at_most("memory of a consumer that catches up", max(peaks), "MiB", 1024),
    ]


def _sink(folder: Path, bootstrap: str, ours: Figure) -> list[Figure]:
    """The peer, once a run of the suite: its worker takes half a minute."""
    try:
        done = connectsink.sink(folder / "sink", bootstrap, "clicks", EVENTS)
    except NotAvailable as missing:
        sys.stderr.write(f"the Iceberg Kafka Connect sink is left out: {missing}\n")
        name = "sealed, two consumers / Connect sink"
        return [Figure(name, 0.0, "×", "≥ 3", False, "missing on this machine, so not met")]
    rate = done.records / done.seconds
    return [
        Figure("Iceberg Kafka Connect sink, two tasks, its start left out", rate, "events/s"),
        at_least("sealed, two consumers / Connect sink", ours.value / rate, "×", 3.0, "the same topic"),
    ]


@contextmanager
def _lake(home: Path, bootstrap: str) -> Iterator[Runtime]:
    initialise(home)
    config = home / "shredlake.toml"
    config.write_text(config.read_text() + f'\n[kafka]\nbootstrap = "{bootstrap}"\ntopics = ["clicks"]\n')
    with open_runtime(home) as runtime:
        runtime.lake.types.register(CLICKED)
        yield runtime


def _consume(bootstrap: str, runtime: Runtime, ingestor: Any) -> float:
    """Seconds from the consumer's place in the topic to the last commit."""
    subscription = Subscription(bootstrap, ("clicks",), f"bench-{uuid.uuid4().hex}")
    consumer = KafkaIngest(
        subscription,
        CloudEventMessages(runtime.lake.types),
        ingestor,
        runtime.lake.topics.note,
        CommitRule(),
    )
    with _placing(bootstrap, subscription.group) as placed:
        consumer.run(until_caught_up=True)
        ended = time.time()
    return ended - placed.get()


def _crew(bootstrap: str, runtime: Runtime, peaks: list[float]) -> float:
    """Seconds from the first consumer's place in the topic to the last commit; as of the sink, without the start."""
    assert runtime.settings.kafka is not None

    def look(_: object) -> None:  # after every commit
        for one in multiprocessing.active_children():
            with suppress(OSError, ValueError):  # it has ended meanwhile
                peaks.append(peak_mib(one.pid or 0))

    with _placing(bootstrap, runtime.settings.kafka.group) as placed:
        run_workers(
            runtime.home,
            2,
            until_caught_up=True,
            accept_gaps=False,
            should_stop=lambda: False,
            show=look,
        )
    return runtime.lake.events.history()[0].timestamp_ms / 1000 - placed.get()


@contextmanager
def _placing(bootstrap: str, group: str) -> Iterator[queue.Queue[float]]:
    """Gives the time at which a group's first member has its place."""
    found = queue.Queue[float]()
    watch = threading.Thread(target=lambda: found.put(_placed(bootstrap, group)))
    watch.start()
    yield found
    watch.join()


def _placed(bootstrap: str, group: str) -> float:
    """When the first member of a group had partitions, by the clock of this machine."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    while True:
        with suppress(KafkaException):  # a young broker knows no groups yet
            found = admin.describe_consumer_groups([group])[group].result(30).members
            if any(one.assignment.topic_partitions for one in found):
                return time.time()
        time.sleep(_LOOK_SECONDS)


class PlainAppend:
    """What `Ingestor` does for a consumer, without sealing: the yardstick.

    Args:
        folder: of its catalog and table.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        catalog = SqlCatalog("plain", uri=f"sqlite:///{folder}/c.db", warehouse=folder.as_uri())
        catalog.create_namespace("lake")
        self._catalog = catalog
        self._table: Any = None
        self._offsets: dict[str, int] = {}

    def offsets(self) -> dict[str, int]:
        """See `Ingestor.offsets`."""
        return dict(self._offsets)

    def land(self, parts: Sequence[Part]) -> None:
        """See `Ingestor.land`."""
        self._offsets |= {name: parsed.end for name, parsed in parts}
        frames = [frame for _, parsed in parts for _, frame in parsed.accepted]
        if not frames:
            return
        table = pl.concat(frames).to_arrow()
        if self._table is None:
            self._table = self._catalog.create_table("lake.plain", table.schema)
        self._table.append(table, snapshot_properties={OFFSETS: json.dumps(self._offsets)})


assert set(dir(PlainAppend)) >= {"offsets", "land"} <= set(dir(Ingestor))
