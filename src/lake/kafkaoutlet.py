"""A Kafka topic that the lake writes to."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from lake.errors import TopicUnavailable
from lake.kafkatopics import ASK_SECONDS, KafkaTopics, asking
from lake.republish import PLACE
from lake.topicbook import FeedingTopic

_FLUSH_SECONDS: Final = 60.0
_LOOK_BACK: Final = 16  # a transaction's marker takes an offset and is no message
_PRODUCER_SETTINGS: Final = {"enable.idempotence": True, "linger.ms": 20}


class KafkaOutlet:
    """A topic that takes messages; an error of any shows at the next flush.

    Args:
        settings: of librdkafka; may hold secrets.

    Raises:
        TopicUnavailable: the cluster cannot be reached, or has no such topic.
    """

    def __init__(self, settings: Mapping[str, Any], topic: str) -> None:
        self._settings = {"log_level": 2, **settings}
        self._topics = KafkaTopics(self._settings, [topic])
        self._producer = Producer({**_PRODUCER_SETTINGS, **self._settings})
        self._topic = topic
        self._failed: list[KafkaError] = []

    def partitions(self) -> int:
        """How many the topic has. Raises `TopicUnavailable`."""
        return len(self._topics.partitions())

    def retention(self) -> list[FeedingTopic]:
        """For how long the broker keeps what is sent. Raises `TopicUnavailable`."""
        return self._topics.feeding(False)

    def last_places(self) -> list[str | None]:
        """The header `PLACE` of each partition's newest message. Raises `TopicUnavailable`."""
        reader = Consumer(
            {**self._settings, "group.id": f"place-{uuid.uuid4().hex}", "enable.auto.commit": False}
        )
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
        """
        while True:
            try:
                self._producer.produce(
                    self._topic, value, key, partition, self._delivered, headers=dict(headers)
                )
            except BufferError:
                self._producer.poll(0.1)
                continue
            self._producer.poll(0)
            return

    def flush(self) -> None:
        """Returns when the brokers have everything.

        Raises:
            TopicUnavailable: they do not; what was sent may be there or not, so send it again.
        """
        with contextlib.suppress(KafkaException):
            left = self._producer.flush(_FLUSH_SECONDS)
            if left == 0 and not self._failed:
                return
        name = self._failed[0].name() if self._failed else "no answer"
        self._failed.clear()
        raise TopicUnavailable(
            f"the broker did not take every message: {name}",
            next_step="Send again: an event that arrives twice is known by its id and counted once.",
        )

    def _delivered(self, error: KafkaError | None, _: object) -> None:
        if error is not None:
            self._failed.append(error)
