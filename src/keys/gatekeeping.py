"""Asking the restore gate: reads fence log, page store and witnesses, and lets `restoregate` decide.

Each time it reads two names: the newest fence's link, and that of the state of `destroyed`. Both name all
that lies behind them (see `FenceLog.links` and `StoreChanges.destructions`), and a restore brings older names
along. So while both are those of the last comparison, its outcome holds; a process that starts has none.
Witnesses are asked every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final

from attrs import evolve, frozen

from keys.changes import StoreChanges
from keys.fencelog import FenceLog
from keys.pagestore import PageStore, PageWriter
from keys.restoregate import GateStatus, Remembered, Witness, compare

FENCE_LOG: Final = "fence_log"
"""Where the page store says which fence log it belongs to."""
_GIVEN_UP: Final = "fences_given_up"
"""Where it says up to which number the fences that witnesses remember are lost for good."""


@frozen
class _Compared:
    """What a comparison found.

    Attributes:
        newest: fence and link of the log.
        destructions: name of the page store's state.
    """

    newest: tuple[int, bytes]
    destructions: str
    status: GateStatus


class Gatekeeping:
    """The gate of one lake.

    Args:
        store, fences: what has to agree.
        changes: of the store.

    Attributes:
        witnesses: further places that remember the newest fence; whoever opens them adds them.
    """

    def __init__(self, store: PageStore, fences: FenceLog, changes: StoreChanges) -> None:
        self._store = store
        self._fences = fences
        self._changes = changes
        self._last: _Compared | None = None
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
        remembered = [one for ask in (*self.witnesses, *witnesses) if (one := ask()) is not None]
        compared = self._compared()
        _, fenced = self._fences.links()
        given_up = self._given_up()
        believed = [one for one in remembered if one.epoch > given_up]
        return compared.among(fenced, self.knows_its_fence_log(), believed)

    def lacks(self, remembered: Remembered) -> bool:
        """Whether the fence log lacks a fence that nobody has given up."""
        _, fenced = self._fences.links()
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

    def _compared(self) -> GateStatus:
        """Pages against log, the pages first; again only where one of them changed."""
        name, last = self._changes.destructions(), self._last
        if last is not None and (last.newest, last.destructions) == (self._fences.links()[0], name):
            return last.status
        destroyed = self._store.destroyed()
        newest, fenced = self._fences.links()
        status = compare(dict(fenced), destroyed)
        # Only what surely is of this name: a destruction may have come between name and rows.
        if name is not None and name == self._changes.destructions() and newest == self._fences.links()[0]:
            self._last = _Compared(newest, name, status)
        return status

    def _given_up(self) -> int:
        return int(self._store.meta(_GIVEN_UP) or 0)
