"""The numbers that key records carry in place of purpose names."""

from __future__ import annotations

from keys.pagestore import PageStore, PageWriter

_PURPOSES = "purposes"


class PurposeNumbers:
    """Purpose ↔ number in one page store; numbers begin at 1 and are never given anew.

    Nothing is cached: a number that a failed transaction gave out may become another purpose's.
    """

    def __init__(self, store: PageStore) -> None:
        self._store = store

    def names(self) -> list[str]:
        """Every purpose, in the order of their numbers."""
        return (self._store.meta(_PURPOSES) or "").split()

    def number(self, purpose: str) -> int:
        """The number of a purpose, 0 where it has none."""
        known = self.names()
        return known.index(purpose) + 1 if purpose in known else 0

    def number_or_new(self, purpose: str, writer: PageWriter) -> int:
        """The number of a purpose; made in this transaction where it has none."""
        known = self.names()
        if purpose not in known:
            known.append(purpose)
            writer.set_meta(_PURPOSES, " ".join(known))
        return known.index(purpose) + 1
