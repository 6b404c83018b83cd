"""An erasure is verified by what it found before: each stage that is skipped is found out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from keys import SubjectId
from lake import LetterRedaction
from projections import StateStore
from purge import Status, VerificationFailed, payload_of, scan
from service.runtime import Runtime
from tests.purge.test_who_can_be_erased import letter, wait_in_intake
from tests.world import erase, paid, publish, send

ANN = SubjectId("customer-ann-0001")


def fill(world: Runtime) -> None:
    """Blocks, states, rows of a view with a row per person, a letter of nobody's, a batch that waits."""
    send(world, [paid(ANN.reveal(), 5, event_id="1"), paid("bob", 7, event_id="2")])
    publish(world)
    letter(world, b"1," + ANN.reveal().encode())
    wait_in_intake(world, {"broken": ANN.reveal()})


def keep_letters(world: Runtime, patch: pytest.MonkeyPatch) -> None:
    """The redaction does nothing."""
    patch.setattr(LetterRedaction, "run", lambda *_: 0)


def keep_waiting_letters(world: Runtime, patch: pytest.MonkeyPatch) -> None:
    """The redaction takes the letters out of the head and leaves their keys."""
    patch.setattr(LetterRedaction, "_drop_keys", lambda *_: None)


def keep_state_keys(world: Runtime, patch: pytest.MonkeyPatch) -> None:
    """The states go, the keys that open a copy of them stay."""
    patch.setattr(StateStore, "drop_doomed", lambda *_: None)


def keep_rows(world: Runtime, patch: pytest.MonkeyPatch) -> None:
    """The person's key stays: rows published before can be opened past the fence."""
    patch.setattr(world.keyring, "destroy", lambda refs, fences: 1)


def keep_waiting(world: Runtime, patch: pytest.MonkeyPatch) -> None:
    """Nothing of what waits is committed."""
    patch.setattr(world.lake.intake, "drain", lambda epoch: type("None", (), {"batches": 0, "events": 0}))


KEPT: list[tuple[str, Callable[[Runtime, pytest.MonkeyPatch], None]]] = [
    ("dead letter of nobody", keep_letters),
    ("dead letter of nobody", keep_waiting_letters),
    ("state that held the person", keep_state_keys),
    ("published row of the person", keep_rows),
    ("nothing received before the fence waits", keep_waiting),
]


@pytest.mark.parametrize(("check", "keep"), KEPT, ids=[keep.__name__ for _, keep in KEPT])
def test_a_skipped_stage_leaves_what_the_verification_refuses(
    world: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    check: str,
    keep: Callable[[Runtime, pytest.MonkeyPatch], None],
) -> None:
    """No receipt while what was found before can still be opened."""
    fill(world)
    request_id = world.purge.submit(ANN).request.request_id
    keep(world, monkeypatch)
    with pytest.raises(VerificationFailed, match=check):
        world.purge.run(request_id)
    request = world.purge.journal.get(request_id)
    assert (request.status, request.receipt) == (Status.INCOMPLETE, None)


def test_an_erasure_that_skips_nothing_found_keys_of_each_kind_and_they_are_gone(world: Runtime) -> None:
    """So that no check is true for want of something to look at; no handle comes into the receipt."""
    fill(world)
    ref = world.keyring.ref_of(ANN)
    assert ref is not None
    rows = world.views.remains.rows({ref: world.keyring.epoch() + 1})
    assert {(row.subject_ref, row.purposes) for row in rows} == {(ref, ("service",))}
    done = world.purge.journal.get(erase(world, ANN.reveal()))
    keys = [*done.detail("fenced")["state_keys"], *done.detail("intake_drained")["letter_keys"]]
    assert len(done.detail("fenced")["state_keys"]) == len(world.views.registry.names())
    assert len(done.detail("intake_drained")["letter_keys"]) >= 1
    assert list(world.keyring.tree.records_of([bytes.fromhex(key) for key in keys])) == []
    assert world.views.remains.rows({ref: done.detail("fenced")["epoch"]}), (
        "the old rows are there to look at"
    )
    assert done.receipt is not None
    assert not [key for key in keys if key.encode() in done.receipt]
    assert scan(world.home, ANN).findings == ()
    predicate = payload_of(done.receipt)["predicate"]
    assert [one for one in predicate["not_addressed"] if "other people" in one]
