"""Copying a page store as it is: a backup, a sandbox, or a move from one adapter to another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from keys.errors import PageStoreError
from keys.pagestore import PageStore

_ROWS: Final = 10_000
_PAGES: Final = 64
_T = TypeVar("_T")


def copy_store(
    source: PageStore, target: PageStore, progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Copies everything into an empty store; returns how many pages. Writers must stand still.

    Args:
        progress: called with (pages done, pages in all).

    Raises:
        PageStoreError: the target holds a tree already, or the source changed meanwhile.
    """
    if target.all_meta() or target.page_ids():
        raise PageStoreError("the target holds a key tree already", next_step="Name an empty one.")
    size = source.size()
    versions = {node.node_id: node.version for node in source.nodes()}
    page_ids = source.page_ids()
    with target.transaction() as writer:
        for at in range(0, len(page_ids), _PAGES):
            for page in source.pages(page_ids[at : at + _PAGES]):
                writer.put_page(page, None)
            progress(min(at + _PAGES, len(page_ids)), len(page_ids))
        for batch in _batched(source.all_elsewhere()):
            writer.add_elsewhere(batch)
        for names in _batched(source.all_names()):
            writer.add_blind(names)
        nodes = source.nodes()
        for node in nodes:
            writer.put_node(node, None)
        writer.mark_destroyed(source.destroyed().items())
        for name, value in source.all_meta().items():
            writer.set_meta(name, value)
        same = {node.node_id: node.version for node in nodes} == versions
        if not same or source.size() != size:
            raise PageStoreError(
                "the page store changed while it was copied", next_step="Stop the writers and copy it again."
            )
    return len(page_ids)


def _batched(rows: Iterator[_T]) -> Iterator[list[_T]]:
    while batch := list(itertools.islice(rows, _ROWS)):
        yield batch
