"""The restore gate: whether fence log and page store are of one time. Pure."""

from __future__ import annotations

from collections.abc import Set

from attrs import frozen


@frozen
class GateStatus:
    """Whether fence log and page store agree.

    Attributes:
        pending_epochs: fences whose keys may still be in the page store.
        fence_log_behind: the page store knows destructions that the fence log does not.
    """

    pending_epochs: tuple[int, ...]
    fence_log_behind: bool

    @property
    def is_open(self) -> bool:
        """Whether it is safe to read."""
        return not self.pending_epochs and not self.fence_log_behind


def compare(fenced: Set[int], destroyed: Set[int]) -> GateStatus:
    """What the epochs of both say: a restored page store lacks destructions, a restored log lacks fences."""
    return GateStatus(tuple(sorted(fenced - destroyed)), bool(destroyed - fenced))
