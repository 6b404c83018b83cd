"""The evidence levels of a receipt: each is stated where it holds, and nowhere else."""

from __future__ import annotations

import base64
import itertools
import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from keys import Effects, SubjectId
from purge import Assurance, Status, VerificationFailed, payload_of, verifier_key
from purge.attestation import predicate_of
from purge.verifier import verify
from service.keyplaces import assurance
from service.runtime import Runtime
from service.settings import Keys
from tests.world import Clock, erase, make_world, paid, send

ANN = SubjectId("customer-ann-0001")


@pytest.fixture
def erased(world: Runtime) -> Runtime:
    """A lake that has erased one of two people."""
    send(world, [paid(ANN.reveal(), event_id="1"), paid("bob", event_id="2")])
    erase(world, ANN.reveal())
    return world


def test_e2_is_stated_from_the_declared_day_on_and_not_without_one(erased: Runtime) -> None:
    """It counts from the close of the epoch; who declares nothing is promised nothing."""
    (request,) = erased.purge.journal.all()
    finished = {stage.stage: stage.finished_at for stage in request.stages}
    assert finished["epoch_closed"] is not None
    for days in (0, 30):
        level = predicate_of(request, Assurance("transit engine", days))["level"]
        due = datetime.fromisoformat(level["E2"]["due"])
        assert due == datetime.fromisoformat(finished["epoch_closed"]) + timedelta(days=days)
        assert f"{days} days" in level["E2"]["evidence"]
    assert "E2" not in predicate_of(request, Assurance("transit engine"))["level"]


def test_e2_is_never_stated_for_a_root_file(erased: Runtime) -> None:
    """Its copies are not known to anybody; E3 is stated nowhere."""
    (request,) = erased.purge.journal.all()
    assert request.receipt is not None
    assert set(payload_of(request.receipt)["predicate"]["level"]) == {"name", "E0", "E1"}
    server = Keys.model_validate({"vault": {"address": "https://vault:8200", "snapshot_horizon_days": 30}})
    assert assurance(server).snapshot_horizon_days == 30
    assert assurance(Keys()).snapshot_horizon_days is None


def test_e1_is_not_attested_where_a_key_of_before_still_opens(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The custodian says that it has retired the old root and has not: the old wrap is tried, and opens."""
    send(world, [paid(ANN.reveal(), event_id="1")])
    request_id = world.purge.submit(ANN).request.request_id
    with monkeypatch.context() as lying:
        lying.setattr(world.keyring.custodian, "retire", lambda below: None)
        with pytest.raises(VerificationFailed, match="still opens"):
            world.purge.run(request_id)
    request = world.purge.journal.get(request_id)
    assert (request.status, request.receipt) == (Status.INCOMPLETE, None)
    assert world.purge.run(request_id).status is Status.COMPLETED


class Killed(BaseException):
    """Ends a run where it is."""


def test_an_attestation_killed_at_any_effect_is_resumed_to_one_leaf_and_one_receipt(tmp_path: Path) -> None:
    """Before and after each durable effect; time goes on in between, and the statement stays the first one."""
    clock, left = Clock(), [0]

    def observe(when: str, name: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def arm(stage: str, seconds: float, detail: object) -> None:
        clock.forward(minutes=1)
        left[0] = at if stage == "verified" else 0

    with make_world(tmp_path / "lake", clock=clock, effects=Effects(observe)) as world:
        send(world, [paid(ANN.reveal(), event_id="1")])
        request_id = world.purge.submit(ANN).request.request_id
        for at in itertools.count(1):
            try:
                done = world.purge.run(request_id, arm)
            except Killed:
                clock.forward(minutes=1)
                left[0] = at + 1
                continue
            break
        assert at > 6, "statement, leaf, receipt, and that the stage is done, each before and after"
        assert done.status is Status.COMPLETED
        assert done.receipt is not None
        leaves = [world.purge.log.data(leaf) for leaf in range(world.purge.log.size())]
        assert leaves == [base64.b64decode(json.loads(done.receipt)["envelope"]["payload"])]
        (public,) = world.keyring.custodian.public_keys().values()
        verify(done.receipt, verifier_key(public))
