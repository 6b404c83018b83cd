"""Where a person is, before and after an erasure."""

from __future__ import annotations

from keys import SubjectId
from lake import Housekeeping, Place, whereabouts
from service.runtime import Runtime
from tests.world import compact_all, erase, paid, send, shred

ANN = SubjectId("ann")


def held(world: Runtime) -> set[tuple[str, bool]]:
    """Who holds sealed bytes of Ann, and whether they can be read."""
    return {(one.held_by, one.readable) for one in whereabouts(world.lake, ANN)}


def both(world: Runtime) -> None:
    """Two events of Ann in two commits, Bob's beside them."""
    for number in range(2):
        send(world, [paid(name, number, event_id=f"{name}-{number}") for name in ("ann", "bob")])


def test_bytes_of_an_erased_person_are_shown_as_dead_until_they_are_gone(world: Runtime) -> None:
    """First read by the head, then held by older snapshots alone, at last nowhere."""
    both(world)
    before = whereabouts(world.lake, ANN)
    assert [(one.held_by, one.readable, one.events) for one in before] == [("head", True, 1)] * 2
    erase(world, "ann")
    assert held(world) == {("snapshots", False)}
    assert total(whereabouts(world.lake, ANN)) == total(before)
    Housekeeping(world.lake).expire(keep=1)
    Housekeeping(world.lake).sweep(grace_seconds=0)
    assert held(world) == set()
    assert len(whereabouts(world.lake, SubjectId("bob"))) == 1


def total(places: list[Place]) -> int:
    """Sealed bytes of all."""
    return sum(one.sealed_bytes for one in places)


def test_a_destroyed_key_makes_live_bytes_dead_and_compaction_takes_them_out(world: Runtime) -> None:
    """Whose key alone was destroyed is still in live files, and says so."""
    both(world)
    shred(world, "ann")
    assert held(world) == {("head", False)}
    compact_all(world)
    assert held(world) == {("snapshots", False)}


def test_who_came_back_is_shown_with_both_lives(world: Runtime) -> None:
    """The old handle's bytes are dead, the new one's are not."""
    both(world)
    shred(world, "ann")
    world.keyring.authorize_return(ANN)
    send(world, [paid("ann", 5, event_id="again")])
    assert held(world) == {("head", False), ("head", True)}


def test_who_never_was_there_is_nowhere(world: Runtime) -> None:
    """Also beside erased people."""
    both(world)
    shred(world, "ann")
    assert whereabouts(world.lake, SubjectId("cy")) == []
