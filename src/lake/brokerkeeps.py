"""What the brokers keep of topics that feed a lake: noted down, and deleted where the operator allows it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Final

from confluent_kafka import TopicPartition

from keys import ShredlakeError
from lake.errors import TopicUnavailable
from lake.kafkatopics import KafkaTopics
from lake.topicbook import FeedingTopic

_log = logging.getLogger("shredlake.kafka")
_NOTE_SECONDS: Final = 3600.0
_DELETE_SECONDS: Final = 60.0


class BrokerKeeps:
    """Topics that a consumer reads.

    Args:
        topics: what is asked and told to delete.
        note: told which topics feed the lake.
        deletes: whether the broker may delete what is in the table.
        clock_seconds: monotonic.
    """

    def __init__(
        self,
        topics: KafkaTopics,
        note: Callable[[Sequence[FeedingTopic]], None],
        deletes: bool,
        clock_seconds: Callable[[], float],
    ) -> None:
        self._topics = topics
        self._tell = note
        self._deletes = deletes
        self._clock = clock_seconds
        self._noted_at = self._deleted_at = -math.inf

    def note(self) -> None:
        """Writes down for how long the broker keeps what we read. Raises `TopicUnavailable`."""
        self._tell(self._topics.feeding(self._deletes))
        self._noted_at = self._clock()

    def note_again(self) -> None:
        """Once an hour; what a retry helps is tried again a minute later."""
        if self._clock() - self._noted_at < _NOTE_SECONDS:
            return
        try:
            self.note()
        except ShredlakeError as error:
            if not error.retry_helps:
                raise
            self._noted_at += _DELETE_SECONDS  # soon again
            _log.warning("the topics' retention could not be noted: %s", error.message)

    def is_time_to_delete(self) -> bool:
        """Once a minute."""
        return self._clock() - self._deleted_at >= _DELETE_SECONDS

    def delete(self, places: Sequence[TopicPartition]) -> None:
        """Where the operator allows it: what is in the table, before these places, goes from the broker."""
        self._deleted_at = self._clock()
        wanted = [one for one in places if one.offset > 0]
        if self._deletes and wanted:
            try:
                self._topics.delete_before(wanted)
            except TopicUnavailable as error:
                _log.warning("what is committed could not be deleted yet: %s", error.message)
