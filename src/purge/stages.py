"""The stages of an erasure and what may follow what. Pure: this module holds all the rules."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final

from attrs import frozen


class Status(Enum):
    """What the outside sees."""

    PENDING = "pending"
    HELD = "held"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    INCOMPLETE = "incomplete"


@frozen
class Standing:
    """How many requests are open.

    Attributes:
        waiting: asked for, and nothing is fenced yet; `half_done` are past that.
        overdue: of both, those whose deadline has passed.
        held: wait for the end of a legal hold.
    """

    waiting: int = 0
    half_done: int = 0
    held: int = 0
    overdue: int = 0

    @property
    def open(self) -> int:
        """Those that somebody can go on with."""
        return self.waiting + self.half_done

    def words(self) -> str:
        """In a sentence."""
        held = f", {self.held:,} held" if self.held else ""
        return f"{self.waiting:,} waiting, {self.half_done:,} half done{held}, {self.overdue:,} overdue"


STAGES: Final = (
    "received",
    "hold_checked",
    "planned",
    "fenced",
    "intake_drained",
    "letters_redacted",
    "destroyed",
    "unreadable",
    "views_rederived",
    "states_unreadable",
    "epoch_closed",
    "swept",
    "verified",
    "attested",
)
"""In order. The fence is durable before anything is destroyed. What waited before it is committed before
letters are redacted, since a broken line may be among it. Keys that a fence does not cover, those of the
states above all, are dropped before everybody is made to let go of every key. The epoch
is closed only when every key is gone, those of the views' states included, so that no backup made between
opens them. Nothing is attested unverified."""

POINT_OF_NO_RETURN: Final = "fenced"


def next_stage(done: str) -> str | None:
    """The stage after a completed one; None after the last."""
    at = STAGES.index(done) + 1
    return STAGES[at] if at < len(STAGES) else None


def first_of(done: Iterable[str]) -> str | None:
    """The earliest stage that comes next for any of these requests, by their last completed ones.

    Those further on wait for the others, and go on with them together.
    """
    return min((stage for one in done if (stage := next_stage(one))), key=STAGES.index, default=None)


def may_cancel(done: str, status: Status) -> bool:
    """Whether a request can still be taken back."""
    before = STAGES.index(done) < STAGES.index(POINT_OF_NO_RETURN)
    return before and status in (Status.PENDING, Status.HELD, Status.IN_PROGRESS)


def status_of(done: str) -> Status:
    """The status that follows from the last completed stage."""
    if done == "received":
        return Status.PENDING
    return Status.COMPLETED if done == STAGES[-1] else Status.IN_PROGRESS
