"""Exactly once from a real broker, whatever happens to consumers, brokers, custodian and store."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewPartitions, OffsetSpec
from confluent_kafka.cimpl import TopicPartition

from infra.kafka import Kafka
from keys import Effects, SubjectId
from lake import EventRead, Housekeeping, Upkeep, dead_letters, privacy_lint, verify
from lake.backlog import CommitRule
from lake.errors import TopicGap, TopicGone, TopicUnavailable
from lake.kafka import KafkaIngest, Progress
from lake.mapping import parse_mapping
from lake.messages import CloudEventMessages, MappedMessages
from lake.offsets import offsets_of, ranges_of
from lake.subscription import Subscription
from lake.table import summary_of
from purge import payload_of
from service.doctor import examine
from service.runtime import Runtime, open_runtime
from tests.lake.topics import PARTITIONS, SOON, Topic, event, exactly, held
from tests.world import PAID, erase, make_world, shred

ROOT = Path(__file__).parents[2]


@pytest.fixture
def topic(kafka: Kafka) -> Topic:
    """A fresh topic."""
    return Topic(kafka.address()["KAFKA_BOOTSTRAP"])


@contextmanager
def running(
    consumer: KafkaIngest, report: Callable[[Progress], None] = lambda progress: None
) -> Iterator[threading.Thread]:
    """A consumer in a thread, stopped at the end; its error is raised."""
    stop, failed = threading.Event(), []

    def work() -> None:
        try:
            consumer.run(should_stop=stop.is_set, report=report)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(60)
    if failed:
        raise failed[0]


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Looks again and again."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to be in time"
        time.sleep(0.05)


def ingested(world: Runtime) -> int:
    """Events by the summaries alone."""
    return verify(world.lake).events


def check(world: Runtime, numbers: range) -> None:
    """Every number once, ranges without gap or overlap, nothing personal in the metadata."""
    assert held(world) == exactly(numbers)
    found = verify(world.lake, deep=True)
    assert found.problems == ()
    assert found.events == len(numbers)
    assert privacy_lint(world.lake) == []


# -- what messages are ------------------------------------------------------------------------------


def test_where_much_is_to_be_read_a_commit_is_of_few_partitions(topic: Topic, world: Runtime) -> None:
    """A person's events lie in one partition: so there are more of them in a block."""
    producer = Producer({"bootstrap.servers": topic.bootstrap, "log_level": 0})
    numbers = range(1500 * PARTITIONS)
    for number in numbers:
        long = event(number) | {"unknown": "x" * 2000}
        topic.put(producer, json.dumps(long).encode(), partition=number % PARTITIONS)
        producer.poll(0)
    assert producer.flush(60) == 0
    rule = CommitRule(seconds=60, events=1500)
    assert topic.consumer(world, rule=rule).run(until_caught_up=True).events == len(numbers)
    spans = [ranges_of(summary_of(one)) for one in world.lake.events.history()]
    assert max(map(len, spans)) <= 2
    check(world, numbers)


def test_a_topic_is_in_the_table_once_also_when_it_is_read_again(topic: Topic, anywhere: Runtime) -> None:
    """By whatever group; Kafka's own offsets do not matter."""
    topic.send(range(500))
    first = topic.consumer(anywhere).run(until_caught_up=True)
    assert (first.events, first.lag) == (500, 0)
    again = topic.consumer(anywhere, group="another").run(until_caught_up=True)
    assert again.events == 0
    topic.send(range(500, 620))
    assert topic.consumer(anywhere).run(until_caught_up=True).events == 120
    check(anywhere, range(620))
    head = anywhere.lake.events.snapshot()
    assert head is not None
    offsets = offsets_of(summary_of(head))
    assert len(offsets) == PARTITIONS
    assert sum(offsets.values()) == 620
    assert all(name.startswith("kafka:") and topic.name not in name for name in offsets)


def test_attributes_may_come_in_headers(topic: Topic, world: Runtime) -> None:
    """CloudEvents in binary mode."""
    producer = Producer({"bootstrap.servers": topic.bootstrap})
    for number in range(20):
        one = event(number)
        headers = {f"ce_{k}": str(v).encode() for k, v in one.items() if k != "data"}
        topic.put(producer, json.dumps(one["data"]).encode(), headers=list(headers.items()))
    producer.flush()
    assert topic.consumer(world).run(until_caught_up=True).events == 20
    check(world, range(20))


def test_plain_json_comes_by_a_mapping(topic: Topic, world: Runtime) -> None:
    """Types, scale, templates; what does not fit goes to the dead letters."""
    document = {
        "format": {"kind": "json"},
        "event": {"type": "Paid", "source": "shop", "subject": "customer-{who}", "time": "at"},
        "fields": {"cents": {"from": "price", "scale": 100}, "note": "text"},
    }
    mapped = MappedMessages(parse_mapping(document, world.lake.types))
    producer = Producer({"bootstrap.servers": topic.bootstrap})
    good = {"who": 7, "price": 12.5, "at": "2026-03-01T12:00:00Z", "text": "hello", "ignored": [1]}
    for value in (good, good | {"price": "much"}, good | {"who": None}, [1], "{"):
        raw = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        topic.put(producer, raw, partition=1)
    producer.flush()
    done = topic.consumer(world, message_format=mapped).run(until_caught_up=True)
    assert (done.events, done.dead) == (1, 4)
    assert held(world) == exactly([1250])
    reasons = {letter.reason for letter in dead_letters(world.lake)}
    assert reasons == {"wrong_type", "missing_subject", "not_an_object", "malformed_json"}


def test_what_does_not_fit_is_kept_and_a_tombstone_is_no_event(topic: Topic, world: Runtime) -> None:
    """Nothing is lost, nothing stops."""
    producer = Producer({"bootstrap.servers": topic.bootstrap})
    for value in (b"\xff\xfe", b"nonsense", json.dumps(event(1)).encode(), None, b""):
        topic.put(producer, value, partition=0)
    headers = [("ce_specversion", b"1.0"), ("ce_id", b"x"), ("ce_type", b"Paid"), ("ce_source", b"s")]
    topic.put(producer, b"not json", partition=0, headers=headers)
    producer.flush()
    done = topic.consumer(world).run(until_caught_up=True)
    assert (done.events, done.dead) == (1, 3)
    assert sorted(letter.line for letter in dead_letters(world.lake)) == [0, 1, 5]
    assert verify(world.lake).problems == ()


def test_events_of_an_erased_person_are_refused(topic: Topic, anywhere: Runtime) -> None:
    """Also those that wait in the topic."""
    topic.send(range(20))
    topic.consumer(anywhere).run(until_caught_up=True)
    shred(anywhere, "person-0")
    topic.send(range(5))
    topic.send(range(20, 25))
    done = topic.consumer(anywhere).run(until_caught_up=True)
    assert (done.events, done.suppressed) == (5, 5)
    assert verify(anywhere.lake).problems == ()


def test_only_committed_transactions_count_and_their_markers_are_no_gap(
    topic: Topic, anywhere: Runtime
) -> None:
    """read_committed; aborted messages and markers leave holes."""
    settings = {"bootstrap.servers": topic.bootstrap, "transactional.id": uuid.uuid4().hex}
    producer = Producer(settings)
    producer.init_transactions(30)
    for at in range(6):
        producer.begin_transaction()
        for number in range(10 * at, 10 * at + 10):
            topic.put(producer, json.dumps(event(number)).encode(), partition=at % 2)
        producer.flush()
        producer.abort_transaction(30) if at in (1, 4) else producer.commit_transaction(30)
    topic.consumer(anywhere).run(until_caught_up=True)
    wanted = [n for n in range(60) if n // 10 not in (1, 4)]
    assert held(anywhere) == exactly(wanted)
    assert verify(anywhere.lake, deep=True).problems == ()
    assert topic.consumer(anywhere, group="again").run(until_caught_up=True).events == 0


# -- who owns a partition ---------------------------------------------------------------------------


def test_two_owners_of_every_partition_write_each_event_once(topic: Topic, anywhere: Runtime) -> None:
    """A zombie and its successor: two groups that know nothing of each other, with batches that overlap."""
    topic.send(range(300))
    larger = CommitRule(seconds=0.45, events=170, idle_seconds=0.05)
    with open_runtime(anywhere.home) as other:
        theirs = topic.consumer(other, group="two", rule=larger)
        with running(topic.consumer(anywhere, group="one")), running(theirs):
            topic.send(range(300, 1500))
            wait_until(lambda: ingested(anywhere) >= 1500)
        check(anywhere, range(1500))


def test_consumers_come_and_go_in_mid_batch(topic: Topic, anywhere: Runtime) -> None:
    """Cooperative rebalancing: whoever gets a partition goes on at the table's offset."""
    slow = CommitRule(seconds=0.6, events=10_000, idle_seconds=0.5)
    sent = threading.Thread(target=lambda: [topic.send(range(at, at + 100)) for at in range(0, 2000, 100)])
    with running(topic.consumer(anywhere, rule=slow)):
        sent.start()
        for _ in range(2):
            with open_runtime(anywhere.home) as other, running(topic.consumer(other, rule=slow)):
                time.sleep(1.5)
        sent.join()
        wait_until(lambda: ingested(anywhere) >= 2000)
    check(anywhere, range(2000))


def test_killed_consumers_lose_and_double_nothing(topic: Topic, anywhere: Runtime) -> None:
    """SIGKILL at random moments; the next one goes on."""
    topic.send(range(800))
    chance = random.Random(3)
    for attempt in range(4):
        worker = start_worker(anywhere, topic)
        time.sleep(chance.uniform(1.2, 2.4))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        topic.send(range(800 + 100 * attempt, 900 + 100 * attempt))
    assert start_worker(anywhere, topic).wait(60) == 0
    check(anywhere, range(1200))


def test_a_consumer_killed_at_every_effect_is_followed_by_one_that_completes(
    topic: Topic, anywhere: Runtime
) -> None:
    """Before the key pages, the data file, the commit, DeleteRecords: after one is before the next."""
    last: list[bytes] = []
    for kill_at in itertools.count(1):
        topic.send(range(30 * (kill_at - 1), 30 * kill_at))
        worker = start_worker(anywhere, topic, str(kill_at), "before")
        said = worker.communicate(timeout=60)[0].split()
        if worker.returncode == 0:
            break
        assert worker.returncode == -signal.SIGKILL
        assert len(said) == kill_at
        last.append(said[-1])
    assert {b"keys.provision", b"write-file", b"commit:lake.events", b"delete-records"} <= set(last)
    check(anywhere, range(30 * kill_at))
    offsets = offsets_of(summary_of(anywhere.lake.events.history()[0]))
    assert sum(low_ends(topic)) == sum(offsets.values()) == 30 * kill_at


def start_worker(world: Runtime, topic: Topic, *kill: str) -> subprocess.Popen[bytes]:
    """A consumer process in a group of its own: a dead member would hold its partitions for seconds."""
    arguments = [str(world.home), topic.bootstrap, topic.name, uuid.uuid4().hex, *kill]
    command = [sys.executable, "-m", "tests.lake.kafka_worker", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


# -- topics that change -----------------------------------------------------------------------------


def test_a_topic_deleted_and_made_again_is_another_one(topic: Topic, anywhere: Runtime) -> None:
    """Its offsets begin anew, and so do ours."""
    topic.send(range(100))
    topic.consumer(anywhere).run(until_caught_up=True)
    topic.remove()
    topic.make()
    topic.send(range(100, 150))
    assert topic.consumer(anywhere).run(until_caught_up=True).events == 50
    check(anywhere, range(150))


def test_a_topic_made_again_under_a_running_consumer_is_noticed(topic: Topic, anywhere: Runtime) -> None:
    """Neither stalled nor mixed up."""
    topic.send(range(100))
    with running(topic.consumer(anywhere)):
        wait_until(lambda: ingested(anywhere) == 100)
        topic.remove()
        time.sleep(0.5)
        topic.make()
        topic.send(range(100, 300))
        wait_until(lambda: ingested(anywhere) == 300)
    check(anywhere, range(300))


def test_to_catch_up_with_a_topic_made_again_is_to_reach_its_end(topic: Topic, world: Runtime) -> None:
    """What the topic that is gone held at the start is waited for no more."""
    topic.send(range(100))
    made: list[bool] = []

    def make_again() -> bool:
        if not made:
            made.append(True)
            topic.remove()
            topic.make()
            topic.send(range(100, 150))
        return False

    done = topic.consumer(world).run(until_caught_up=True, should_stop=make_again)
    assert (done.events, done.lag) == (50, 0)
    check(world, range(100, 150))


@pytest.mark.parametrize("waiting", [True, False], ids=["a batch waits", "nothing waits"])
def test_a_topic_that_is_gone_for_good_ends_its_consumer(
    topic: Topic, world: Runtime, caplog: pytest.LogCaptureFixture, waiting: bool
) -> None:
    """Within a minute, by the error's type in status and log; what was committed stays."""
    ahead = [0.0]
    said: list[Progress] = []
    root = world.home / "keys" / "root.key"
    topic.send(range(40))
    consumer = topic.consumer(world, clock_seconds=lambda: time.monotonic() + ahead[0])
    outcome = pytest.raises(TopicGone, match=topic.name)
    with outcome, running(consumer, said.append) as thread:
        wait_until(lambda: ingested(world) == 40)
        if waiting:
            root.rename(root.with_name("away"))
            world.keyring.tree.forget_cached()
            world.keyring.resident.forget_all()
            topic.send(range(40, 80))
            wait_until(lambda: "the batch waits" in caplog.text)
        topic.remove()
        if waiting:
            root.with_name("away").rename(root)
        ahead[0] += 15
        wait_until(lambda: any(one.waits_for == "TopicGone" for one in said))
        wait_until(lambda: "TopicGone" in caplog.text)
        assert thread.is_alive()
        ahead[0] += 120
        thread.join(60)
        assert not thread.is_alive()
    check(world, range(40))


def test_to_catch_up_with_a_topic_that_is_gone_for_good_is_an_error(topic: Topic, world: Runtime) -> None:
    """Nobody waits for what cannot come."""
    ahead = [0.0]
    topic.send(range(40))

    def remove() -> bool:
        if ahead[0] == 0:
            topic.remove()
        ahead[0] += 0.5
        return False

    consumer = topic.consumer(world, clock_seconds=lambda: time.monotonic() + ahead[0])
    with pytest.raises(TopicGone):
        consumer.run(until_caught_up=True, should_stop=remove)


def test_new_partitions_are_read_from_their_beginning(topic: Topic, world: Runtime) -> None:
    """Added while nobody reads."""
    topic.send(range(50))
    topic.consumer(world).run(until_caught_up=True)
    topic.admin.create_partitions([NewPartitions(topic.name, PARTITIONS + 3)])[topic.name].result(30)
    wait_until(
        lambda: len(topic.admin.list_topics(topic.name).topics[topic.name].partitions) == PARTITIONS + 3
    )
    topic.send(range(50, 200))
    topic.consumer(world).run(until_caught_up=True)
    check(world, range(200))


def test_messages_dropped_before_they_were_read_are_an_error_until_it_is_accepted(
    topic: Topic, anywhere: Runtime
) -> None:
    """And what was dropped before the lake began is none."""
    topic.send(range(40), in_turn=True)
    drop(topic, 5)
    topic.consumer(anywhere).run(until_caught_up=True)
    before = ingested(anywhere)
    assert before == 20
    topic.send(range(40, 200), in_turn=True)
    drop(topic, 30)
    with pytest.raises(TopicGap, match="begins at offset 30"):
        topic.consumer(anywhere).run(until_caught_up=True)
    assert ingested(anywhere) == before
    topic.consumer(anywhere, accept_gaps=True).run(until_caught_up=True)
    assert verify(anywhere.lake, deep=True).problems == ()
    assert ingested(anywhere) == before + 80
    assert topic.consumer(anywhere).run(until_caught_up=True).events == 0


@pytest.mark.parametrize("accepted", [False, True])
def test_messages_dropped_under_a_running_consumer_are_noticed(
    topic: Topic, world: Runtime, caplog: pytest.LogCaptureFixture, accepted: bool
) -> None:
    """While its batch waits for the keys, retention passes it by: an error, or a counted gap."""
    root = world.home / "keys" / "root.key"
    topic.send(range(40), in_turn=True)
    outcome = contextlib.nullcontext() if accepted else pytest.raises(TopicGap, match="begins at offset 50")
    with outcome, running(topic.consumer(world, accept_gaps=accepted)) as thread:
        wait_until(lambda: ingested(world) == 40)
        root.rename(root.with_name("away"))
        world.keyring.tree.forget_cached()
        world.keyring.resident.forget_all()
        topic.send(range(40, 80), in_turn=True)
        wait_until(lambda: "the batch waits" in caplog.text)
        topic.send(range(80, 400), in_turn=True)
        drop(topic, 50)
        root.with_name("away").rename(root)
        wait_until(lambda: ingested(world) >= 240 or not thread.is_alive())
    found = held(world)
    assert set(found.values()) == {1}
    assert sorted(n for n in found if n >= 200) == (list(range(200, 400)) if accepted else [])
    for partition in range(PARTITIONS):
        read = sorted(n for n in found if n < 200 and n % PARTITIONS == partition)
        assert read == list(range(partition, PARTITIONS * len(read), PARTITIONS))
        assert 10 <= len(read) <= 20
    assert verify(world.lake, deep=True).problems == ()


def drop(topic: Topic, before: int) -> None:
    """What retention does, at once."""
    places = [TopicPartition(topic.name, number, before) for number in range(PARTITIONS)]
    for future in topic.admin.delete_records(places).values():
        future.result(30)


def test_a_topic_that_is_not_there_is_said_so(kafka: Kafka, world: Runtime, topic: Topic) -> None:
    """Before anything is written; and so is a broker that is not there."""
    topic.remove()
    wait_until(lambda: topic.name not in topic.admin.list_topics(timeout=30).topics)
    with pytest.raises(TopicUnavailable, match="UNKNOWN_TOPIC"):
        topic.consumer(world)


# -- what else can fail -----------------------------------------------------------------------------


def test_a_broker_killed_and_restarted_is_waited_for(topic: Topic, kafka: Kafka, farthest: Runtime) -> None:
    """What it had acknowledged is ingested once."""
    topic.send(range(200))
    with running(topic.consumer(farthest)):
        wait_until(lambda: ingested(farthest) == 200)
        kafka.process.kill()
        time.sleep(1)
        kafka.start()
        topic.send(range(200, 500))
        wait_until(lambda: ingested(farthest) == 500, 90)
    check(farthest, range(500))


def test_one_of_three_brokers_may_be_lost(three_brokers: Kafka, farthest: Runtime) -> None:
    """Writing and reading go on; when it is back they still do."""
    topic = Topic(three_brokers.address()["KAFKA_BOOTSTRAP"], copies=3)
    safe = {"acks": "all", "enable.idempotence": True}
    topic.send(range(100), **safe)
    with running(topic.consumer(farthest)):
        wait_until(lambda: ingested(farthest) == 100)
        three_brokers.brokers[1].process.kill()
        topic.send(range(100, 300), **safe)
        wait_until(lambda: ingested(farthest) == 300, 90)
        three_brokers.start()
        topic.send(range(300, 400), **safe)
        wait_until(lambda: ingested(farthest) == 400, 90)
    check(farthest, range(400))


def test_a_custodian_that_is_away_is_waited_for(topic: Topic, anywhere: Runtime) -> None:
    """What was read stays in memory, nothing more is read, nothing is lost."""
    topic.send(range(50))
    root = anywhere.home / "keys" / "root.key"
    with running(topic.consumer(anywhere)):
        wait_until(lambda: ingested(anywhere) == 50)
        root.rename(root.with_name("away"))
        anywhere.keyring.tree.forget_cached()
        anywhere.keyring.resident.forget_all()
        topic.send(range(50, 150))
        time.sleep(2)
        assert ingested(anywhere) == 50
        root.with_name("away").rename(root)
        wait_until(lambda: ingested(anywhere) == 150)
    check(anywhere, range(150))


def test_partitions_given_during_an_outage_take_no_more_memory(
    topic: Topic, world: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    """The other consumer leaves meanwhile; what it had is read when the batch that waits has landed."""
    rule = CommitRule(seconds=0.3, events=100_000, memory_bytes=50_000, idle_seconds=0.05)
    said: list[Progress] = []
    root = world.home / "keys" / "root.key"
    topic.send(range(400))
    with open_runtime(world.home) as other, running(topic.consumer(world, rule=rule), said.append):
        with running(topic.consumer(other, rule=rule)):
            wait_until(lambda: bool(said) and said[-1].partitions == PARTITIONS // 2)
            wait_until(lambda: ingested(world) == 400)
            root.rename(root.with_name("away"))
            for one in (world, other):
                one.keyring.tree.forget_cached()
                one.keyring.resident.forget_all()
            topic.send(range(400, 1000))
            wait_until(lambda: "the batch waits" in caplog.text and said[-1].held_bytes > 0)
            topic.send(range(1000, 6000))
        wait_until(lambda: said[-1].partitions == PARTITIONS)
        wait_until(lambda: said[-1].lag == 5600)
        time.sleep(2)
        one_read = 1000 * (200 + len(json.dumps(event(5999))))
        assert max(one.held_bytes for one in said) < rule.memory_bytes + one_read
        root.with_name("away").rename(root)
        wait_until(lambda: ingested(world) == 6000)
    check(world, range(6000))


def test_a_full_disk_is_waited_for(topic: Topic, tmp_path: Path) -> None:
    """The batch lands when there is room again."""
    full = [3]

    def observe(when: str, name: str) -> None:
        if when == "before" and name == "write-file" and full[0]:
            full[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device")

    world = make_world(tmp_path / "full", effects=Effects(observe))
    topic.send(range(60))
    done = topic.consumer(world).run(until_caught_up=True)
    assert (done.events, full[0]) == (60, 0)
    check(world, range(60))


def test_upkeep_and_new_versions_beside_ingest_change_no_count(topic: Topic, anywhere: Runtime) -> None:
    """Merged, sorted, expired, and registered by another process while events of each version come."""
    stop, sent, done = threading.Event(), [0], set[str]()
    rounds = itertools.count()
    with open_runtime(anywhere.home) as keeper, running(topic.consumer(anywhere)):

        def keep() -> bool:
            upkeep, sorting = Upkeep(keeper.lake), next(rounds) % 2
            for day in sorted(upkeep.days()):
                found = upkeep.compact(day) if sorting else upkeep.merge(day, 2)
                if found.files_before:
                    done.add("sorted" if sorting else "merged")
            if Housekeeping(keeper.lake).expire(3):
                done.add("expired")
            return sent[0] >= 1000 and len(done) == 3

        sender = threading.Thread(target=send_versions, args=(topic, keeper, stop, sent))
        sender.start()
        try:
            wait_until(keep, 90)
        finally:
            stop.set()
            sender.join()
        wait_until(lambda: ingested(anywhere) == sent[0])
    check(anywhere, range(sent[0]))
    assert dead_letters(anywhere.lake) == []
    head = anywhere.lake.events.snapshot()
    assert head is not None
    replay = anywhere.lake.replay()
    events = replay.events(replay.files(head.snapshot_id), EventRead("Paid", ("cents", "till")))
    tills = [str(version_of(n)) if version_of(n) > 1 else None for n in range(sent[0])]
    assert events.frame.sort("cents")["till"].to_list() == tills


def version_of(number: int) -> int:
    """The type's version that an event is sent in."""
    return min(4, 1 + number // 250)


def send_versions(topic: Topic, world: Runtime, stop: threading.Event, sent: list[int]) -> None:
    """Events until told to stop, each version registered right before its first event."""
    producer = Producer({"bootstrap.servers": topic.bootstrap})
    fields = PAID["properties"] | {"till": {"type": "string", "anonymous": True}}
    registered = 1
    while not stop.is_set():
        for number in range(sent[0], sent[0] + 50):
            version = version_of(number)
            one = event(number) | {"schemaversion": version}
            if version > 1:
                one["data"] |= {"till": str(version)}
            if version > registered:
                registered, fields = version, fields | {f"more_{version}": {"type": "string"}}
                world.lake.types.register(PAID | {"version": version, "properties": fields})
            topic.put(producer, json.dumps(one).encode(), key=str(number))
        assert producer.flush(60) == 0
        sent[0] += 50
        time.sleep(0.1)


def test_progress_says_how_far_behind_it_is(topic: Topic, world: Runtime) -> None:
    """Lag, counts, the last commit."""
    topic.send(range(300))
    said: list[Progress] = []
    rule = CommitRule(seconds=0.3, events=50, idle_seconds=0.05)
    done = topic.consumer(world, rule=rule).run(until_caught_up=True, report=said.append)
    assert done.partitions == PARTITIONS
    assert said[-1] == done
    assert done.committed_at is not None
    assert [one.events for one in said] == sorted(one.events for one in said)
    assert done.commits >= 1


def test_nothing_of_a_person_is_in_paths_or_metadata(topic: Topic, world: Runtime) -> None:
    """The canaries are in the broker's own log, and nowhere in the lake's folder in clear."""
    topic.send(range(30))
    topic.consumer(world).run(until_caught_up=True)
    found = [path for path in world.home.rglob("*") if path.is_file() and b"secret-7" in path.read_bytes()]
    assert found == []
    assert not any("person-" in str(path) for path in world.home.rglob("*"))


# -- what the broker keeps --------------------------------------------------------------------------


def feeding(kafka: Kafka, world: Runtime, **config: str) -> Topic:
    """A topic that fed the lake with a person's events."""
    topic = Topic(
        kafka.address()["KAFKA_BOOTSTRAP"], config={k.replace("_", "."): v for k, v in config.items()}
    )
    topic.send(range(20))
    topic.consumer(world).run(until_caught_up=True)
    return topic


def test_a_receipt_says_until_when_the_topic_still_tells(kafka: Kafka, world: Runtime) -> None:
    """Retention, and the segment that is still written to; the plan says it before."""
    week, hour = 7 * 86_400_000, 3_600_000
    topic = feeding(kafka, world, retention_ms=str(week), segment_ms=str(hour))
    (planned,) = world.purge.plan(SubjectId("person-0")).open_stores
    assert planned["store"] == f"Kafka topic {topic.name}"
    began = datetime.now(UTC)
    receipt = world.purge.journal.get(erase(world, "person-0")).receipt
    assert receipt is not None
    (store,) = payload_of(receipt)["predicate"]["open_stores"]
    after = datetime.fromisoformat(store["open_until"]) - began
    assert timedelta(days=7, hours=1) <= after <= timedelta(days=7, hours=1, minutes=5)
    assert "person-0" not in str(payload_of(receipt))


@pytest.mark.parametrize("config", [{"retention_ms": "-1"}, {"cleanup_policy": "compact"}])
def test_a_topic_that_keeps_everything_is_never_said_to_forget(
    kafka: Kafka, world: Runtime, config: dict[str, str]
) -> None:
    """And the doctor warns."""
    topic = Topic(
        kafka.address()["KAFKA_BOOTSTRAP"], config={k.replace("_", "."): v for k, v in config.items()}
    )
    producer = Producer({"bootstrap.servers": topic.bootstrap})
    topic.put(producer, json.dumps(event(1)).encode(), key="k")
    producer.flush()
    topic.consumer(world).run(until_caught_up=True)
    (store,) = world.purge.plan(SubjectId("person-0")).open_stores
    assert store["open_until"] is None
    (finding,) = [one for one in examine(world) if topic.name in one.check]
    assert (finding.level, "for ever" in finding.text) == ("warning", True)


def test_what_is_committed_is_deleted_where_the_operator_allows_it(topic: Topic, world: Runtime) -> None:
    """Nothing behind the table's offsets goes; the next run finds no gap."""
    topic.send(range(100), in_turn=True)
    topic.consumer(world, delete_committed=True).run(until_caught_up=True)
    assert low_ends(topic) == [25] * PARTITIONS
    topic.send(range(100, 140), in_turn=True)
    topic.consumer(world).run(until_caught_up=True)
    assert low_ends(topic) == [25] * PARTITIONS
    check(world, range(140))


def low_ends(topic: Topic) -> list[int]:
    """The first offset that each partition still has."""
    wanted = {TopicPartition(topic.name, number): OffsetSpec.earliest() for number in range(PARTITIONS)}
    found = topic.admin.list_offsets(wanted)
    return [found[place].result(30).offset for place in sorted(wanted, key=lambda one: one.partition)]


# -- log-in and TLS ---------------------------------------------------------------------------------


def by_tls(world: Runtime, topic: Topic, client: dict[str, str]) -> KafkaIngest:
    """A consumer with such settings of librdkafka."""
    rest = {name: value for name, value in client.items() if name != "bootstrap.servers"}
    subscription = Subscription(client["bootstrap.servers"], (topic.name,), "g", rest)
    wanted = CloudEventMessages(world.lake.types)
    return KafkaIngest(subscription, wanted, world.lake.ingestor(), world.lake.topics.note, SOON)


def test_a_cluster_with_tls_and_a_log_in_is_followed(secured_kafka: Kafka, world: Runtime) -> None:
    """And a wrong password, or an unknown authority, is an error that quotes no secret."""
    topic = Topic(secured_kafka.address()["KAFKA_BOOTSTRAP"])
    topic.send(range(100))
    client = secured_kafka.secured_client()
    by_tls(world, topic, client).run(until_caught_up=True)
    check(world, range(100))
    for wrong in (
        {"sasl.password": "not-the-secret"},
        {"ssl.ca.location": "/etc/ssl/certs/ca-certificates.crt"},
        {"security.protocol": "PLAINTEXT"},
    ):
        with pytest.raises(TopicUnavailable) as caught:
            by_tls(world, topic, client | wrong)
        assert "not-the-secret" not in str(caught.value)
        assert client["sasl.password"] not in str(caught.value)
