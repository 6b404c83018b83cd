"""The life of one (subject, purpose), as a pure state machine. All rules are here and nowhere else.

unknown → provisioned(n) ⇄ held → fenced → destroyed → (authorized return) → provisioned(n + 1)
"""

from __future__ import annotations

from enum import Enum

from attrs import evolve, frozen

from keys.errors import InvalidTransition, SubjectErased


class State(Enum):
    """Where a (subject, purpose) stands."""

    UNKNOWN = "unknown"
    PROVISIONED = "provisioned"
    HELD = "held"
    FENCED = "fenced"
    DESTROYED = "destroyed"
    RETURN_AUTHORIZED = "return_authorized"


@frozen
class Life:
    """State and generation; generation 0 has never had a key."""

    state: State = State.UNKNOWN
    generation: int = 0


def provision(life: Life) -> Life:
    """A key comes to be, or is found to be there already.

    Raises:
        SubjectErased: fenced or destroyed, and no return was authorized.
    """
    if life.state in (State.UNKNOWN, State.RETURN_AUTHORIZED):
        return Life(State.PROVISIONED, life.generation + 1)
    if life.state in (State.PROVISIONED, State.HELD):
        return life
    raise SubjectErased("this data subject was erased and may not be provisioned again")


def hold(life: Life) -> Life:
    """A legal hold begins."""
    return _step(life, (State.PROVISIONED, State.HELD), State.HELD, "hold")


def release(life: Life) -> Life:
    """A legal hold ends."""
    return _step(life, (State.HELD, State.PROVISIONED), State.PROVISIONED, "release")


def fence(life: Life) -> Life:
    """Generations up to this one are condemned. A held subject cannot be fenced."""
    allowed = (State.UNKNOWN, State.PROVISIONED, State.FENCED, State.DESTROYED)
    after = State.DESTROYED if life.state is State.DESTROYED else State.FENCED
    return _step(life, allowed, after, "fence")


def destroy(life: Life) -> Life:
    """The key is gone. Only behind a fence; repeating it is success."""
    return _step(life, (State.FENCED, State.DESTROYED), State.DESTROYED, "destroy")


def authorize_return(life: Life) -> Life:
    """The person came back lawfully; the next provisioning gets a new ref and generation."""
    return _step(life, (State.DESTROYED, State.RETURN_AUTHORIZED), State.RETURN_AUTHORIZED, "return")


def _step(life: Life, allowed: tuple[State, ...], after: State, verb: str) -> Life:
    if life.state not in allowed:
        raise InvalidTransition(f"cannot {verb} a data subject that is {life.state.value}")
    return evolve(life, state=after)
