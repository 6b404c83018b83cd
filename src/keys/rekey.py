"""Re-keying a whole key tree and its blind index while everything goes on.

Every page gets a fresh page key, every node a fresh node key, the blind index a fresh cipher. Each step
is one short transaction whose place is written with it, so that a killed run goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from attrs import frozen

from keys import blindindex
from keys.effects import Effects
from keys.keytree import KeyTree
from keys.pagestore import PageStore, PageWriter
from keys.retry import repeatedly

PAGES_PER_STEP: Final = 32
NAMES_PER_STEP: Final = 5000
_NEXT_PAGE: Final = "rekey_next_page"
_NEXT_NAME: Final = "rekey_next_name"
Progress = Callable[[str, int, int], None]
"""Called with what is re-keyed (`pages`, `names`), how many are done, and how many there are."""


@frozen
class Rekeyed:
    """What a run re-keyed; a resumed run counts only its own part."""

    pages: int
    names: int


class Rekey:
    """One run over a tree.

    Args:
        transaction: opens one on the store and forgets what the tree cached where it fails.
        pause_seconds: between two steps, to leave room for others.
    """

    def __init__(
        self,
        key_tree: KeyTree,
        store: PageStore,
        transaction: Callable[[], AbstractContextManager[PageWriter]],
        effects: Effects,
        *,
        pause_seconds: float = 0.0,
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        self._tree = key_tree
        self._store = store
        self._transaction = transaction
        self._effects = effects
        self._pause_seconds = pause_seconds
        self._progress = progress
        self._version: str | None = None

    def run(self) -> Rekeyed:
        """Pages first, then the index; both from where an earlier run was killed."""
        return Rekeyed(self._pages(), self._names())

    def _pages(self) -> int:
        """Pages made meanwhile have fresh keys anyway."""
        page_ids = self._store.page_ids()
        done = 0
        todo = [page_id for page_id in page_ids if page_id >= int(self._store.meta(_NEXT_PAGE) or 0)]
        for at in range(0, len(todo), PAGES_PER_STEP):
            step = todo[at : at + PAGES_PER_STEP]

            def rekey(step: list[int] = step) -> None:
                with self._effects("keys.rekey"), self._transaction() as writer:
                    self._tree.rekey_pages(writer, step)
                    writer.set_meta(_NEXT_PAGE, str(step[-1] + 1))

            repeatedly(rekey)
            done += len(step)
            self._progress("pages", len(page_ids) - len(todo) + done, len(page_ids))
            time.sleep(self._pause_seconds)
        return done

    def _names(self) -> int:
        repeatedly(self._begin_index)
        total, seen, moved = self._store.size().names, 0, 0
        while True:
            cursor = self._name_cursor()
            rows = self._store.names_after(cursor, NAMES_PER_STEP)
            if not rows:
                break

            def move(after: bytes = cursor) -> int:
                return self._move_names(after)

            moved += repeatedly(move)
            if self._is_over():
                return moved
            seen += len(rows)
            self._progress("names", min(seen, total), total)
            time.sleep(self._pause_seconds)
        repeatedly(self._finish_index)
        self._store.flush_deleted()
        return moved

    def _name_cursor(self) -> bytes:
        return bytes.fromhex(self._store.meta(_NEXT_NAME) or "")

    def _move_names(self, after: bytes) -> int:
        """Moves the rows behind a key to the newer cipher; one that is there already is left alone."""
        with self._effects("keys.rekey"), self._transaction() as writer:
            if self._is_over():
                return 0
            self._tree.index.refresh()
            rows = self._store.names_after(after, NAMES_PER_STEP)
            older = self._tree.index.of_older(rows)
            writer.replace_names([row.blind for row in older], self._tree.index.moved(older))
            writer.set_meta(_NEXT_NAME, rows[-1].blind.hex() if rows else after.hex())
        return len(older)

    def _begin_index(self) -> None:
        """Begins, or joins a run that was killed or goes on elsewhere."""
        with self._effects("keys.rekey"), self._transaction() as writer:
            self._tree.index.refresh()
            if not self._tree.index.being_replaced:
                self._tree.add_index_cipher(writer)
                writer.set_meta(_NEXT_NAME, "")
                writer.set_meta(blindindex.VERSION, self._next_version())
            self._version = self._store.meta(blindindex.VERSION)

    def _finish_index(self) -> None:
        with self._effects("keys.rekey"), self._transaction() as writer:
            if self._is_over():
                return  # by another run of it, or by this one, whose answer was lost
            self._tree.drop_old_index_cipher(writer)
            writer.set_meta(_NEXT_PAGE, "0")
            writer.set_meta(blindindex.VERSION, self._next_version())

    def _is_over(self) -> bool:
        """Whether the replacement this run takes part in was finished by another."""
        return self._store.meta(blindindex.VERSION) != self._version

    def _next_version(self) -> str:
        return str(int(self._store.meta(blindindex.VERSION) or 1) + 1)
