"""A Kafka topic that the lake writes to."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from lake.errors import ClientSettingRefused, TopicUnavailable
from lake.kafkarefusals import made
from lake.kafkatopics import ASK_SECONDS, KafkaTopics, asking
from lake.republish import PLACE
from lake.topicbook import FeedingTopic

_PATIENCE_SECONDS: Final = 60.0
_TURN_SECONDS: Final = 0.1
_LOOK_BACK: Final = 16  # a transaction's marker takes an offset and is no message
_EXPIRES: Final = ("message.timeout.ms", "delivery.timeout.ms")
_OUR_SETTINGS: Final = {
    "enable.idempotence": True,
    "enable.gapless.guarantee": True,
    "message.timeout.ms": 0,  # what expires leaves a gap before what is sent behind it
}


class KafkaOutlet:
    """A topic that takes messages, each partition without a gap: what is there was sent, and all before it.

    A single message never expires. When the brokers have taken nothing for a while, or refused anything,
    all that was not taken is dropped at once, and the caller is told.

    Args:
        settings: of librdkafka; may hold secrets. `message.timeout.ms` is for how long we wait in vain,
            default one minute; 0 is for ever.

    Raises:
        TopicUnavailable: the cluster cannot be reached, or has no such topic.
        ClientSettingRefused: the client does not take a setting.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        topic: str,
        clock_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = {"log_level": 2, **settings}
        waits_ms = [_whole(name, self._settings.pop(name)) for name in _EXPIRES if name in self._settings]
        self._patience_seconds = (waits_ms[0] / 1000 or math.inf) if waits_ms else _PATIENCE_SECONDS
        self._clock = clock_seconds
        self._topics = KafkaTopics(self._settings, [topic])
        self._topic = topic
        self._failed: list[str] = []
        self._taken_at = -math.inf
        self._made: Producer | None = None

    @property
    def _producer(self) -> Producer:
        if self._made is None:
            self._made = made(Producer, {"linger.ms": 20, **self._settings, **_OUR_SETTINGS})
        return self._made

    def partitions(self) -> int:
        """How many the topic has. Raises `TopicUnavailable`."""
        return len(self._topics.partitions())

    def retention(self) -> list[FeedingTopic]:
        """For how long the broker keeps what is sent. Raises `TopicUnavailable`."""
        return self._topics.feeding(False)

    def last_places(self) -> list[str | None]:
        """The header `PLACE` of each partition's newest message. Raises `TopicUnavailable`."""
        ours = {"group.id": f"place-{uuid.uuid4().hex}", "enable.auto.commit": False}
        reader = made(Consumer, {**self._settings, **ours})
        try:
            with asking():
                return [self._last_place(reader, number) for number in range(self.partitions())]
        finally:
            reader.close()

    def _last_place(self, reader: Consumer, number: int) -> str | None:
        low, high = reader.get_watermark_offsets(TopicPartition(self._topic, number), timeout=ASK_SECONDS)
        found: str | None = None
        at = max(low, high - _LOOK_BACK)
        if at >= high:
            return None
        reader.assign([TopicPartition(self._topic, number, at)])
        while True:
            message = reader.poll(ASK_SECONDS)
            if message is None:
                return found  # only markers are left, or nothing
            if message.error() is not None:
                raise KafkaException(message.error())
            headers: Any = dict(message.headers() or ())
            found = headers[PLACE].decode() if PLACE in headers else None
            if (message.offset() or 0) >= high - 1:
                return found

    def put(self, value: bytes, key: bytes, headers: Mapping[str, bytes], partition: int = -1) -> None:
        """Sends a message, waiting while the client's queue is full.

        Args:
            partition: -1 leaves it to the key.

        Raises:
            TopicUnavailable: see `flush`.
        """
        if len(self._producer) == 0:
            self._taken_at = self._clock()  # nobody was waited for until now
        while True:
            try:
                self._producer.produce(
                    self._topic, value, key, partition, self._delivered, headers=dict(headers)
                )
            except BufferError:
                self._turn(_TURN_SECONDS)
                continue
            except KafkaException as error:
                self._failed.append(error.args[0].name())
            self._turn(0)
            return

    def flush(self) -> None:
        """Returns when the brokers have everything.

        Raises:
            TopicUnavailable: they do not. Of every partition they have what was sent up to some message, or
                one that they had taken is not known to us; send the rest again, or all.
        """
        while len(self._producer) > 0:
            self._turn(_TURN_SECONDS)
        self._turn(0)

    def _turn(self, seconds: float) -> None:
        """Lets the client tell what became of messages."""
        self._producer.poll(seconds)
        vain_seconds = self._clock() - self._taken_at if len(self._producer) > 0 else 0.0
        if vain_seconds > self._patience_seconds:
            self._failed.append("no answer")
        if self._failed:
            name = self._failed[0]
            self._producer.purge()
            self._producer.poll(0)
            self._made = None  # it does not survive a refusal, and clings to a broker that is gone
            self._failed.clear()
            raise TopicUnavailable(
                f"the broker did not take every message: {name}",
                next_step="Send again: an event that arrives twice is known by its id and counted once.",
            )

    def _delivered(self, error: KafkaError | None, _: object) -> None:
        if error is None:
            self._taken_at = self._clock()
        else:
            self._failed.append(error.name())


def _whole(name: str, value: Any) -> int:
    text = str(value)
    if not text.isdecimal():
        raise ClientSettingRefused(f"`{name}` is no number of milliseconds")
    return int(text)
