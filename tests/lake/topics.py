"""Topics for tests: made, filled, and compared with what the lake holds."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from lake import EventRead
from lake.backlog import CommitRule
from lake.ingest import Ingestor
from lake.kafka import KafkaIngest
from lake.messages import CloudEventMessages, MessageFormat
from lake.subscription import Subscription
from service.runtime import Runtime
from tests.world import paid

PARTITIONS = 4
SOON = CommitRule(seconds=0.3, events=50, idle_seconds=0.05)


class Topic:
    """A topic of its own on a broker."""

    def __init__(
        self,
        bootstrap: str,
        *,
        copies: int = 1,
        partitions: int = PARTITIONS,
        config: dict[str, str] | None = None,
    ) -> None:
        self.bootstrap = bootstrap
        self.name = f"t-{uuid.uuid4().hex[:12]}"
        self.admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
        self._shape = (partitions, copies)
        self._config = config or {}
        self.make()

    def make(self) -> None:
        """Makes it, for the first time or again."""
        partitions, copies = self._shape
        made = self.admin.create_topics([NewTopic(self.name, partitions, copies, config=self._config)])
        made[self.name].result(30)

    def remove(self) -> None:
        """Deletes it."""
        self.admin.delete_topics([self.name])[self.name].result(30)

    def send(self, numbers: Iterable[int], *, in_turn: bool = False, **settings: Any) -> None:
        """One event per number; returns when the broker has them.

        Args:
            in_turn: to one partition after the other, instead of by the person.
        """
        producer = Producer({"bootstrap.servers": self.bootstrap, "log_level": 0, **settings})
        for number in numbers:
            where = {"partition": number % PARTITIONS} if in_turn else {"key": person(number)}
            self.put(producer, json.dumps(event(number)).encode(), **where)
            producer.poll(0)
        assert producer.flush(60) == 0

    def put(self, producer: Producer, value: bytes | None, **more: Any) -> None:
        """One message."""
        producer.produce(self.name, value, **more)

    def consumer(
        self,
        world: Runtime,
        *,
        group: str = "g",
        member: str | None = None,
        rule: CommitRule = SOON,
        message_format: MessageFormat | None = None,
        accept_gaps: bool = False,
        delete_committed: bool = False,
        clock_seconds: Callable[[], float] = time.monotonic,
        client: dict[str, str] | None = None,
        ingestor: Ingestor | None = None,
    ) -> KafkaIngest:
        """A consumer into a lake."""
        subscription = Subscription(
            self.bootstrap,
            (self.name,),
            group,
            {"session.timeout.ms": "6000"} if client is None else client,
            member,
            accept_gaps,
            delete_committed,
        )
        wanted = message_format or CloudEventMessages(world.lake.types)
        return KafkaIngest(
            subscription,
            wanted,
            ingestor or world.lake.ingestor(),
            world.lake.topics.note,
            rule,
            clock_seconds,
        )


def person(number: int) -> str:
    """Ten events a person."""
    return f"person-{number // 10}"


def event(number: int) -> dict[str, Any]:
    """The event of a number."""
    return paid(person(number), number, event_id=f"e{number}", note=f"secret-{number}")


def held(world: Runtime) -> Counter[int]:
    """How often the table holds the event of each number, duplicates not merged."""
    head = world.lake.replay().resolve(None)
    assert head is not None
    replay = world.lake.replay()
    events = replay.events(replay.files(head.snapshot_id), EventRead("Paid", ("cents",)))
    assert events.superseded == 0, "an event is stored twice"
    return Counter(events.frame["cents"].to_list())


def exactly(numbers: Sequence[int] | range) -> Counter[int]:
    """Each once."""
    return Counter(numbers)
