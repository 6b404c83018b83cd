"""The restore gate: whether fence log and page store are of one time. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from keys.errors import RestoreGateClosed


@frozen
class GateStatus:
    """Whether fence log and page store agree.

    Attributes:
        pending_epochs: fences whose keys may still be in the page store.
        fence_log_behind: the page store knows destructions that the fence log does not.
        fence_log_foreign: the page store belongs to another fence log, or their histories parted.
    """

    pending_epochs: tuple[int, ...]
    fence_log_behind: bool
    fence_log_foreign: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it is safe to read."""
        return not (self.pending_epochs or self.fence_log_behind or self.fence_log_foreign)

    def trusted(self) -> GateStatus:
        """Itself, where the fence log can be relied on.

        Raises:
            RestoreGateClosed: the fence log is another's, or the older one; nothing can be proven with it.
        """
        if self.fence_log_foreign:
            raise foreign_fence_log()
        if self.fence_log_behind:
            raise RestoreGateClosed(
                "the fence log is older than the page store",
                next_step="Restore the newest copy of the fence log, then run this again.",
            )
        return self


def foreign_fence_log() -> RestoreGateClosed:
    """What is raised where the fence log at hand is not the one that the page store belongs to."""
    return RestoreGateClosed(
        "this fence log is not the one of these key pages",
        next_step="One lake has one fence log, shared by all its hosts: put that file here, or bring its"
        " signed copy back with `shredlake keys import-fences`. Where both are lost for good,"
        " `shredlake keys converge --adopt-log` goes on with this one.",
    )


def compare(fenced: Mapping[int, bytes], destroyed: Mapping[int, bytes], is_ours: bool) -> GateStatus:
    """What epoch → chain of both say: a restored page store lacks destructions, a restored log fences.

    Args:
        is_ours: whether the page store says that it belongs to this fence log.
    """
    parted = any(destroyed[epoch] != fenced[epoch] for epoch in destroyed.keys() & fenced.keys())
    return GateStatus(
        tuple(sorted(fenced.keys() - destroyed.keys())),
        bool(destroyed.keys() - fenced.keys()),
        parted or not is_ours,
    )
