"""Sealed topics and republishing, on a real broker whose own files are looked into."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from hypothesis import given
from hypothesis import strategies as st

from infra.kafka import Kafka
from keys import SubjectId
from lake import EventRead, dead_letters, privacy_lint, verify
from lake.errors import TopicUnavailable
from lake.kafkaoutlet import KafkaOutlet
from lake.messages import Message, Messages
from lake.republish import PLACE, Republisher, Wanted
from lake.sealedmessages import MAGIC, SealedMessages, decode_blocks, encode_blocks
from lake.sealer import Sealer
from lake.sealingproducer import SealingProducer
from lake.validate import Flaw
from service.runtime import Runtime
from tests.lake.topics import PARTITIONS, Topic, event, exactly, held
from tests.world import compact_all, erase, paid, send, shred

RIDE = {
    "name": "Ride",
    "version": 1,
    "type": "object",
    "properties": {
        "city": {"type": "string", "anonymous": True},
        "pickup": {"type": "string"},
        "driver": {"type": "string", "subject_of": "driver"},
        "fare": {"type": "number", "role": "driver"},
    },
    "required": ["city"],
}


@pytest.fixture
def topic(kafka: Kafka) -> Topic:
    """A topic of its own."""
    return Topic(kafka.address()["KAFKA_BOOTSTRAP"])


def outlet(topic: Topic, **settings: str) -> KafkaOutlet:
    """Messages go there."""
    return KafkaOutlet({"bootstrap.servers": topic.bootstrap, **settings}, topic.name)


def uuid_of(world: Runtime) -> bytes:
    """Of the events table."""
    return world.lake.events.metadata().table_uuid.bytes


def producer(world: Runtime, topic: Topic) -> SealingProducer:
    """Seals for a lake."""
    return SealingProducer(world.keyring, world.lake.types, uuid_of(world), outlet(topic))


def lines(numbers: range) -> list[bytes]:
    """CloudEvents as a client has them."""
    return [json.dumps(event(number)).encode() for number in numbers]


def follow(world: Runtime, topic: Topic) -> None:
    """Ingests what the topic has."""
    topic.consumer(world, message_format=SealedMessages(world.lake.types, uuid_of(world))).run(
        until_caught_up=True
    )


def read_all(topic: Topic) -> list[Any]:
    """Every message of the topic, partition by partition."""
    from confluent_kafka import TopicPartition

    reader = Consumer({"bootstrap.servers": topic.bootstrap, "group.id": f"read-{time.time_ns()}"})
    found = []
    for number in range(PARTITIONS):
        low, high = reader.get_watermark_offsets(TopicPartition(topic.name, number), timeout=10)
        reader.assign([TopicPartition(topic.name, number, low)])
        at = low
        while at < high:
            message = reader.poll(10)
            assert message is not None
            assert message.error() is None
            found.append(message)
            at = (message.offset() or 0) + 1
    reader.close()
    return found


# -- sealed topics ---------------------------------------------------------------------------------


def test_the_broker_s_files_hold_nothing_of_anybody(kafka: Kafka, topic: Topic, world: Runtime) -> None:
    """Neither names nor values are in its log segments; in those of a plaintext topic they are."""
    canary = "canary-d41d8cd9"
    events = [
        paid(f"{canary}-person-{n}", n, event_id=f"{canary}-id-{n}", note=f"{canary}-note") for n in range(50)
    ]
    sent = producer(world, topic).send([json.dumps(one).encode() for one in events])
    assert (sent.events, sent.dead, sent.suppressed) == (50, 0, 0)
    follow(world, topic)
    assert len(held(world)) == 50
    segments = [path for path in kafka.folder.rglob("*.log") if topic.name in str(path)]
    assert sum(path.stat().st_size for path in segments) > 5000
    assert not [path for path in segments if canary.encode() in path.read_bytes()]
    plain = Topic(topic.bootstrap)
    plain.put(client := Producer({"bootstrap.servers": topic.bootstrap}), json.dumps(events[0]).encode())
    client.flush()
    open_segments = [path for path in kafka.folder.rglob("*.log") if plain.name in str(path)]
    assert [path for path in open_segments if canary.encode() in path.read_bytes()]


class Kept:
    """Takes messages as the broker's client does, and keeps them."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bytes, Any]] = []

    def put(self, value: bytes, key: bytes, headers: Any, partition: int = -1) -> None:
        """One more."""
        self.messages.append((value, key, headers))

    def flush(self) -> None:
        """They are there."""


def test_nothing_of_anybody_is_handed_to_the_broker_s_client(world: Runtime) -> None:
    """Neither in a value nor as a key or header: who, what, and which event; also of what does not fit."""
    canary = "canary-d41d8cd9"
    fits = paid(f"{canary}-person", 7, event_id=f"{canary}-id", note=f"{canary}-note")
    kept = Kept()
    sealing = SealingProducer(world.keyring, world.lake.types, uuid_of(world), kept)  # type: ignore[arg-type]
    sent = sealing.send([json.dumps(one).encode() for one in (fits, fits | {"data": {"cents": canary}})])
    assert (sent.events, sent.dead, len(kept.messages)) == (1, 1, 2)
    assert b"s1" in kept.messages[0][0], "an anonymous field"
    for value, key, headers in kept.messages:
        assert canary.encode() not in value + key + repr(headers).encode()
        (block,) = decode_blocks(value, uuid_of(world))
        assert key == block["subject_ref"]  # type: ignore[index]


def test_what_nobody_with_keys_sealed_is_a_letter_and_breaks_no_read(topic: Topic, world: Runtime) -> None:
    """Any bit of a sealed part, or what it is bound to; a consumer says so, and all else is read and erased."""
    kept = Kept()
    SealingProducer(world.keyring, world.lake.types, uuid_of(world), kept).send(lines(range(12)))  # type: ignore[arg-type]
    values = [value for value, _, _ in kept.messages]
    client = Producer({"bootstrap.servers": topic.bootstrap})
    for at, value in enumerate(values):
        blocks = decode_blocks(value, uuid_of(world))
        assert not isinstance(blocks, Flaw)
        if at == 3:
            blocks[0]["sealed"] = blocks[0]["sealed"][:-1] + bytes([blocks[0]["sealed"][-1] ^ 1])
        if at == 5:
            blocks[0]["block_id"] = bytes(16)
        if at == 7:
            blocks[0]["sealed"] = b"nothing"
        if at == 8:
            blocks[0]["subject_ref"] = bytes(16)
        topic.put(client, encode_blocks(uuid_of(world), blocks), partition=0)
    client.flush()
    follow(world, topic)
    assert held(world) == exactly([at for at in range(12) if at not in (3, 5, 7, 8)])
    letters = dead_letters(world.lake)
    reasons = {one.line: one.reason for one in letters}
    assert reasons == dict.fromkeys((3, 5, 7), "not_authentic") | {8: "unknown_handle"}
    assert letters[1].raw[:4] == MAGIC
    erase(world, "person-0")  # to its receipt
    assert verify(world.lake, deep=True).problems == ()


def test_an_event_that_breaks_the_sealing_costs_only_itself_at_a_topic(
    topic: Topic, world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On either side: at the producer that seals, and at the consumer of a topic in clear."""
    sound = Sealer._seal_type

    def breaks(self: Sealer, event_type: Any, frame: Any, *rest: Any) -> Any:
        if "cents" in frame.columns and (frame["cents"] % 10 == 6).any():
            raise OverflowError("somebody's value")
        return sound(self, event_type, frame, *rest)

    monkeypatch.setattr(Sealer, "_seal_type", breaks)
    sent = producer(world, topic).send(lines(range(20)))
    assert (sent.events, sent.reasons) == (18, (("unprocessable (OverflowError)", 2),))
    follow(world, topic)
    plain = Topic(topic.bootstrap)
    plain.send(range(20, 40), in_turn=True)
    done = plain.consumer(world).run(until_caught_up=True)
    assert (done.events, done.dead) == (18, 2)
    assert held(world) == exactly([at for at in range(40) if at % 10 != 6])
    assert len(dead_letters(world.lake)) == 4


def test_sealed_events_land_once_and_read_like_any_other(topic: Topic, world: Runtime) -> None:
    """Ingest shows nothing of them; the table is that of the same events sent in clear."""
    assert producer(world, topic).send(lines(range(100))).events == 100
    follow(world, topic)
    follow(world, topic)
    assert held(world) == exactly(range(100))
    assert verify(world.lake, deep=True).problems == ()
    assert privacy_lint(world.lake) == []
    compact_all(world)
    assert held(world) == exactly(range(100))


def counted(world: Runtime) -> tuple[Counter[int], int]:
    """What the lake holds of each number, duplicates merged; and how many were."""
    replay = world.lake.replay()
    head = replay.resolve(None)
    assert head is not None
    events = replay.events(replay.files(head.snapshot_id), EventRead("Paid", ("cents",)))
    return Counter(events.frame["cents"].to_list()), events.superseded


def test_an_event_that_arrives_twice_counts_once(topic: Topic, world: Runtime) -> None:
    """A producer that is not sure sends again."""
    for _ in range(2):
        producer(world, topic).send(lines(range(20)))
    follow(world, topic)
    assert counted(world) == (exactly(range(20)), 20)


def test_what_waits_in_the_topic_dies_with_its_person(topic: Topic, world: Runtime) -> None:
    """Sent before the erasure, read after it: refused, and unreadable to whoever has the topic."""
    sealing = producer(world, topic)
    sealing.send(lines(range(40)))
    send(world, [paid("person-1", 1, event_id="known")])
    ref = world.keyring.ref_of(SubjectId("person-1"))
    erase(world, "person-1")
    follow(world, topic)
    assert held(world)[10] == 0
    assert len(set(held(world)) & set(range(40))) == 30
    blocks = [decode_blocks(message.value(), uuid_of(world)) for message in read_all(topic)]
    mine = [
        one for found in blocks if not isinstance(found, Flaw) for one in found if one["subject_ref"] == ref
    ]
    assert len(mine) == 10
    assert verify(world.lake, deep=True).problems == ()
    again = sealing.send(lines(range(10, 20)))
    assert (again.events, again.suppressed) == (0, 10)


def test_two_people_of_one_event_stay_apart(topic: Topic, world: Runtime) -> None:
    """One message, a block for each; the rider's erasure leaves the driver's part whole."""
    world.lake.types.register(RIDE)
    rides = [
        {
            "specversion": "1.0",
            "id": f"r{n}",
            "source": "app",
            "type": "Ride",
            "subject": f"rider-{n}",
            "time": "2026-03-01T12:00:00Z",
            "data": {"city": "Köln", "pickup": "home", "driver": "driver-1", "fare": 9.5},
        }
        for n in range(6)
    ]
    producer(world, topic).send([json.dumps(one).encode() for one in rides])
    follow(world, topic)
    shred(world, "rider-2")
    replay = world.lake.replay()
    head = replay.resolve(None)
    assert head is not None
    files = replay.files(head.snapshot_id)
    ride = world.lake.types.get("Ride")
    riders = replay.events(files, EventRead("Ride", ("city", "pickup"), ride.facets[0]))
    drivers = replay.events(files, EventRead("Ride", ("fare",), ride.facets[1]))
    assert (riders.frame.height, riders.shredded) == (6, 1)
    assert drivers.frame["fare"].to_list() == [9.5] * 6


def test_what_does_not_fit_is_a_sealed_letter_on_either_side(topic: Topic, world: Runtime) -> None:
    """The producer sends what it cannot accept as a letter; ingest keeps what is no sealed event."""
    bad = event(1) | {"data": {"cents": "many"}}
    sent = producer(world, topic).send([json.dumps(bad).encode(), b"no json", *lines(range(2, 4))])
    assert (sent.events, sent.dead) == (2, 2)
    raw = Producer({"bootstrap.servers": topic.bootstrap})
    other = encode_blocks(bytes(16), [])
    for value in (b"plain text", MAGIC + b"\xc1", other):
        topic.put(raw, value)
    raw.flush()
    follow(world, topic)
    reasons = Counter(letter.reason for letter in dead_letters(world.lake))
    assert sum(reasons.values()) == 5
    assert reasons["not_sealed"] == reasons["malformed"] == reasons["another_table"] == 1
    assert held(world) == exactly([2, 3])
    assert verify(world.lake, deep=True).problems == ()


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(noise: bytes) -> None:
    """A flaw, never an exception."""
    for value in (noise, MAGIC + noise):
        assert isinstance(decode_blocks(value, bytes(16)), Flaw | list)


def test_a_changed_open_part_is_found_at_ingest(world: Runtime) -> None:
    """One message of a batch is bad, the others are taken."""
    kept = Kept()
    SealingProducer(world.keyring, world.lake.types, uuid_of(world), kept).send(lines(range(5)))  # type: ignore[arg-type]
    taken = [value for value, _, _ in kept.messages]
    found = decode_blocks(taken[2], uuid_of(world))
    assert not isinstance(found, Flaw)
    found[0]["open"] = found[0]["open"][:-3]
    from datetime import date

    days = {name: (found[0][name] - date(1970, 1, 1)).days for name in ("occurred_from", "occurred_to")}
    assert days["occurred_from"] > 0
    taken[2] = encode_blocks(uuid_of(world), found)
    parsed = SealedMessages(world.lake.types, uuid_of(world)).parse(
        "s", 0, 5, Messages.of(Message(at, value) for at, value in enumerate(taken))
    )
    assert [(one.line, one.flaw.reason) for one in parsed.rejected] == [(2, "malformed")]
    assert parsed.sealed is not None
    assert sorted(parsed.sealed["source_from"]) == [0, 1, 3, 4]


# -- republishing ----------------------------------------------------------------------------------


def test_the_lake_goes_back_to_a_topic_and_into_another_lake(
    topic: Topic, world: Runtime, tmp_path: Path
) -> None:
    """In clear, as the CloudEvents they were; the erased are not among them."""
    from tests.world import make_world

    send(world, [event(number) for number in range(60)])
    erase(world, "person-2")
    done = Republisher(world.lake, outlet(topic)).run(Wanted(opened=True))
    assert (done.messages, done.events, done.withheld) == (50, 50, 10)
    with make_world(tmp_path / "other") as other:
        topic.consumer(other).run(until_caught_up=True)
        assert held(other) == exactly([n for n in range(60) if n // 10 != 2])
    first = json.loads(read_all(topic)[0].value())
    known = event(int(first["id"][1:]))
    assert {k: first[k] for k in ("id", "source", "type", "subject", "data")} == {
        k: known[k] for k in ("id", "source", "type", "subject", "data")
    }


def test_still_sealed_it_is_readable_to_nobody_without_keys(
    kafka: Kafka, topic: Topic, world: Runtime
) -> None:
    """Blocks as they lie in the table."""
    send(world, [event(number) for number in range(60)])
    done = Republisher(world.lake, outlet(topic)).run(Wanted())
    assert (done.messages, done.events) == (6, 60)
    messages = read_all(topic)
    assert all(message.value()[:4] == MAGIC for message in messages)
    assert not any(b"secret-" in message.value() or b"person-" in message.value() for message in messages)


@pytest.mark.parametrize("opened", [True, False])
def test_an_interrupted_run_goes_on_where_the_topic_ends(topic: Topic, world: Runtime, opened: bool) -> None:
    """Every message once, though the table was rewritten and a person was erased in between."""
    for start in range(0, 120, 30):
        send(world, [event(number) for number in range(start, start + 30)])
    wanted = Wanted(opened=opened)
    seen: list[int] = []
    stop_after = 31 if opened else 3

    def should_stop() -> bool:
        seen.append(1)
        return len(seen) > stop_after

    first = Republisher(world.lake, outlet(topic)).run(wanted, should_stop=should_stop)
    assert 0 < first.messages <= stop_after
    person_7 = world.keyring.ref_of(SubjectId("person-7"))
    of_person_7 = sum(
        json.loads(message.value())["subject"] == "person-7" if opened else person_7 in message.value()
        for message in read_all(topic)
    )
    compact_all(world)
    erase(world, "person-7")
    second = Republisher(world.lake, outlet(topic)).run(wanted)
    assert second.snapshot_id == first.snapshot_id
    assert first.messages - second.already == of_person_7, "there already, and counted as withheld now"
    third = Republisher(world.lake, outlet(topic)).run(wanted, first.snapshot_id)
    assert third.messages == 0
    places = [dict(message.headers())[PLACE] for message in read_all(topic)]
    assert len(places) == len(set(places)) == first.messages + second.messages
    assert not any(name.startswith("republish-") for name in world.lake.events.metadata().refs)


def test_an_outage_longer_than_the_client_waits_leaves_no_gap(
    topic: Topic, kafka: Kafka, world: Runtime
) -> None:
    """What was sent into it does not expire before what is sent after it; the next run sends the rest."""
    send(world, [event(number) for number in range(600)])
    back: list[threading.Thread] = []
    seen: list[int] = []

    def lose_the_broker() -> bool:
        seen.append(1)
        if len(seen) == 60:
            kafka.process.kill()
            back.append(threading.Thread(target=kafka.start))
            back[0].start()
        return False

    short = outlet(topic, **{"message.timeout.ms": "4000"})
    with pytest.raises(TopicUnavailable) as caught:
        Republisher(world.lake, short, messages_per_second=30).run(
            Wanted(opened=True), should_stop=lose_the_broker
        )
    assert caught.value.retry_helps
    back[0].join()
    second = Republisher(world.lake, short).run(Wanted(opened=True))
    assert 0 < second.already < 600
    places = [int(dict(message.headers())[PLACE].split()[2]) for message in read_all(topic)]
    assert set(places) == set(range(600))


def test_a_sealing_producer_is_usable_after_an_outage(topic: Topic, kafka: Kafka, world: Runtime) -> None:
    """What was not taken is said, and sending again with the same producer sends it."""
    short = outlet(topic, **{"message.timeout.ms": "4000"})
    sealing = SealingProducer(world.keyring, world.lake.types, uuid_of(world), short)
    sealing.send(lines(range(10)))
    kafka.process.kill()
    with pytest.raises(TopicUnavailable):
        sealing.send(lines(range(10, 30)))
    kafka.start()
    assert sealing.send(lines(range(10, 30))).events == 20
    follow(world, topic)
    assert counted(world)[0] == exactly(range(30))


def test_days_and_types_choose_and_the_rate_is_kept(topic: Topic, world: Runtime) -> None:
    """Sleeps make up for what would be too fast."""
    from datetime import UTC, datetime, timedelta

    send(world, [event(number) for number in range(30)])
    today = datetime.now(UTC).date()
    tomorrow = today + timedelta(days=1)
    nothing = Republisher(world.lake, outlet(topic)).run(Wanted(first=tomorrow, opened=True))
    assert nothing.messages == 0
    slept: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    slow = Republisher(world.lake, outlet(topic), 10, lambda: now[0], sleep)
    assert slow.run(Wanted(first=today, last=today, types=("Paid",), opened=True)).messages == 30
    assert sum(slept) == pytest.approx(3.0)
