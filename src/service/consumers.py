"""What is wrong with consumers of topics, by what they wrote down themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal

from attrs import frozen

from keys import ShredlakeError
from lake import ConsumerState, StuckPartition

_SHOWN: Final = 5


@frozen
class ConsumerTrouble:
    """One consumer that does not bring what its topics have.

    Attributes:
        kind: it waits, some partitions are stuck, it says nothing any more, or an error has ended it.
        error: the type of what it waits for or what ended it; None where nobody knows.
        seconds: for how long.
    """

    kind: Literal["waits", "stuck", "silent", "ended"]
    error: str | None
    seconds: float
    partitions: tuple[StuckPartition, ...] = ()

    def text(self) -> str:
        """For people: what it is and what to do."""
        if self.kind == "silent":
            return (
                f"a consumer has said nothing for {self.seconds:,.0f} s: it hangs, or was killed; look at its"
                " host and log, then start `shredlake ingest kafka` again"
            )
        what = told(self.error or "")
        if self.kind == "ended":
            return f"a consumer was ended by {self.error} {self.seconds:,.0f} s ago: {what}"
        if self.kind == "waits":
            return f"a consumer waits ({self.error}): {what}"
        return (
            f"{_listed(self.partitions)} stuck for {self.seconds:,.0f} s ({self.error}): {what}{self._past()}"
        )

    def _past(self) -> str:
        """What helps where one message is the cause."""
        places = [one for one in self.partitions if one.offset is not None]
        if not places or self.error == "PartitionStalled":
            return ""
        one = places[0]
        return (
            f" Where a message is the cause: `shredlake ingest skip --topic {one.topic} --partition"
            f" {one.number} --offset OFFSET`, from offset {one.offset} on"
        )


def troubles(states: Iterable[ConsumerState], now: float) -> list[ConsumerTrouble]:
    """All that is wrong at a moment, in seconds since the epoch."""
    found: list[ConsumerTrouble] = []
    for state in states:
        since = max(0.0, now - state.seen_at)
        if state.ended_by is not None:
            found.append(ConsumerTrouble("ended", state.ended_by, since))
        elif state.is_silent(now):
            found.append(ConsumerTrouble("silent", None, since))
        elif state.stuck:
            for error in sorted({one.error for one in state.stuck}):
                of_error = tuple(one for one in state.stuck if one.error == error)
                longest = max(0.0, now - min(one.since for one in of_error))
                found.append(ConsumerTrouble("stuck", error, longest, of_error))
        elif state.waits_for is not None:
            found.append(ConsumerTrouble("waits", state.waits_for, since))
    return found


def told(name: str) -> str:
    """What an error of ours means and what to do, by its name alone."""
    kinds = [ShredlakeError]
    while kinds:
        kind = kinds.pop()
        if kind.__name__ == name:
            what = (kind.__doc__ or name).strip().splitlines()[0]
            return f"{what} {kind.default_next_step}"
        kinds += kind.__subclasses__()
    return "the log says more"


def _listed(partitions: Sequence[StuckPartition]) -> str:
    shown = ", ".join(f"{one.number} of {one.topic}" for one in partitions[:_SHOWN])
    more = f" and {len(partitions) - _SHOWN} more" if len(partitions) > _SHOWN else ""
    return f"partition(s) {shown}{more}"
