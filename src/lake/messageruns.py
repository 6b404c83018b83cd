"""What the Kafka client hands over at once, as runs of one partition. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from operator import is_
from typing import Any, Final

from confluent_kafka import KafkaError
from confluent_kafka import Message as ClientMessage

from lake.backlog import Partition
from lake.messages import Message

_new_tuple: Final[Any] = tuple.__new__


def in_runs(found: Sequence[Any]) -> Iterator[tuple[Partition, list[Message], KafkaError | None]]:
    """(partition, consecutive messages of it, None), or (partition, one that stands for an error, the error).

    A column at a time: two thirds of what asking each message for all it holds takes.
    """
    places = list(zip(map(ClientMessage.topic, found), map(ClientMessage.partition, found), strict=True))
    errors = list(map(ClientMessage.error, found))
    parts = zip(
        map(ClientMessage.offset, found),
        map(ClientMessage.value, found),
        map(ClientMessage.headers, found),
        strict=True,
    )
    messages = list(map(_new_tuple, repeat(Message), parts))
    fine = list(map(is_, errors, repeat(None)))  # comparing an error of theirs with None raises later on
    count, start = len(messages), 0
    if count and all(fine) and places.count(places[0]) == count:
        yield places[0], messages, None  # type: ignore[misc]  # they say None to all
        return
    while start < count:
        place, end = places[start], start + 1
        while fine[start] and end < count and fine[end] and places[end] == place:
            end += 1
        yield place, messages[start:end], errors[start]  # type: ignore[misc]  # they say None to all
        start = end
