"""Consumers that are stopped, frozen, restarted or held up by a real server, and a topic with real holes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tomli_w
from confluent_kafka import Consumer, Producer, TopicPartition

from infra.kafka import Kafka
from infra.vault import Vault
from infra.vault.setup import set_up
from lake import verify
from lake.kafka import Progress
from service.runtime import Runtime, initialise, open_runtime
from tests.keys.servers import schema_of
from tests.lake.test_kafka import ROOT, check, ingested, running, wait_until
from tests.lake.topics import PARTITIONS, Topic, event, exactly, held
from tests.world import PAID, VIEWS


@pytest.fixture
def topic(kafka: Kafka) -> Topic:
    """A fresh topic."""
    return Topic(kafka.address()["KAFKA_BOOTSTRAP"])


@contextmanager
def following(
    world: Runtime, topic: Topic, commit_seconds: float
) -> Iterator[tuple[subprocess.Popen[str], list[list[int]]]]:
    """A consumer process of the group `g`, and what it says: partitions, bytes held."""
    arguments = [str(world.home), topic.bootstrap, topic.name, "g", "follow", str(commit_seconds)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.lake.kafka_worker", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    said: list[list[int]] = []

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.append([int(one) for one in line.split()])

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield process, said
    finally:
        process.kill()
        process.wait()
        thread.join()
        assert process.stdout is not None
        process.stdout.close()


def test_what_was_read_is_committed_when_a_patient_consumer_is_told_to_end(
    topic: Topic, world: Runtime
) -> None:
    """With a minute between commits, SIGTERM does not wait for it, and nothing is read again."""
    with following(world, topic, commit_seconds=60) as (process, said):
        wait_until(lambda: bool(said) and said[-1][0] == PARTITIONS)
        topic.send(range(200))
        wait_until(lambda: said[-1][1] > 0)
        assert ingested(world) == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    assert ingested(world) > 0
    topic.consumer(world).run(until_caught_up=True)
    check(world, range(200))


def test_a_consumer_frozen_past_its_session_writes_nothing_that_its_successor_wrote(
    topic: Topic, world: Runtime
) -> None:
    """SIGSTOP with messages in memory; another takes over and commits them; SIGCONT; every id is there once."""
    with following(world, topic, commit_seconds=4) as (process, said):
        wait_until(lambda: bool(said) and said[-1][0] == PARTITIONS)
        topic.send(range(300))
        wait_until(lambda: said[-1][1] > 0)
        process.send_signal(signal.SIGSTOP)
        assert ingested(world) == 0
        with running(topic.consumer(world)):
            wait_until(lambda: ingested(world) == 300)
            process.send_signal(signal.SIGCONT)
            topic.send(range(300, 900))
            wait_until(lambda: said[-1][0] == PARTITIONS // 2)
            wait_until(lambda: ingested(world) == 900)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    check(world, range(900))


def test_a_restarted_member_keeps_its_partitions_and_the_others_theirs(topic: Topic, world: Runtime) -> None:
    """Static membership: nobody is asked to give anything up."""
    said: list[Progress] = []
    with open_runtime(world.home) as other, running(topic.consumer(world, member="one"), said.append):
        with running(topic.consumer(other, member="two")):
            wait_until(lambda: bool(said) and said[-1].partitions == PARTITIONS // 2)
            halves = {"one": PARTITIONS // 2, "two": PARTITIONS // 2}  # given up by one, then given to two
            wait_until(lambda: {name: len(found) for name, found in places(topic).items()} == halves)
            before = places(topic)
        at = len(said)
        topic.send(range(200))
        with running(topic.consumer(other, member="two")):
            wait_until(lambda: ingested(world) == 200)
            assert places(topic) == before
        assert {one.partitions for one in said[at:]} == {PARTITIONS // 2}
    check(world, range(200))


def places(topic: Topic) -> dict[str, set[int]]:
    """Member → its partitions, by the broker's word."""
    described = topic.admin.describe_consumer_groups(["g"])["g"].result(30)
    return {
        one.group_instance_id: {place.partition for place in one.assignment.topic_partitions}
        for one in described.members
    }


def test_a_compacted_topic_has_holes_that_are_no_gap(kafka: Kafka, world: Runtime) -> None:
    """What the broker has compacted away is blank, what it still has is there once."""
    config = {
        "cleanup.policy": "compact",
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.001",
        "max.compaction.lag.ms": "100",
    }
    topic = Topic(kafka.address()["KAFKA_BOOTSTRAP"], partitions=1, config=config)
    producer = Producer({"bootstrap.servers": topic.bootstrap})
    for number in range(200):
        topic.put(producer, json.dumps(event(number)).encode(), key=f"key-{number % 40}")
    producer.flush()
    for number in range(200, 203):  # the segment that is written to is not compacted
        time.sleep(0.2)
        topic.put(producer, json.dumps(event(number)).encode(), key=f"key-{number}")
        producer.flush()
    wait_until(lambda: len(offsets(topic)) < 60, 90)
    left = offsets(topic)
    done = topic.consumer(world).run(until_caught_up=True)
    assert done.lag == 0
    assert held(world) == exactly(left)
    found = verify(world.lake, deep=True)
    assert (found.problems, found.events) == ((), len(left))
    assert topic.consumer(world, group="again").run(until_caught_up=True).events == 0


def offsets(topic: Topic) -> list[int]:
    """Which messages the only partition still has; they were sent in the order of their numbers."""
    reader = Consumer({"bootstrap.servers": topic.bootstrap, "group.id": f"read-{time.time_ns()}"})
    _, high = reader.get_watermark_offsets(TopicPartition(topic.name, 0), timeout=30)
    reader.assign([TopicPartition(topic.name, 0, 0)])
    found: list[int] = []
    while not found or found[-1] < high - 1:
        message = reader.poll(30)
        assert message is not None
        assert message.error() is None
        found.append(message.offset() or 0)
    reader.close()
    return found


def test_a_vault_that_is_away_for_a_minute_is_waited_for(
    topic: Topic, vault: Vault, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Several attempts find nobody; when the server is back, what was read lands by itself."""
    home, where = tmp_path / "lake", vault.address()
    prefix = schema_of(home)
    set_up(vault.client(), vault.folder / prefix, prefix)
    roles = vault.folder / prefix / "roles" / "purge"
    home.mkdir()
    settings = {
        "projections": {"files": [str(VIEWS)]},
        "keys": {
            "vault": {
                "address": where["VAULT_ADDR"],
                "ca_file": where["VAULT_CACERT"],
                "prefix": prefix,
                "role_id_file": str(roles / "role_id"),
                "secret_id_file": str(roles / "secret_id"),
            }
        },
    }
    (home / "shredlake.toml").write_text(tomli_w.dumps(settings))
    initialise(home)
    with open_runtime(home) as world:
        world.lake.types.register(PAID)
        topic.send(range(50))
        with running(topic.consumer(world)):
            wait_until(lambda: ingested(world) == 50)
            vault.process.stop(signal.SIGKILL)
            back_at = time.monotonic() + 60
            try:
                world.keyring.tree.forget_cached()
                world.keyring.resident.forget_all()
                topic.send(range(50, 150))
                wait_until(lambda: time.monotonic() > back_at, 90)
                assert caplog.text.count("the batch waits") >= 5
                assert ingested(world) == 50
            finally:
                vault.start()
            wait_until(lambda: ingested(world) == 150, 120)
        check(world, range(150))
