"""A partition is never silently not read: pauses, fenced members, failing callbacks, refused settings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer
from hypothesis import given
from hypothesis import strategies as st

from infra.kafka import Kafka
from lake.errors import (
    CatalogUnavailable,
    ClientSettingRefused,
    GroupRefused,
    MemberFenced,
    MemberNotReleased,
)
from lake.kafka import KafkaIngest, Progress
from lake.kafkaoutlet import KafkaOutlet
from lake.kafkarefusals import made, refusal
from lake.kafkatopics import KafkaTopics
from lake.stalls import STALL_SECONDS, Stalls
from lake.subscription import Subscription
from service.runtime import Runtime, open_runtime
from tests.lake.test_kafka import check, ingested, running, wait_until
from tests.lake.topics import PARTITIONS, Topic

PROTOCOLS: dict[str, dict[str, str]] = {
    "classic": {"session.timeout.ms": "6000"},
    "consumer": {"group.protocol": "consumer"},
}


@pytest.fixture
def topic(kafka: Kafka) -> Topic:
    """A fresh topic."""
    return Topic(kafka.address()["KAFKA_BOOTSTRAP"])


@pytest.fixture(params=PROTOCOLS)
def client(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of the client under either of Kafka's group protocols."""
    return PROTOCOLS[request.param]


@contextmanager
def failing(consumer: KafkaIngest) -> Iterator[Callable[[], Exception]]:
    """Runs it in a thread that must end by itself; gives what waits for its end and returns its error."""
    stop, failed = threading.Event(), list[Exception]()

    def work() -> None:
        try:
            consumer.run(should_stop=stop.is_set)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def outcome() -> Exception:
        thread.join(40)
        assert not thread.is_alive(), "it lives on"
        (error,) = failed
        return error

    try:
        yield outcome
    finally:
        stop.set()
        thread.join(40)


class Outage:
    """A catalog that does not answer while told so."""

    def __init__(self) -> None:
        self.is_on = False

    def over(self, ingestor: Any) -> Any:
        """The ingestor with it."""
        land = ingestor.land

        def landing(*given: Any) -> Any:
            if self.is_on:
                raise CatalogUnavailable("away")
            return land(*given)

        ingestor.land = landing
        return ingestor


# -- pauses -----------------------------------------------------------------------------------------


def test_a_partition_that_comes_back_after_an_outage_is_read(
    topic: Topic, world: Runtime, client: dict[str, str]
) -> None:
    """Given away while it was paused, resumed by nobody, given back: the client remembers the pause."""
    outage, mine, theirs = Outage(), list[Progress](), list[Progress]()

    def a_consumer(lake: Runtime) -> KafkaIngest:
        return topic.consumer(lake, client=client, ingestor=outage.over(lake.lake.ingestor()))

    topic.send(range(40), in_turn=True)
    with open_runtime(world.home) as other, running(a_consumer(world), mine.append):
        wait_until(lambda: ingested(world) == 40)
        outage.is_on = True
        topic.send(range(40, 80), in_turn=True)
        wait_until(lambda: mine[-1].waits_for == "CatalogUnavailable")
        assert {(one.topic, one.error) for one in mine[-1].stuck} == {(topic.name, "CatalogUnavailable")}
        assert all(one.offset for one in mine[-1].stuck)
        with running(a_consumer(other), theirs.append):
            wait_until(lambda: bool(theirs) and theirs[-1].partitions == PARTITIONS // 2)
            wait_until(lambda: mine[-1].partitions == PARTITIONS // 2)
            outage.is_on = False
            wait_until(lambda: ingested(world) == 80)
            wait_until(lambda: mine[-1].waits_for is None)
            assert mine[-1].stuck == ()
        wait_until(lambda: mine[-1].partitions == PARTITIONS)
        topic.send(range(80, 120), in_turn=True)
        wait_until(lambda: ingested(world) == 120, 20)
    check(world, range(120))


def test_what_stands_still_for_an_unknown_reason_is_in_the_lag_and_is_begun_anew(
    topic: Topic, world: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    """Partitions paused behind our back: nothing comes, and the client says that there is nothing."""
    ahead, said = [0.0], list[Progress]()
    consumer = topic.consumer(world, clock_seconds=lambda: time.monotonic() + ahead[0])
    topic.send(range(40), in_turn=True)
    with running(consumer, said.append):
        wait_until(lambda: ingested(world) == 40)
        consumer._consumer.pause(consumer._consumer.assignment())
        time.sleep(1)
        topic.send(range(40, 80), in_turn=True)
        time.sleep(1)
        assert ingested(world) == 40
        ahead[0] += 15
        wait_until(lambda: said[-1].lag == 40)
        wait_until(lambda: len(said[-1].stuck) == PARTITIONS)
        assert {one.error for one in said[-1].stuck} == {"PartitionStalled"}
        assert ingested(world) == 40
        ahead[0] += STALL_SECONDS
        wait_until(lambda: ingested(world) == 80)
        assert "begun anew" in caplog.text
        wait_until(lambda: said[-1].lag == 0)
        wait_until(lambda: said[-1].stuck == ())
    check(world, range(80))


def test_an_open_transaction_is_no_stall(
    topic: Topic, world: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not committed cannot be read; beginning anew would not help."""
    ahead, said = [0.0], list[Progress]()
    producer = Producer({"bootstrap.servers": topic.bootstrap, "transactional.id": topic.name})
    producer.init_transactions(30)
    producer.begin_transaction()
    topic.put(producer, b"{}", partition=0)
    producer.flush()
    with running(topic.consumer(world, clock_seconds=lambda: time.monotonic() + ahead[0]), said.append):
        topic.send(range(40), in_turn=True)
        wait_until(lambda: ingested(world) == 30)
        ahead[0] += STALL_SECONDS + 1
        time.sleep(1)
        assert said[-1].stuck == ()
    producer.abort_transaction(30)
    assert "begun anew" not in caplog.text


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), max_size=30))
def test_what_moves_or_waits_within_a_minute_never_stalls(steps: list[tuple[int, int]]) -> None:
    """However it goes on; and what does neither does, after a minute, then two, then four."""
    stalls, now, place = Stalls(), 0.0, 0
    one = ("t", 0)
    stalls.look({one: place}, now, False)
    for moved, seconds in steps:
        now, place = now + seconds, place + moved
        assert stalls.look({one: place}, now, waits=not moved) == []
    assert stalls.look({}, now + 500, False) == []  # another member's meanwhile
    now, patience = now + 500, STALL_SECONDS
    for _ in range(3):
        assert stalls.look({one: place}, now + patience - 1, False) == []
        assert stalls.look({one: place}, now + patience, False) == [one]
        assert stalls.stalled({one: place}, {one: place + 1}, now + patience) == [one]
        now, patience = now + patience, 2 * patience
    stalls.look({one: place + 1}, now, False)
    assert stalls.look({one: place + 1}, now + STALL_SECONDS, False) == [one]
    assert stalls.stalled({one: place + 1}, {one: place + 1}, now + STALL_SECONDS) == []


# -- the group --------------------------------------------------------------------------------------


def test_a_member_whose_name_another_takes_ends_with_an_error(topic: Topic, world: Runtime) -> None:
    """It names the setting; its successor reads what comes, once."""
    topic.send(range(40), in_turn=True)
    with open_runtime(world.home) as other, failing(topic.consumer(world, member="one")) as outcome:
        wait_until(lambda: ingested(world) == 40)
        with running(topic.consumer(other, member="one")):
            error = outcome()
            assert isinstance(error, MemberFenced)
            assert "kafka.member" in error.next_step
            topic.send(range(40, 80), in_turn=True)
            wait_until(lambda: ingested(world) == 80)
    check(world, range(80))


def test_under_the_new_protocol_the_second_of_a_name_ends_with_an_error(topic: Topic, world: Runtime) -> None:
    """The first reads on."""
    client = PROTOCOLS["consumer"]
    topic.send(range(40), in_turn=True)
    with (
        open_runtime(world.home) as other,
        running(topic.consumer(world, member="one", client=client)),
    ):
        wait_until(lambda: ingested(world) == 40)
        with failing(topic.consumer(other, member="one", client=client)) as outcome:
            error = outcome()
        assert isinstance(error, MemberNotReleased)
        assert "kafka.member" in error.next_step
        topic.send(range(40, 80), in_turn=True)
        wait_until(lambda: ingested(world) == 80)
    check(world, range(80))


def test_a_group_that_shares_by_another_rule_is_an_error(topic: Topic, world: Runtime) -> None:
    """Somebody else's consumers are in it: we would join again and again and read nothing."""
    settings = {"group.id": "g", "partition.assignment.strategy": "range"}
    stranger = Consumer({"bootstrap.servers": topic.bootstrap, "log_level": 0, **settings})
    stranger.subscribe([topic.name])
    wait_until(lambda: stranger.poll(0.1) is None and bool(stranger.assignment()))
    with failing(topic.consumer(world)) as outcome:
        error = outcome()
    stranger.close()
    assert isinstance(error, GroupRefused)
    assert "kafka.group" in error.message


@pytest.mark.parametrize(
    "code", [code for code in vars(KafkaError).values() if isinstance(code, int) and code != 0]
)
def test_no_fatal_error_is_gone_on_after(code: int) -> None:
    """Whatever is inside, and whatever the error says of itself."""
    inside = KafkaError(code).str()
    fatal = KafkaError(KafkaError._FATAL, f"Fatal error: {inside}", fatal=False)
    assert refusal(fatal) is not None
    assert refusal(KafkaError(code, fatal=True)) is not None


# -- callbacks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("given", OSError("disk")),
        ("given", CatalogUnavailable("away")),
        ("taken", OSError("disk")),
        ("lost", OSError("disk")),
    ],
)
def test_an_error_in_a_callback_loses_no_message_and_hangs_no_close(
    topic: Topic, world: Runtime, where: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the consumer where no retry helps; another one goes on exactly where the table stands."""
    topic.send(range(40), in_turn=True)
    consumer = topic.consumer(world)
    rest = [1]

    def fail(*_: Any) -> Any:
        if rest[0]:
            rest[0] -= 1
            raise error
        return {}

    with open_runtime(world.home) as other:
        if where == "given":
            starts = consumer._starts
            monkeypatch.setattr(consumer, "_starts", lambda some: fail() or starts(some))
        with failing(consumer) as outcome:
            if where != "given":
                wait_until(lambda: ingested(world) == 40)
                monkeypatch.setattr(consumer._backlog, "disown", fail)
            if where == "lost":
                consumer._taken(consumer._consumer, consumer._consumer.assignment())
            with running(topic.consumer(other)):
                retried = where == "given" and not isinstance(error, OSError)
                if not retried:
                    assert outcome() is error
                topic.send(range(40, 80), in_turn=True)
                wait_until(lambda: ingested(world) == 80)
    check(world, range(80))


# -- settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "sentence"),
    [
        ({"nonsense": "1"}, 'No such configuration property: "nonsense"'),
        ({"security.protocol": "x"}, "security.protocol"),
        ({"error_cb": "x"}, "error_cb"),
        ({"ssl.ca.location": "/nowhere", "security.protocol": "SSL"}, "ssl.ca.location"),
        ({"message.max.bytes": "many"}, "message.max.bytes"),
    ],
)
@pytest.mark.parametrize(
    "door",
    [
        lambda wanted: KafkaTopics(wanted.client_settings(), ["t"]),
        lambda wanted: made(Consumer, wanted.consumer_settings()),
        lambda wanted: KafkaOutlet(wanted.client_settings(), "t"),
    ],
    ids=["topics", "consumer", "outlet"],
)
def test_a_setting_that_the_client_refuses_is_said_in_its_words(
    door: Callable[[Subscription], object], client: dict[str, str], sentence: str
) -> None:
    """Before any broker is asked."""
    wanted = Subscription("localhost:1", ("t",), client=client)
    with pytest.raises(ClientSettingRefused) as caught:
        door(wanted)
    assert sentence in caught.value.message
    assert "kafka.client" in caught.value.next_step


def test_a_refused_setting_quotes_no_secret() -> None:
    """Where the client's sentence has one."""

    def client(settings: dict[str, Any]) -> None:
        raise ValueError(f"cannot use {settings['sasl.password']}")

    with pytest.raises(ClientSettingRefused, match="cannot use …"):
        made(client, {"sasl.password": "hunter2"})


def test_each_group_protocol_has_settings_that_the_client_takes(client: dict[str, str]) -> None:
    """What the brokers decide under the new one is not sent; the client would refuse it."""
    settings = Subscription("localhost:1", ("t",), client=client).consumer_settings()
    made(Consumer, settings).close()
    decided_by_brokers = {"heartbeat.interval.ms": 500}
    if client.get("group.protocol") == "consumer":
        with pytest.raises(ClientSettingRefused, match=r"heartbeat\.interval\.ms"):
            made(Consumer, settings | decided_by_brokers)
    else:
        assert settings.items() >= decided_by_brokers.items()
