"""How far partitions go: by what the client has seen, and by the broker's word where that says nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from lake.backlog import Partition
from lake.errors import TopicUnavailable
from lake.kafkatopics import KafkaTopics

_ASK_AGAIN_SECONDS: Final = 1.0
_AFTER_FAILURE_SECONDS: Final = 10.0
_QUIET_SECONDS: Final = 10.0


class BrokerEnds:
    """Ends of partitions.

    Args:
        consumer: its client knows an end from the last fetch: nothing before the first, and nothing new
            while a partition is paused, or not read for a reason that nobody knows.
        topics: asks the broker, about once a second at the most.
        clock_seconds: monotonic.
    """

    def __init__(self, consumer: Consumer, topics: KafkaTopics, clock_seconds: Callable[[], float]) -> None:
        self._consumer = consumer
        self._topics = topics
        self._clock = clock_seconds
        self._told: dict[Partition, int] = {}
        self._ask_at = -math.inf
        self._came: dict[Partition, tuple[int, float]] = {}

    def seen_behind(self, places: Mapping[Partition, int]) -> int:
        """Messages behind these offsets as far as the client knows; asks nobody."""
        return _behind(places, self._seen(places))

    def behind(self, places: Mapping[Partition, int], paused: bool) -> int:
        """Messages behind these offsets.

        Args:
            paused: nothing is fetched now, so what the client knows is old.
        """
        seen = self._seen(places)
        unknown = paused or len(seen) < len(places) or self._is_quiet(places)
        if unknown and self._clock() >= self._ask_at:
            self._ask(places)
        newest = {one: max(seen.get(one, 0), self._told.get(one, 0)) for one in places}
        return _behind(places, newest)

    def _is_quiet(self, places: Mapping[Partition, int]) -> bool:
        """Whether one of them stands where it stood for a while; true once, then a while later again."""
        now = self._clock()
        for one in self._came.keys() - places.keys():
            del self._came[one]
        quiet = False
        for one, place in places.items():
            at, since = self._came.get(one, (-1, now))
            if at != place:
                self._came[one] = (place, now)
            elif now - since >= _QUIET_SECONDS:
                self._came[one], quiet = (place, now), True
        return quiet

    def forget(self) -> None:
        """What was told is of a topic that is another one by now."""
        self._told.clear()
        self._ask_at = -math.inf

    def _seen(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        found = {}
        for topic, number in partitions:
            try:
                ends = self._consumer.get_watermark_offsets(TopicPartition(topic, number), cached=True)
            except KafkaException:
                continue
            if ends is not None and ends[1] >= 0:  # negative before the first fetch
                found[topic, number] = int(ends[1])
        return found

    def _ask(self, partitions: Iterable[Partition]) -> None:
        try:
            self._told = self._topics.ends(partitions)
            self._ask_at = self._clock() + _ASK_AGAIN_SECONDS
        except TopicUnavailable:
            self._ask_at = self._clock() + _AFTER_FAILURE_SECONDS


def _behind(places: Mapping[Partition, int], ends: Mapping[Partition, int]) -> int:
    return sum(max(0, ends.get(one, 0) - offset) for one, offset in places.items())
