"""What the client hands over at once, cut where the partition changes or something is wrong."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from confluent_kafka import KafkaError
from confluent_kafka import Message as ClientMessage
from hypothesis import example, given
from hypothesis import strategies as st

from lake.messageruns import in_runs
from lake.messages import Message, Messages

Place = tuple[str, int, bool]


def message(at: int, place: Place) -> ClientMessage:
    topic, partition, fine = place
    error = None if fine else KafkaError(KafkaError._PARTITION_EOF)
    parts: dict[str, Any] = {"value": f"{at}".encode(), "headers": [("at", b"x")] if at % 2 else None}
    return ClientMessage(topic=topic, partition=partition, offset=at, error=error, **parts)


PLACES = st.tuples(st.sampled_from(["clicks", "rides"]), st.integers(0, 2), st.booleans())


@given(places=st.lists(PLACES, max_size=12))
@example(places=[("clicks", 1, True)] * 5)
@example(places=[("clicks", 1, True), ("clicks", 1, False), ("clicks", 1, True)])
@example(places=[("clicks", 1, False), ("clicks", 1, False)])
def test_every_message_comes_once_in_its_order_with_its_partition(places: list[Place]) -> None:
    runs = list(in_runs([message(at, place) for at, place in enumerate(places)]))
    told = [(*place, error is None, one.offset) for place, messages, error in runs for one in messages]
    assert told == [(*place, at) for at, place in enumerate(places)]
    for (topic, partition), messages, error in runs:
        if error is not None:
            assert error.code() == KafkaError._PARTITION_EOF
            assert len(messages) == 1
            continue
        assert list(messages) == [
            Message(one.offset, f"{one.offset}".encode(), [("at", b"x")] if one.offset % 2 else None)
            for one in messages
        ]
        assert {(topic, partition)} == {places[one.offset][:2] for one in messages}
    errors = sum(not fine for _, _, fine in places)
    joined = sum(1 for place, _ in groupby(places) if place[2])
    assert len(runs) == joined + errors, "no run is cut without need"


headers = st.none() | st.lists(st.tuples(st.just("ce_id"), st.none() | st.binary(max_size=2)), max_size=2)
some = st.lists(
    st.builds(Message, st.integers(0, 99), st.none() | st.binary(max_size=3), headers), max_size=6
)


@given(some, some, st.integers(0, 8), st.integers(0, 8))
def test_messages_in_columns_are_the_messages_they_were_made_of(
    first: list[Message], second: list[Message], start: int, end: int
) -> None:
    """A list of no headers may come back as none at all."""

    def plain(messages: list[Message] | Messages) -> list[Message]:
        return [one._replace(headers=one.headers or None) for one in messages]

    columns = Messages.of(first)
    assert plain(columns.part(start, end)) == plain(first[start:end])
    columns.extend(Messages.of(second))
    assert plain(columns) == plain([*first, *second])
    assert len(columns) == len(first) + len(second)
    assert columns.size_bytes() == sum(len(one.value or b"") for one in [*first, *second])
