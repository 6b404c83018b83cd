"""The fence log: who may never be read again, and that nobody edits it unseen."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from keys import ALL_PURPOSES, FenceLog, InvalidTransition
from keys.lifecycle import Life, State
from tests.keys.people import ANN, BOB, now

KEY = b"k" * 32
REFS = [bytes([n]) * 16 for n in range(8)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the log lies."""
    return tmp_path / "fences.db"


def opened(path: Path) -> FenceLog:
    """The log as any process opens it."""
    return FenceLog(path, KEY, now)


def entry(
    log: FenceLog, ref: bytes, purpose: str = ALL_PURPOSES, generation: int = 1
) -> tuple[bytes, bytes, str, int]:
    """What `append` takes, for Ann."""
    return log.subject_tag(ANN), log.ref_tag(ref), purpose, generation


def filled(path: Path, count: int = 5) -> FenceLog:
    """A log of some fences."""
    log = opened(path)
    log.append([entry(log, ref) for ref in REFS[:count]], "r")
    return log


def edit(path: Path, *statements: str) -> None:
    """What somebody with the file can do."""
    with sqlite3.connect(path) as db:
        for statement in statements:
            db.execute(statement)


def test_a_fence_appended_again_stays_as_it_was(path: Path) -> None:
    """The same number, request and time, also in the middle of new ones."""
    log = opened(path)
    first = log.append([entry(log, REFS[0])], "r1")
    again = log.append([entry(log, REFS[1]), entry(log, REFS[0]), entry(log, REFS[2])], "r2")
    assert again[1] == first[0]
    assert [fence.epoch for fence in again] == [2, 1, 3]
    assert log.verify() == log.epoch() == 3


def test_a_second_eraser_who_finds_no_record_does_not_turn_the_generation_back(path: Path) -> None:
    """The next life would be numbered like one that was erased."""
    log = opened(path)
    (first,) = log.append([entry(log, REFS[0], ALL_PURPOSES, 2)], "r1")
    assert log.append([entry(log, REFS[0], ALL_PURPOSES, 1)], "r2") == [first]
    assert log.life(ANN, "service") == Life(State.DESTROYED, 2)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM fences WHERE epoch = 3",
        "DELETE FROM fences WHERE epoch = 1",
        "DELETE FROM fences WHERE epoch IN (2, 3, 4)",
        "UPDATE fences SET subject_tag = zeroblob(16) WHERE epoch = 3",
        "UPDATE fences SET ref_tag = zeroblob(16) WHERE epoch = 3",
        "UPDATE fences SET purpose = 'service' WHERE epoch = 3",
        "UPDATE fences SET generation = 9 WHERE epoch = 3",
        "UPDATE fences SET request_id = 'other' WHERE epoch = 3",
        "UPDATE fences SET fenced_at = '1999' WHERE epoch = 3",
        "UPDATE fences SET chain = zeroblob(32) WHERE epoch = 3",
        "UPDATE fences SET epoch = 9 WHERE epoch = 5",
    ],
)
def test_an_edit_or_a_gap_breaks_the_chain(path: Path, statement: str) -> None:
    """Every column of every row counts, and so does its place."""
    log = filled(path)
    assert log.verify() == 5
    edit(path, statement)
    with pytest.raises(ValueError, match="epoch"):
        log.verify()


def test_two_rows_that_change_places_break_the_chain(path: Path) -> None:
    """Numbers alone do not make an order."""
    log = filled(path)
    edit(
        path,
        "UPDATE fences SET epoch = 99 WHERE epoch = 2",
        "UPDATE fences SET epoch = 2 WHERE epoch = 3",
        "UPDATE fences SET epoch = 3 WHERE epoch = 99",
    )
    with pytest.raises(ValueError, match="epoch 2"):
        log.verify()


def test_closing_a_gap_by_renumbering_breaks_the_chain(path: Path) -> None:
    """What somebody would do who removes a fence with care."""
    log = filled(path)
    edit(path, "DELETE FROM fences WHERE epoch = 3", "UPDATE fences SET epoch = epoch - 1 WHERE epoch > 3")
    with pytest.raises(ValueError, match="epoch 3"):
        log.verify()


def test_a_fence_covers_its_purpose_and_the_generations_up_to_its_own(path: Path) -> None:
    """One of a whole person covers every purpose."""
    log = opened(path)
    log.append([entry(log, REFS[0], "marketing", 2), entry(log, REFS[1])], "r")
    assert log.of_ref(REFS[0], "marketing", 1) == log.of_ref(REFS[0], "marketing", 2) == log.all()[0]
    assert log.of_ref(REFS[0], "marketing", 3) is None
    assert log.of_ref(REFS[0], "service", 1) is None
    assert log.of_ref(REFS[1], "anything", 1) == log.all()[1]
    assert log.of_ref(REFS[2], "anything", 1) is None


def test_the_filter_says_the_same_as_the_log(path: Path) -> None:
    """For everybody, near neighbours of a fenced handle included."""
    log = opened(path)
    assert log.covering() is None
    log.append([entry(log, REFS[1], "marketing", 1)], "r")
    fence_of = log.covering()
    assert fence_of is not None
    neighbour = REFS[1][:2] + bytes(14)
    for ref in (*REFS, neighbour):
        for purpose in ("marketing", "service"):
            for generation in (1, 2):
                assert fence_of(ref, purpose, generation) == log.of_ref(ref, purpose, generation)


def test_fences_are_found_by_person_by_number_and_by_age(path: Path) -> None:
    """Each as by a look through the whole log, newer ones of other processes included."""
    log, other = filled(path, 2), opened(path)
    of_bob = (log.subject_tag(BOB), log.ref_tag(REFS[6]), ALL_PURPOSES, 1)
    other.append([of_bob, entry(other, REFS[3], "marketing")], "r2")
    everything = log.all()
    assert log.of_tag(log.subject_tag(ANN)) == [everything[0], everything[1], everything[3]]
    assert log.of_tag(log.subject_tag(BOB)) == [everything[2]]
    assert log.of_tag(bytes(16)) == []
    assert log.numbered([4, 1, 9, 0, 1]) == [everything[0], everything[3]]
    assert [list(log.after(epoch)) for epoch in (0, 2, 4)] == [everything, everything[2:], []]


def test_one_person_s_fences_are_not_looked_for_in_the_whole_log(path: Path) -> None:
    """Once it was read; the rows that a question reads are counted by what it asks the file."""
    log = filled(path)
    log.refresh()
    asked: list[str] = []
    log._db.connection().set_trace_callback(asked.append)
    assert log.ref_ranges(ANN)
    assert log.refs_of(ANN, REFS) == REFS[:5]
    assert log.numbered([2])
    assert log.touched_since(4, REFS)
    assert log.life(ANN, "service") == Life(State.DESTROYED, 1)
    assert len(asked) > 5
    assert [one for one in asked if " FROM fences" in one and not one.endswith("LIMIT 1")] == []


def test_a_running_process_sees_that_the_log_went_back(path: Path) -> None:
    """What an older file does not hold is not remembered; what follows in it is seen."""
    log = filled(path, 3)
    assert log.of_ref(REFS[2], "service", 1) is not None
    edit(path, "DELETE FROM fences WHERE epoch = 3")
    assert log.of_ref(REFS[2], "service", 1) is None
    assert log.of_ref(REFS[1], "service", 1) is not None
    opened(path).append([entry(log, REFS[3])], "r")
    assert log.of_ref(REFS[3], "service", 1) is not None
    assert log.touched_since(2, [REFS[3]])
    assert not log.touched_since(2, [REFS[2]])


@pytest.mark.parametrize("grown_by", [1, 2, 3])
def test_a_running_process_sees_that_the_log_went_back_and_grew_again(path: Path, grown_by: int) -> None:
    """Shorter than it was, as long, or longer: what counts is the newest link, and what it follows."""
    log, restored = filled(path, 3), path.with_name("restored.db")
    assert log.of_ref(REFS[2], "service", 1) is not None
    older = filled(restored, 1)
    older.append([entry(older, ref) for ref in REFS[4 : 4 + grown_by]], "r")
    older.close()
    with sqlite3.connect(restored) as source, sqlite3.connect(path) as target:
        source.backup(target)  # in place, as a tool does that restores under a running process
    assert log.of_ref(REFS[2], "service", 1) is None
    assert all(log.of_ref(ref, "service", 1) is not None for ref in (REFS[0], *REFS[4 : 4 + grown_by]))
    (newest, link), links = log.links()
    assert (newest, link) == log.head() == (1 + grown_by, links[newest])
    assert links == {fence.epoch: fence.chain for fence in log.all()}


def test_nobody_returns_who_was_never_erased(path: Path) -> None:
    """Nor for a purpose that was not."""
    log = opened(path)
    with pytest.raises(InvalidTransition):
        log.authorize_return(ANN, "service", log.epoch())
    log.append([entry(log, REFS[0], "marketing")], "r")
    with pytest.raises(InvalidTransition):
        log.authorize_return(ANN, "service", log.epoch())
    with pytest.raises(InvalidTransition):
        log.authorize_return(BOB, "marketing", log.epoch())


def test_a_return_is_for_one_purpose_and_until_the_next_fence(path: Path) -> None:
    """An authorisation is not kept for a later erasure."""
    log = opened(path)
    log.append([entry(log, REFS[0])], "r1")
    log.authorize_return(ANN, "service", log.epoch())
    assert log.life(ANN, "service") == Life(State.RETURN_AUTHORIZED, 1)
    assert log.life(ANN, "marketing") == Life(State.DESTROYED, 1)
    log.append([entry(log, REFS[1], ALL_PURPOSES, 2)], "r2")
    assert log.life(ANN, "service") == Life(State.DESTROYED, 2)


def test_a_return_authorised_elsewhere_is_seen_without_a_new_fence(path: Path) -> None:
    """A service that runs on must not refuse whom the operator let in."""
    log, other = filled(path), opened(path)
    assert other.life(ANN, "service").state is State.DESTROYED
    log.authorize_return(ANN, "service", log.epoch())
    assert other.life(ANN, "service").state is State.RETURN_AUTHORIZED


def test_the_log_holds_neither_ids_nor_handles(path: Path) -> None:
    """Keyed hashes: another key gives other tags, but for the bucket."""
    log = filled(path)
    log.authorize_return(ANN, "service", log.epoch())
    log._db.flush_deleted()
    content = path.read_bytes()
    assert ANN.reveal().encode() not in content
    assert all(ref not in content for ref in REFS[1:])
    other = FenceLog(path.with_name("other.db"), b"x" * 32, now)
    assert log.subject_tag(ANN) != other.subject_tag(ANN)
    assert log.ref_tag(REFS[1])[2:] != other.ref_tag(REFS[1])[2:]


def test_a_fence_says_the_bucket_of_its_handle(path: Path) -> None:
    """Of any size up to ten bits, from the tag alone."""
    log = opened(path)
    ref = bytes([0b10110111, 0b01101010]) + bytes(14)
    (fence,) = log.append([entry(log, ref)], "r")
    assert [fence.bucket(bits) for bits in (1, 4, 10)] == [0b1, 0b1011, 0b1011011101]
    assert fence.ref_tag[1] & 0x3F == 0, "no more than ten bits are in the clear"
