"""What was read and is not in the table yet: a pure decision, tried with any order of happenings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake.backlog import PIECE_EVENTS, Backlog, CommitRule
from lake.errors import RegistryUnavailable
from lake.messages import Message, Messages
from lake.parsed import Parsed, Rejected
from lake.validate import Flaw

A, B = ("topic", 0), ("topic", 1)
HAPPENINGS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 1), st.integers(1, 5), st.booleans()),
        st.tuples(st.just("again"), st.integers(0, 1), st.integers(1, 4)),
        st.tuples(st.just("end"), st.integers(0, 1), st.integers(0, 3)),
        st.tuples(st.just("commit")),
        st.tuples(st.just("lost"), st.integers(0, 1)),
    ),
    max_size=60,
)


def parse(source: str, start: int, end: int, messages: Messages) -> Parsed:
    """Every message as a letter, so that it can be seen what was parsed."""
    assert all(start <= one.offset < end for one in messages)
    letters = tuple(Rejected(one.offset, Flaw("seen"), one.value or b"") for one in messages)
    return Parsed(start, end, (), letters, end - start - len(messages))


def offsets_of(parsed: Parsed) -> list[int]:
    """What was parsed."""
    assert parsed.blank == parsed.end - parsed.start - len(parsed.rejected)
    return [one.line for one in parsed.rejected]


def message(offset: int, size: int = 10) -> Message:
    """A message of some size."""
    return Message(offset, b"x" * size)


@given(HAPPENINGS)
def test_what_is_committed_has_no_gap_and_no_overlap(happenings: list[tuple[Any, ...]]) -> None:
    """Whatever is read twice, skipped, taken away and given back."""
    backlog = Backlog(CommitRule(), parse)
    table = {A: 0, B: 0}
    broker = {A: 0, B: 0}  # next offset that the broker would give
    seen: dict[Any, list[int]] = {A: [], B: []}
    for one in (A, B):
        backlog.own(one, str(one), 0)
    for what, *more in happenings:
        place = (A, B)[more[0]] if more else A
        if what == "read":
            hole = 2 if more[2] else 0
            backlog.add(place, Messages.of([message(broker[place] + hole + n) for n in range(more[1])]), 0.0)
            broker[place] += hole + more[1]
        elif what == "again":
            first = max(0, broker[place] - more[1])
            backlog.add(place, Messages.of([message(n) for n in range(first, broker[place])]), 0.0)
        elif what == "end":
            broker[place] += more[1]
            backlog.reached_end(place, broker[place], 0.0)
        elif what == "lost":
            backlog.own(place, str(place), table[place])
            broker[place] = table[place]
        else:
            parts = dict(backlog.ready())
            assert dict(backlog.ready()) == parts, "a commit that failed is tried again with the same"
            for place in (A, B):
                if (parsed := parts.get(str(place))) is not None:
                    assert parsed.start == table[place]
                    seen[place] += offsets_of(parsed)
                    table[place] = parsed.end
                assert backlog.owned()[place].end == table[place]
            backlog.landed()
            assert backlog.ready() == []
            assert not backlog.is_due(1e9)
    for offsets in seen.values():
        assert offsets == sorted(set(offsets))


def filled(rule: CommitRule, count: int, size: int = 10) -> Backlog:
    """A backlog with messages that were read at second 10."""
    backlog = Backlog(rule, parse)
    backlog.own(A, "a", 0)
    backlog.add(A, Messages.of([message(n, size) for n in range(count)]), 10.0)
    return backlog


def test_a_commit_is_due_by_time_events_bytes_or_at_the_end() -> None:
    """Whichever is first; never with nothing to commit."""
    rule = CommitRule(seconds=2.0, events=100, memory_bytes=100_000, idle_seconds=0.5)
    assert not filled(rule, 5).is_due(11.9)
    assert filled(rule, 5).is_due(12.0)
    assert filled(rule, 100).is_due(10.0)
    assert filled(rule, 10, size=10_000).is_due(10.0)
    caught_up = filled(rule, 5)
    caught_up.reached_end(A, 5, 10.1)
    assert not caught_up.is_due(10.4)
    assert caught_up.is_due(10.5)
    caught_up.add(A, Messages.of([message(5)]), 10.45)
    assert not caught_up.is_due(10.5)
    assert not Backlog(rule, parse).is_due(1e9)


def test_time_counts_from_the_first_message_that_waits() -> None:
    """A steady stream does not put the commit off."""
    backlog = filled(CommitRule(seconds=2.0), 1)
    for at in range(1, 20):
        backlog.add(A, Messages.of([message(at)]), 10.0 + at / 10)
    assert backlog.is_due(12.0)


def test_markers_behind_the_last_message_are_committed_too() -> None:
    """Otherwise a topic of transactions would never be caught up."""
    backlog = filled(CommitRule(), 0)
    backlog.reached_end(A, 3, 10.0)
    ((source, parsed),) = backlog.ready()
    assert (source, parsed.start, parsed.end, offsets_of(parsed)) == ("a", 0, 3, [])
    assert backlog.is_due(11.0)


def test_what_comes_for_a_partition_that_was_taken_away_is_dropped() -> None:
    """It is the next owner's."""
    backlog = filled(CommitRule(), 3)
    backlog.disown([A])
    backlog.add(A, Messages.of([message(3)]), 10.0)
    assert (backlog.ready(), backlog.events(), backlog.is_due(1e9)) == ([], 0, False)


def test_while_the_broker_has_much_for_us_time_means_longer() -> None:
    """Nobody waits for the newest events then; bytes and events count as ever."""
    rule = CommitRule(seconds=2.0, events=100, behind_events=50, behind_seconds=6.0)
    assert not filled(rule, 5).is_due(12.0, lambda: 51)
    assert filled(rule, 5).is_due(12.0, lambda: 50)
    assert filled(rule, 5).is_due(16.0, lambda: 51)
    assert filled(rule, 100).is_due(10.0, lambda: 51)


def test_pieces_are_parsed_while_more_is_read_and_join_to_what_one_parse_gives() -> None:
    """Only what is not a whole piece yet waits as messages."""
    backlog = filled(CommitRule(), PIECE_EVENTS - 1)
    backlog.parse_pieces()
    assert len(backlog.owned()[A].messages) == PIECE_EVENTS - 1
    backlog.add(A, Messages.of([message(PIECE_EVENTS - 1), message(PIECE_EVENTS + 5)]), 10.0)
    backlog.parse_pieces()
    assert backlog.owned()[A].messages == Messages()
    backlog.add(A, Messages.of([message(PIECE_EVENTS + 6)]), 10.0)
    ((_, parsed),) = backlog.ready()
    assert (parsed.start, parsed.end) == (0, PIECE_EVENTS + 7)
    assert offsets_of(parsed) == [*range(PIECE_EVENTS), PIECE_EVENTS + 5, PIECE_EVENTS + 6]
    assert backlog.events() == PIECE_EVENTS + 2
    backlog.landed()
    assert (backlog.events(), backlog.ready()) == (0, [])


def test_what_could_not_be_parsed_yet_is_parsed_the_next_time() -> None:
    """A registry may be away; nothing is lost by that."""
    away = [True]

    def sometimes(source: str, start: int, end: int, messages: Messages) -> Parsed:
        if away:
            raise RegistryUnavailable("away")
        return parse(source, start, end, messages)

    backlog = Backlog(CommitRule(), sometimes)
    backlog.own(A, "a", 0)
    backlog.add(A, Messages.of([message(n) for n in range(PIECE_EVENTS)]), 10.0)
    for failing in (backlog.parse_pieces, backlog.ready):
        with pytest.raises(RegistryUnavailable):
            failing()
    away.clear()
    ((_, parsed),) = backlog.ready()
    assert offsets_of(parsed) == list(range(PIECE_EVENTS))
