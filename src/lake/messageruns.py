"""What the Kafka client hands over at once, as runs of one partition. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from operator import is_
from typing import Any

from confluent_kafka import KafkaError
from confluent_kafka import Message as ClientMessage

from lake.backlog import Partition
from lake.messages import Messages


def in_runs(found: Sequence[Any]) -> Iterator[tuple[Partition, Messages, KafkaError | None]]:
    """(partition, consecutive messages of it, None), or (partition, one that stands for an error, the error).

    A column at a time: a third of what asking each message for all it holds takes.
    """
    if not found:
        return
    topics, partitions = list(map(ClientMessage.topic, found)), list(map(ClientMessage.partition, found))
    errors, headers = list(map(ClientMessage.error, found)), list(map(ClientMessage.headers, found))
    offsets, values = list(map(ClientMessage.offset, found)), list(map(ClientMessage.value, found))
    messages = Messages(offsets, values, headers if any(headers) else None)  # type: ignore[arg-type]
    fine = list(map(is_, errors, repeat(None)))  # comparing an error of theirs with None raises later on
    count, start = len(found), 0
    if all(fine) and topics.count(topics[0]) == count and partitions.count(partitions[0]) == count:
        yield (topics[0], partitions[0]), messages, None  # type: ignore[misc]  # they say None to all
        return
    places = list(zip(topics, partitions, strict=True))
    while start < count:
        place, end = places[start], start + 1
        while fine[start] and end < count and fine[end] and places[end] == place:
            end += 1
        yield place, messages.part(start, end), errors[start]  # type: ignore[misc]  # they say None to all
        start = end
