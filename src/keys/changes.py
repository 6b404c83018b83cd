"""Counts in the page store of what every process has to drop its keys for, besides a new fence."""

from __future__ import annotations

from typing import Final

from attrs import frozen

from keys.pagestore import PageStore, PageWriter

_HOLDS: Final = "hold_changes"
_EVICTIONS: Final = "evictions"


@frozen
class StoreChanges:
    """Read by every lease that is renewed."""

    store: PageStore

    def holds(self) -> int:
        """How often a legal hold was placed or released."""
        return int(self.store.meta(_HOLDS) or 0)

    def evictions(self) -> int:
        """How often everybody was asked to drop every key."""
        return int(self.store.meta(_EVICTIONS) or 0)

    def count_hold(self, writer: PageWriter) -> None:
        """One more, in the transaction of the change."""
        writer.set_meta(_HOLDS, str(self.holds() + 1))

    def count_eviction(self, writer: PageWriter) -> int:
        """One more; the new count."""
        count = self.evictions() + 1
        writer.set_meta(_EVICTIONS, str(count))
        return count
