"""The life of one (subject, purpose)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys import InvalidTransition, KeysError, SubjectErased
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
