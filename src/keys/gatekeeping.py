"""Asking the restore gate: reads fence log, page store and witnesses, and lets `restoregate` decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final

from attrs import evolve

from keys.fencelog import FenceLog
from keys.pagestore import PageStore, PageWriter
from keys.restoregate import GateStatus, Remembered, Witness, compare

FENCE_LOG: Final = "fence_log"
"""Where the page store says which fence log it belongs to."""
_GIVEN_UP: Final = "fences_given_up"
"""Where it says up to which number the fences that witnesses remember are lost for good."""


class Gatekeeping:
    """The gate of one lake.

    Args:
        store, fences: what has to agree.

    Attributes:
        witnesses: further places that remember the newest fence; whoever opens them adds them.
    """

    def __init__(self, store: PageStore, fences: FenceLog) -> None:
        self._store = store
        self._fences = fences
        self.witnesses: list[Witness] = []

    def knows_its_fence_log(self) -> bool:
        """Whether the page store belongs to the fence log at hand, or to none yet."""
        return self._store.meta(FENCE_LOG) in (None, self._fences.log_id())

    def status(self, witnesses: Sequence[Witness] = ()) -> GateStatus:
        """What fence log, page store and witnesses say of each other.

        Args:
            witnesses: asked besides those of every time.
        """
        # First, then the pages, then the log: whatever the earlier ones know was fenced before.
        remembered = [found for ask in (*self.witnesses, *witnesses) if (found := ask()) is not None]
        destroyed = self._store.destroyed()
        fenced = {fence.epoch: fence.chain for fence in self._fences.all()}
        given_up = self._given_up()
        believed = [one for one in remembered if one.epoch > given_up]
        return compare(fenced, destroyed, self.knows_its_fence_log(), believed)

    def lacks(self, remembered: Remembered) -> bool:
        """Whether the fence log lacks a fence that nobody has given up."""
        fenced = {fence.epoch: fence.chain for fence in self._fences.all()}
        return remembered.epoch > self._given_up() and not remembered.is_in(fenced)

    def bind(
        self, transaction: Callable[[], AbstractContextManager[PageWriter]], *, replace: bool = False
    ) -> None:
        """Makes the fence log at hand the one of the page store, where that belongs to none yet.

        Args:
            replace: also where it belongs to another, or lacks fences, and these are lost for good.

        Raises:
            RestoreGateClosed: the page store knows destructions that this log does not.
        """
        if self._store.meta(FENCE_LOG) is not None and not replace:
            return
        with transaction() as writer:
            if replace or self._store.meta(FENCE_LOG) is None:
                status = self.status()
                evolve(status, fence_log_foreign=False, lost=() if replace else status.lost).trusted()
                writer.set_meta(FENCE_LOG, self._fences.log_id())
                if status.lost:
                    writer.set_meta(_GIVEN_UP, str(max(one.epoch for one in status.lost)))

    def _given_up(self) -> int:
        return int(self._store.meta(_GIVEN_UP) or 0)
