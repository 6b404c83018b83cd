"""Legal holds, asked at every door."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from keys import InvalidTransition, SubjectId
from service.app import create_app
from service.cli import app
from service.runtime import Runtime
from tests.world import paid, publish, send

ANN = SubjectId("customer-ann")


@pytest.mark.parametrize("built_again", [False, True])
def test_a_held_person_reads_as_held_and_not_as_somebody_without_a_row(
    world: Runtime, built_again: bool
) -> None:
    """In Python, by the command and over HTTP; whether the row was written before the hold or left out since."""
    send(world, [paid(ANN.reveal(), event_id="1"), paid("bob", event_id="2")])
    publish(world)
    world.purge.hold(ANN, "court")
    if built_again:
        publish(world, rebuild=True)
    found = world.views.person("balance", ANN)
    assert (found.held, found.row, found.shredded) == (True, None, None)
    assert not world.views.person("balance", SubjectId("bob")).held
    asked = ["--home", str(world.home), "views", "person", "balance", ANN.reveal()]
    assert "held" in CliRunner().invoke(app, asked).stdout
    headers = {"Authorization": f"Bearer {world.token}"}
    with TestClient(create_app(world), headers=headers) as client:
        answer = client.post("/v1/views/balance/row", json={"subject": ANN.reveal()})
        assert (answer.status_code, answer.json()["title"]) == (409, "Held")
    world.purge.release(ANN)
    publish(world, rebuild=True)
    assert world.views.person("balance", ANN).row is not None


def test_who_is_condemned_already_can_no_longer_be_held_and_no_hold_is_left_on_record(world: Runtime) -> None:
    """The erasure goes on to its receipt."""
    send(world, [paid(ANN.reveal(), event_id="1")])
    ref = world.keyring.ref_of(ANN)
    assert ref is not None
    fences = world.keyring.fence([(ANN, ref)], "request")
    with pytest.raises(InvalidTransition):
        world.purge.hold(ANN, "court")
    assert not world.purge.journal.is_held(world.keyring.fences.subject_tag(ANN))
    assert world.keyring.destroy([ref], fences) == 1


def test_nobody_who_is_held_is_fenced_and_a_batch_with_one_of_them_fences_nobody(world: Runtime) -> None:
    """Through the keyring itself, whatever the journal says."""
    send(world, [paid(ANN.reveal(), event_id="1"), paid("bob", event_id="2")])
    refs = {name: world.keyring.ref_of(SubjectId(name)) for name in (ANN.reveal(), "bob")}
    ann, bob = refs[ANN.reveal()], refs["bob"]
    assert ann is not None
    assert bob is not None
    world.keyring.hold(ann, True)
    with pytest.raises(InvalidTransition, match="held"):
        world.keyring.fence([(SubjectId("bob"), bob), (ANN, ann)], "request")
    assert world.keyring.epoch() == 0
    with pytest.raises(InvalidTransition):
        world.keyring.destroy([ann], [])
