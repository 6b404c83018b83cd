"""A real file system that is full: nothing is lost, nothing is left lying in the way."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.kafka import Kafka
from keys import DatabaseUnavailable
from lake import CatalogUnavailable, Maintenance, StorageFailed, UpkeepPolicy, verify
from lake.objects import local_path
from lake.topicbook import FeedingTopic, TopicBook
from service.runtime import Runtime
from tests.lake.far import make
from tests.lake.test_kafka import check, ingested, running, wait_until
from tests.lake.topics import Topic
from tests.smalldisk import SmallDisk, mounted
from tests.world import make_world, paid, send

SIZE_MIB = 24


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A mounted tmpfs."""
    with mounted(tmp_path / "small", SIZE_MIB) as found:
        yield found


@pytest.fixture
def lake(disk: SmallDisk) -> Iterator[Runtime]:
    """A lake on it."""
    runtime = make_world(disk.folder / "lake")
    yield runtime
    runtime.close()


def data_files(folder: Path) -> set[str]:
    """Every data file there is, in the table or not."""
    return {str(path) for path in folder.rglob("*.parquet")}


def referred(world: Runtime) -> set[str]:
    """Data files of the table."""
    return {local_path(file.file_path) for file in world.lake.events.kept_files()}


def test_a_consumer_waits_for_room_and_leaves_no_part_of_a_file(
    disk: SmallDisk, tmp_path: Path, kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    """Several attempts meet the full disk of the tables; when there is room, every id is there once."""
    topic = Topic(kafka.address()["KAFKA_BOOTSTRAP"])
    topic.send(range(100))
    with make(tmp_path / "lake", {"warehouse": disk.folder.as_uri()}) as world:
        with running(topic.consumer(world)):
            wait_until(lambda: ingested(world) == 100)
            disk.fill()
            topic.send(range(100, 300))
            wait_until(lambda: caplog.text.count("the batch waits") >= 3)
            assert data_files(disk.folder) == referred(world)
            disk.make_room()
            wait_until(lambda: ingested(world) == 300)
        check(world, range(300))
        assert data_files(disk.folder) == referred(world)
    assert "StorageFailed" in caplog.text


def test_a_consumer_waits_for_room_beside_the_keys(
    disk: SmallDisk, tmp_path: Path, kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    """The tables have room, key pages, leases and catalog have none: new people cannot be named meanwhile."""
    warehouse = tmp_path / "roomy"
    warehouse.mkdir()
    topic = Topic(kafka.address()["KAFKA_BOOTSTRAP"])
    topic.send(range(100))
    with make(disk.folder / "lake", {"warehouse": warehouse.as_uri()}) as world:
        with running(topic.consumer(world)):
            wait_until(lambda: ingested(world) == 100)
            disk.fill()
            topic.send(range(100, 300))
            wait_until(lambda: caplog.text.count("the batch waits") >= 3)
            disk.make_room()
            wait_until(lambda: ingested(world) == 300)
        check(world, range(300))
    assert "has no room left" in caplog.text


def test_a_round_of_upkeep_makes_the_room_that_it_needs(disk: SmallDisk, lake: Runtime) -> None:
    """What nothing refers to goes before the first commit, so a full disk heals by itself."""
    for number in range(6):
        send(lake, [paid("ann", number, event_id=str(number))])
    left_over = lake.home / "lake" / "warehouse" / "lake" / "events" / "data" / "left-over.parquet"
    left_over.write_bytes(b"\0" * (1 << 20))
    disk.fill()
    with pytest.raises((StorageFailed, CatalogUnavailable)):
        send(lake, [paid("ann", 6, event_id="6")])
    keeper = Maintenance(lake.lake, UpkeepPolicy(merge_files=4, keep_snapshots=1, grace_seconds=0))
    done = keeper.run(datetime.now(UTC))
    assert [step.what for step in done][:2] == ["sweep", "tag"]
    assert not left_over.exists()
    send(lake, [paid("ann", 6, event_id="6")])
    assert verify(lake.lake, deep=True).problems == ()
    assert ingested(lake) == 7


def test_a_book_of_topics_on_a_full_disk_is_an_error_that_a_retry_mends(disk: SmallDisk) -> None:
    """It is written once an hour by a consumer that goes on meanwhile."""
    book = TopicBook(disk.folder / "topics.db")
    topics = [FeedingTopic("c", str(n), "t" * 200, None, 1, False, "now") for n in range(5000)]
    disk.fill()
    with pytest.raises(DatabaseUnavailable) as caught:
        book.note(topics)
    assert caught.value.retry_helps
    disk.make_room()
    book.note(topics)
    assert len(book.all()) == 5000
    book.close()
