"""An erasure while events of the person wait to be committed."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from keys import SubjectId
from lake import Drained, EventRead, dead_letters
from purge import Status, VerificationFailed, scan
from service.runtime import Runtime, open_runtime
from tests.world import erase, paid, publish, send

ANN = SubjectId("customer-ann-0001")


def put(runtime: Runtime, *events: dict[str, Any]) -> str:
    """One batch that waits; its id."""
    return runtime.lake.intake.put(json.dumps(events).encode(), len(events))[0].batch_id


def stored(runtime: Runtime) -> list[str]:
    """Ids of all events that can be opened."""
    replay = runtime.lake.replay()
    head = replay.resolve(None)
    assert head is not None
    frame = replay.events(replay.files(head.snapshot_id), EventRead("Paid", ("event_id",))).frame
    return sorted(frame.filter(~frame["shredded"])["event_id"].to_list())


def spool_bytes(home: Path) -> bytes:
    """Everything of the spool's file and its log."""
    return b"".join(p.read_bytes() for p in (home / "lake").glob("intake.db*"))


def test_what_waits_is_committed_without_the_person(world: Runtime) -> None:
    """No server runs: the erasure drains the spool itself. A broken line that names the person goes too."""
    send(world, [paid(ANN.reveal(), event_id="1"), paid("bob", event_id="2")])
    publish(world)
    batch = put(
        world,
        paid(ANN.reveal(), event_id="3", note="my secret"),
        paid("bob", event_id="4"),
        {"broken": ANN.reveal()},
        {"broken": "somebody else"},
    )
    assert scan(world.home, ANN).findings, "whoever has the folder with its keys finds the person"
    sealed = (
        sqlite3.connect(world.home / "lake" / "intake.db").execute("SELECT sealed FROM waiting").fetchone()
    )
    request = world.purge.journal.get(erase(world, ANN.reveal()))
    assert request.status is Status.COMPLETED
    drained = request.detail("intake_drained")
    assert (drained["batches"], drained["events"]) == (1, 4)
    assert "nothing received before the fence waits in the intake" in request.detail("verified")["checks"]
    assert stored(world) == ["2", "4"]
    assert [b"somebody else" in letter.raw for letter in dead_letters(world.lake)] == [True]
    outcome = world.lake.intake.get(batch).outcome
    assert outcome is not None
    assert (outcome.accepted, outcome.rejected, outcome.suppressed) == (1, 2, 1)
    assert scan(world.home, ANN).findings == ()
    assert sealed[0] not in spool_bytes(world.home)


def test_an_erasure_is_not_attested_while_something_of_before_waits(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check fails, the request stays, and resuming it completes it."""
    send(world, [paid(ANN.reveal(), event_id="1")])
    put(world, paid(ANN.reveal(), event_id="2"))
    request_id = world.purge.submit(ANN).request.request_id
    with monkeypatch.context() as patched:
        patched.setattr(world.lake.intake, "drain", lambda epoch: Drained(0, 0))
        with pytest.raises(VerificationFailed, match="waits in the intake"):
            world.purge.run(request_id)
    assert world.purge.journal.get(request_id).status is Status.INCOMPLETE
    with pytest.raises(VerificationFailed):
        world.purge.run(request_id)
    world.lake.intake.drain()
    assert world.purge.run(request_id).status is Status.COMPLETED
    assert scan(world.home, ANN).findings == ()


def test_a_catalog_that_is_away_leaves_the_request_to_be_resumed(world: Runtime) -> None:
    """Nothing is destroyed before what waits is committed; then it goes on where it was."""
    send(world, [paid(ANN.reveal(), event_id="1")])
    put(world, paid(ANN.reveal(), event_id="2"), paid("bob", event_id="3"))
    request_id = world.purge.submit(ANN).request.request_id
    elsewhere = sqlite3.connect(world.home / "lake" / "catalog.db", isolation_level=None)
    commit = world.lake.intake.commit

    def lock_first(**options: bool) -> Any:
        if not elsewhere.in_transaction:
            elsewhere.execute("BEGIN EXCLUSIVE")
        return commit(**options)

    world.lake.intake.commit = lock_first  # type: ignore[method-assign]
    with pytest.raises(Exception, match="catalog"):
        world.purge.run(request_id)
    assert world.purge.journal.get(request_id).stage == "fenced"
    elsewhere.execute("ROLLBACK")
    elsewhere.close()
    world.lake.intake.commit = commit  # type: ignore[method-assign]
    assert world.purge.run(request_id).status is Status.COMPLETED
    assert stored(world) == ["3"]
    assert scan(world.home, ANN).findings == ()


def test_what_comes_after_the_fence_does_not_hold_the_erasure_up(world: Runtime) -> None:
    """It is sealed under a younger key, and waits on while what came before is drained."""
    send(world, [paid(ANN.reveal(), event_id="1")])
    put(world, paid("bob", event_id="2"))
    ref = world.keyring.ref_of(ANN)
    assert ref is not None
    (fence,) = world.keyring.fence([(ANN, ref)], "r")
    assert world.lake.intake.holds_before(fence.epoch)
    commit = world.lake.intake.commit

    def put_meanwhile(**options: bool) -> Any:
        done = commit(**options)
        put(world, paid("bob", event_id="3"))
        return done

    world.lake.intake.commit = put_meanwhile  # type: ignore[method-assign]
    world.lake.intake.drain(fence.epoch)
    assert not world.lake.intake.holds_before(fence.epoch)
    assert world.lake.intake.queue().batches == 1


def test_another_process_erases_while_a_server_holds_a_batch(world: Runtime) -> None:
    """Two processes' spools are one file."""
    send(world, [paid(ANN.reveal(), event_id="1"), paid("bob", event_id="2")])
    put(world, paid(ANN.reveal(), event_id="3"))
    with open_runtime(world.home) as other:
        erase(other, ANN.reveal())
    put(world, paid(ANN.reveal(), event_id="4"), paid("bob", event_id="5"))
    world.lake.intake.drain()
    assert stored(world) == ["2", "5"]
    assert scan(world.home, ANN).findings == ()
