"""The life of one (subject, purpose)."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys import Fence, InvalidTransition, KeysError, Provisioned, SubjectErased, SubjectId, open_embedded
from keys import lifecycle as life
from keys.lifecycle import Life, State

STEPS = {
    "provision": life.provision,
    "hold": life.hold,
    "release": life.release,
    "fence": life.fence,
    "destroy": life.destroy,
    "return": life.authorize_return,
}


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=30))
def test_no_order_of_steps_breaks_the_rules(steps: list[str]) -> None:
    """Generations only grow; nothing is destroyed unfenced; nobody comes back unauthorised."""
    now = Life()
    for step in steps:
        try:
            after = STEPS[step](now)
        except KeysError:
            continue
        assert after.generation >= now.generation
        if after.state is State.DESTROYED:
            assert now.state in (State.FENCED, State.DESTROYED)
        if after.state is State.PROVISIONED and now.state in (State.FENCED, State.DESTROYED):
            raise AssertionError("an erased person came back without authorisation")
        if now.state is State.HELD:
            assert after.state in (State.HELD, State.PROVISIONED)
        now = after


def test_the_keyring_takes_no_step_that_the_rules_refuse(tmp_path: Path) -> None:
    """Every order of four steps on real pages and a real fence log, for one person each."""
    keyring = open_embedded(tmp_path / "keys")
    orders = list(itertools.product(("hold", "release", "fence", "destroy"), repeat=3))
    people = [SubjectId(f"person-{number:03d}") for number in range(len(orders))]
    for order, subject in zip(orders, people, strict=True):
        (made,) = keyring.provision([subject])
        assert isinstance(made, Provisioned)
        ref, now, fences = made.ref, life.provision(Life()), list[Fence]()
        for step in order:
            try:
                wanted = STEPS[step](now)
            except KeysError:
                wanted = None
            if wanted is not None and wanted.state is State.DESTROYED is now.state:
                continue  # nothing is left to take a step with
            try:
                if step == "fence":
                    fences += keyring.fence([(subject, ref)], "request")
                elif step == "destroy":
                    keyring.destroy([ref], fences)
                elif now.state not in (State.FENCED, State.DESTROYED) or step == "hold":
                    keyring.hold(ref, step == "hold")
                did = True
            except InvalidTransition:
                did = False
            if now.state is State.DESTROYED:
                continue
            assert did == (wanted is not None or (step == "release" and now.state is State.FENCED)), order
            now = wanted or now
            assert keyring.is_held(ref) == (now.state is State.HELD)
    keyring.close()


def test_a_return_gets_the_next_generation() -> None:
    """So that old envelopes stay shut."""
    gone = life.destroy(life.fence(life.provision(Life())))
    with pytest.raises(SubjectErased):
        life.provision(gone)
    assert life.provision(life.authorize_return(gone)) == Life(State.PROVISIONED, 2)


def test_destroying_without_a_fence_is_refused() -> None:
    """The fence comes first."""
    with pytest.raises(InvalidTransition):
        life.destroy(life.provision(Life()))
