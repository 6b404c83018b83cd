"""The restore gate: whether fence log and page store are of one time. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from attrs import evolve, field, frozen

from keys.errors import RestoreGateClosed

_BRING_BACK: Final = (
    "Bring the newest copy of the fence log back, the file itself or a signed copy with"
    " `shredlake keys import-fences COPY`."
)
_THEN_CONVERGE: Final = "Then run `shredlake keys converge`."


@frozen
class Remembered:
    """The newest fence that a place outside of fence log and page store remembers.

    Attributes:
        by: what remembers it, for people.
        chain: the fence's link; None where only its number is known.
    """

    by: str
    epoch: int
    chain: bytes | None = field(default=None, repr=False)

    def is_in(self, fenced: Mapping[int, bytes]) -> bool:
        """Whether a log with these links (epoch → chain) has this very fence."""
        return self.epoch in fenced and self.chain in (None, fenced[self.epoch])


Witness = Callable[[], Remembered | None]
"""Reads what such a place remembers; None where it remembers nothing yet."""


@frozen
class GateStatus:
    """Whether fence log and page store agree.

    Attributes:
        pending_epochs: fences whose keys may still be in the page store.
        fence_log_behind: the page store knows destructions that the fence log does not.
        fence_log_foreign: the page store belongs to another fence log, or their histories parted.
        lost: fences that are remembered elsewhere, and that the fence log does not have.
    """

    pending_epochs: tuple[int, ...]
    fence_log_behind: bool
    fence_log_foreign: bool = False
    lost: tuple[Remembered, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether it is safe to read."""
        return self.is_trusted and not self.pending_epochs

    @property
    def is_trusted(self) -> bool:
        """Whether the fence log can be relied on; what it says is pending, converging destroys."""
        return not (self.fence_log_behind or self.fence_log_foreign or self.lost)

    @property
    def reason(self) -> RestoreGateClosed | None:
        """Why it is shut, with the step that opens it; None while it is open."""
        if self.fence_log_foreign:
            return foreign_fence_log()
        if self.lost:
            return _lost_fences(self.lost)
        if self.fence_log_behind:
            return RestoreGateClosed(
                "the fence log is older than the page store", next_step=f"{_BRING_BACK} {_THEN_CONVERGE}"
            )
        if self.pending_epochs:
            return RestoreGateClosed(
                f"{len(self.pending_epochs)} fence(s) are not destroyed in the key pages"
            )
        return None

    def among(
        self, fenced: Mapping[int, bytes], is_ours: bool, remembered: Sequence[Remembered]
    ) -> GateStatus:
        """The same with what others say of the log whose epoch → chain is `fenced`.

        Args:
            is_ours: whether the page store says that it belongs to this fence log.
            remembered: by witnesses, which notice when both went back together.
        """
        return evolve(
            self,
            fence_log_foreign=self.fence_log_foreign or not is_ours,
            lost=tuple(one for one in remembered if not one.is_in(fenced)),
        )

    def trusted(self) -> GateStatus:
        """Itself, where the fence log can be relied on.

        Raises:
            RestoreGateClosed: the fence log is another's, or the older one; nothing can be proven with it.
        """
        if not self.is_trusted:
            assert self.reason is not None
            raise self.reason
        return self


def foreign_fence_log() -> RestoreGateClosed:
    """What is raised where the fence log at hand is not the one that the page store belongs to."""
    return RestoreGateClosed(
        "this fence log is not the one of these key pages",
        next_step="One lake has one fence log, shared by all its hosts: put that file here, or bring its"
        " signed copy back with `shredlake keys import-fences`. Where both are lost for good,"
        " `shredlake keys converge --adopt-log` goes on with this one.",
    )


def _lost_fences(lost: Sequence[Remembered]) -> RestoreGateClosed:
    known = ", ".join(f"{one.by} (number {one.epoch})" for one in lost)
    return RestoreGateClosed(
        f"the fence log here lacks the newest fence that is remembered by {known}",
        next_step=f"{_BRING_BACK} {_THEN_CONVERGE} Where every copy is lost for good,"
        " `shredlake keys converge --adopt-log` goes on without the fences that are missing.",
    )


def compare(fenced: Mapping[int, bytes], destroyed: Mapping[int, bytes]) -> GateStatus:
    """What epoch → chain of both say: a restored page store lacks destructions, a restored log fences."""
    parted = any(destroyed[epoch] != fenced[epoch] for epoch in destroyed.keys() & fenced.keys())
    return GateStatus(
        tuple(sorted(fenced.keys() - destroyed.keys())),
        bool(destroyed.keys() - fenced.keys()),
        parted,
    )
