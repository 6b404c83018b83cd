"""The restore gate: whether fence log and page store are of one time. Pure."""

from __future__ import annotations

from collections.abc import Set

from attrs import frozen

from keys.errors import RestoreGateClosed


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

    def trusted(self) -> GateStatus:
        """Itself, where the fence log can be relied on.

        Raises:
            RestoreGateClosed: the fence log is the older one; nothing can be proven with it.
        """
        if self.fence_log_behind:
            raise RestoreGateClosed(
                "the fence log is older than the page store",
                next_step="Restore the newest copy of the fence log, then run this again.",
            )
        return self


def compare(fenced: Set[int], destroyed: Set[int]) -> GateStatus:
    """What the epochs of both say: a restored page store lacks destructions, a restored log lacks fences."""
    return GateStatus(tuple(sorted(fenced - destroyed)), bool(destroyed - fenced))
