"""One root, one lake: what guards a root against an epoch close of somebody who does not own it.

Closing an epoch retires every older version of the root, and with them whatever else was wrapped by it.
So a new tree takes a root that nobody has used, by rotating it, and from then on every rotation is the
tree's own: the page store knows the newest version, and an intent to rotate is durable before it is
tried, so that a lost answer or a killed process is told from a rotation by somebody else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from keys.custodian import Custodian
from keys.errors import RootShared
from keys.pagestore import PageStore, PageWriter

LATEST: Final = "root_latest"
INTENT: Final = "root_rotating_from"
_UNUSED: Final = 1
_NONE: Final = 0


def may_rotate(latest: int, known: int | None, intended: int | None) -> bool:
    """Whether a root at version `latest` is as this tree left it.

    Args:
        known: the newest version by the page store; None for a tree that has not closed an epoch since
            roots have owners.
        intended: the version before the last rotation that was tried.
    """
    return known is None or latest == known or (intended == known and latest == known + 1)


class RootOwner:
    """Rotates the root for its tree alone.

    Args:
        store: remembers versions.
        custodian: holds the root.
    """

    def __init__(self, store: PageStore, custodian: Custodian) -> None:
        self._store = store
        self._custodian = custodian

    def intend(self, writer: PageWriter, *, unused: bool = False) -> int:
        """Writes down that the root is about to be rotated; the transaction must be over before it is.

        Args:
            unused: the root must be one that nobody has rotated.

        Returns:
            The version it is at.

        Raises:
            RootShared: somebody else rotated it.
        """
        latest, known = self._custodian.status().latest_version, self._number(LATEST)
        if unused and known is None and latest != _UNUSED:
            raise RootShared(
                f"the root is at version {latest}, so it belongs to another lake",
                next_step="Give this lake a root of its own (Vault: another keys.vault.prefix).",
            )
        if not may_rotate(latest, known, self._number(INTENT)):
            raise RootShared(f"the root is at version {latest}, this lake left it at {known}")
        writer.set_meta(LATEST, str(latest))
        writer.set_meta(INTENT, str(latest))
        return latest

    def is_still(self, version: int) -> bool:
        """Whether nobody of this tree rotated since the intent."""
        return self._number(LATEST) == version

    def rotate(self, writer: PageWriter, before: int) -> int:
        """The new version, behind an intent at version `before`.

        Raises:
            RootShared: somebody else rotated at the same time; nothing was retired.
        """
        version = self._custodian.rotate()
        if version != before + 1:
            raise RootShared(f"the root went from version {before} to {version} in one step")
        writer.set_meta(LATEST, str(version))
        return version

    def adopt(self, writer: PageWriter) -> int:
        """Takes the root as it is now; returns its version."""
        latest = self._custodian.status().latest_version
        writer.set_meta(LATEST, str(latest))
        writer.set_meta(INTENT, str(_NONE))
        return latest

    def _number(self, name: str) -> int | None:
        found = self._store.meta(name)
        return None if found is None else int(found)


@contextlib.contextmanager
def rotating(
    store: PageStore, custodian: Custodian, owner: RootOwner | None, *, unused: bool
) -> Iterator[tuple[PageWriter, int]]:
    """(a transaction, the root version that is in force in it).

    Args:
        owner: None rotates whoever's root it is.

    Raises:
        RootShared: the root is not `owner`'s alone.
    """
    while True:
        before = None
        if owner is not None:
            with store.transaction() as writer:
                before = owner.intend(writer, unused=unused)
        with store.transaction() as writer:
            if owner is None or before is None:
                yield writer, custodian.rotate()
                return
            if owner.is_still(before):
                yield writer, owner.rotate(writer, before)
                return
