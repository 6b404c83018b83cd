"""What the page store says of its changes: what every process has to drop its keys for, besides a new
fence, and whether further keys were destroyed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import frozen

from keys.pagestore import PageStore, PageWriter

_HOLDS: Final = "hold_changes"
_EVICTIONS: Final = "evictions"
_DESTRUCTIONS: Final = "destroyed_revision"
_REVISION_BYTES: Final = 16


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

    def destructions(self) -> str | None:
        """A random name of the state of `destroyed`; None in a store that has none yet.

        Every destruction gives another one in its own transaction: the same name is the same state.
        """
        return self.store.meta(_DESTRUCTIONS)

    def name_destruction(self, writer: PageWriter, random_bytes: Callable[[int], bytes]) -> None:
        """Another name, in the transaction of the destruction."""
        writer.set_meta(_DESTRUCTIONS, random_bytes(_REVISION_BYTES).hex())
