"""Asks the brokers about partitions of which nothing comes: what is stuck, and what is to be begun anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from keys import ShredlakeError
from lake.backlog import Partition
from lake.errors import TopicUnavailable
from lake.kafkatopics import KafkaTopics
from lake.stalls import Stalls
from lake.standstill import Standstill

_AFTER_FAILURE_SECONDS: Final = 5.0


class StallWatch:
    """Of one consumer.

    Args:
        topics: asks the brokers.
        clock_seconds: monotonic.

    Attributes:
        standstill: what is known to be stuck.
    """

    def __init__(self, topics: KafkaTopics, clock_seconds: Callable[[], float]) -> None:
        self.standstill = Standstill()
        self._stalls = Stalls()
        self._topics = topics
        self._clock = clock_seconds
        self._ask_at = -math.inf

    def stalled(
        self,
        places: Mapping[Partition, int],
        waits: bool,
        failed: Callable[[ShredlakeError, float], None],
    ) -> list[Partition]:
        """Partitions to begin anew: they have stood for long, and the brokers have more.

        Args:
            places: the next offset to read of each of our partitions.
            waits: nothing is read now, on purpose.
            failed: told where the brokers do not answer.
        """
        now = self._clock()
        stands = self._stalls.look(places, now, waits)
        quiet = {*stands, *self.standstill.to_ask(places, now, waits)}
        if not quiet or now < self._ask_at:
            return []
        try:
            ends = self._topics.readable_ends(quiet)
        except TopicUnavailable as error:
            failed(error, now)
            self._ask_at = self._clock() + _AFTER_FAILURE_SECONDS
            ends = {}
        self.standstill.told(ends, now)
        return self._stalls.stalled({one: places[one] for one in stands}, ends, now) if stands else []

    def forget(self) -> None:
        """What was seen is of a topic that is another one by now."""
        self._stalls.forget()
