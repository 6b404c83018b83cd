"""The key tree over a page store and a custodian: create, find, destroy, re-key, close an epoch."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from keys import tree
from keys.blindindex import CIPHER_KEY_BYTES, FIXED_KEY_BYTES, BlindIndex
from keys.custodian import Custodian
from keys.effects import Effects
from keys.epochclose import EpochClose, close_epoch
from keys.errors import PageDamaged, PageMissing, PageStoreError, RootKeyRetired, RootMismatch, StaleWrite
from keys.pagestore import NodeRow, PageRow, PageStore, PageWriter
from keys.rootowner import RootOwner, rotating

_FORMAT: Final = "2"


class KeyTree:
    """Reads and writes key records. Safe for several processes on one page store.

    Args:
        store: the page store.
        custodian: holds the root.
        random_bytes: source of keys, refs and nonces.
        owns_root: False for a sandbox whose root others may rotate, and which may lose everything.

    Raises:
        RootMismatch: the custodian's root is not the one this store was made with.
        RootShared: this tree is new, and the root is another one's.
    """

    def __init__(
        self,
        store: PageStore,
        custodian: Custodian,
        random_bytes: Callable[[int], bytes] = os.urandom,
        *,
        owns_root: bool = True,
    ) -> None:
        self._owner = RootOwner(store, custodian) if owns_root else None
        self.store = store
        self.custodian = custodian
        self._random = random_bytes
        self._mutex = threading.RLock()
        self._nodes: dict[int, tuple[int, bytes]] = {}  # node id → (version, opened record)
        if store.meta("tree") is None:
            self._initialise()
        if store.meta("format") != _FORMAT:
            raise PageStoreError(
                "this page store was made by another version of Shredlake",
                next_step="Open it with the version that made it.",
            )
        self.tree_id = store.meta("tree") or ""
        if store.meta("root_id") != custodian.root_id():
            raise RootMismatch("this page store was made with another root")
        self.index = BlindIndex(store, self._index_keys)

    # -- keys --------------------------------------------------------------------------------------

    def create(
        self,
        writer: PageWriter,
        purpose_code: int,
        generations: Sequence[int],
        names: Sequence[bytes] = (),
    ) -> list[bytes]:
        """Adds records with fresh DEKs and fresh handles; one custodian call where that needs a new page.

        Args:
            generations: of each key.
            names: the keyed hash of the name that finds each handle; none for what belongs to nobody.

        Returns the handle of each.

        Raises:
            StaleWrite: a name is in the index already; nothing is created.
        """
        homes: list[int] = []

        def fresh(page_id: int, part: slice) -> list[bytes]:
            count = len(generations[part])
            homes.extend([page_id] * count)
            return self.index.handles.make(page_id, count, self._random)

        refs = self._add_records(writer, purpose_code, generations, fresh)
        if names and writer.add_blind(self.index.rows(names, refs, homes)) != len(refs):
            raise StaleWrite("somebody else named one of these people first")
        return refs

    def create_for(
        self, writer: PageWriter, purpose_code: int, generations: Sequence[int], refs: Sequence[bytes]
    ) -> None:
        """The same for handles that there are already: of another purpose, or after a lawful return."""
        homes = self.index.handles.homes(refs)

        def given(page_id: int, part: slice) -> Sequence[bytes]:
            strays = zip(refs[part], homes[part], strict=True)
            writer.add_elsewhere((ref, page_id) for ref, home in strays if home != page_id)
            return refs[part]

        self._add_records(writer, purpose_code, generations, given)

    def pages_of(self, refs: Sequence[bytes]) -> list[int]:
        """The pages that may hold records of these handles: their homes, and where else some lie.

        A handle of a page that is not there yet, or of another lake, has none.
        """
        pages = {page_id for _, page_id in self.store.elsewhere_of(refs)}
        homes = set(self.index.handles.homes(refs))
        return sorted(pages | {page_id for page_id in homes if self._was_made(page_id)})

    def page_count(self) -> int:
        """How many pages were made, by the nodes' keys."""
        made = (len(self._open_node(row)) // tree.KEY_BYTES for row in self.store.nodes() if row.node_id >= 0)
        return sum(made)

    def records_of(self, refs: Sequence[bytes]) -> Iterator[tree.KeyRecord]:
        """The records of these handles, read from the pages themselves, past every fence and cache."""
        wanted = set(refs)
        for _, page in self.open_pages(self.pages_of(refs)):
            for record in tree.records(page):
                if record[:16] in wanted:
                    yield tree.decode(record)

    def open_pages(self, page_ids: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """(page id, opened page) of each.

        Raises:
            PageMissing: the index names it and it is not there.
            PageDamaged: it does not authenticate.
        """
        rows = {row.page_id: row for row in self.store.pages(page_ids)}
        for page_id in page_ids:
            if page_id not in rows:
                raise PageMissing(f"page {page_id} is not in the page store")
            yield page_id, self._open_page(rows[page_id])

    def remove(
        self,
        writer: PageWriter,
        refs: Sequence[bytes],
        purpose_code: int | None,
        highest: Mapping[bytes, int] | None = None,
    ) -> int:
        """Destroys the records of these refs: fresh page keys, fresh node keys. Returns how many.

        Args:
            purpose_code, highest: see `tree.split`.
        """
        wanted = set(refs)
        left: set[bytes] = set()
        vacated: list[tuple[bytes, int]] = []
        gone, rekeyed = 0, {}
        for row in self.store.pages(self.pages_of(refs)):
            body, removed = tree.split(self._open_page(row), wanted, purpose_code, highest)
            here = wanted & {record[:16] for record in tree.records(body)}
            left |= here
            vacated += [(record[:16], row.page_id) for record in removed if record[:16] not in here]
            if not removed:
                continue
            gone += len(removed)
            key = self._random(tree.KEY_BYTES)
            rekeyed[row.page_id] = key
            writer.put_page(self._sealed_page(key, row.page_id, body), row.version)
        self._rekey_nodes(writer, rekeyed)
        doomed = [ref for ref in refs if ref not in left]
        writer.drop_elsewhere([*vacated, *self.store.elsewhere_of(doomed)])
        writer.drop_blind(self.index.rows_of(doomed))
        return gone

    def set_state(self, writer: PageWriter, refs: Sequence[bytes], state: int) -> None:
        """Holds or releases the records of these refs."""
        for row in self.store.pages(self.pages_of(refs)):
            body = tree.with_state(self._open_page(row), set(refs), state)
            key = self._page_key(row.page_id)
            writer.put_page(self._sealed_page(key, row.page_id, body), row.version)

    # -- re-keying: see `keys.rekey` ----------------------------------------------------------------

    def rekey_pages(self, writer: PageWriter, page_ids: Sequence[int]) -> None:
        """Seals pages under fresh page keys, and their nodes under fresh node keys."""
        keys: dict[int, bytes] = {}
        for row in self.store.pages(page_ids):
            body = self._open_page(row)
            keys[row.page_id] = self._random(tree.KEY_BYTES)
            writer.put_page(self._sealed_page(keys[row.page_id], row.page_id, body), row.version)
        self._rekey_nodes(writer, keys)

    def add_index_cipher(self, writer: PageWriter) -> None:
        """A second cipher key behind the first: from now on it writes, and both find."""
        self._write_index_keys(writer, self._index_keys() + self._random(CIPHER_KEY_BYTES))

    def drop_old_index_cipher(self, writer: PageWriter) -> None:
        """Only the newer cipher key stays."""
        keys = self._index_keys()
        self._write_index_keys(writer, keys[:FIXED_KEY_BYTES] + keys[-CIPHER_KEY_BYTES:])

    def _write_index_keys(self, writer: PageWriter, keys: bytes) -> None:
        (row,) = self.store.nodes([tree.INDEX_NODE])
        fresh = self._random(tree.KEY_BYTES)
        (wrapped,) = self.custodian.wrap([(self._node_context(tree.INDEX_NODE), fresh)])
        context = tree.record_context(self.tree_id, tree.INDEX_NODE)
        body = tree.seal_record(fresh, keys, context, self._random)
        writer.put_node(NodeRow(tree.INDEX_NODE, 0, wrapped, body), row.version)
        with self._mutex:
            self._nodes.pop(tree.INDEX_NODE, None)

    # -- epochs ------------------------------------------------------------------------------------

    def close_epoch(self, effects: Effects) -> EpochClose:
        """See `keys.epochclose`."""
        return close_epoch(self.store, self.custodian, self._rotating, self.tree_id, self._random, effects)

    def adopt_root(self) -> int:
        """Goes on with a root that somebody else rotated; returns its version."""
        with self.store.transaction() as writer:
            return RootOwner(self.store, self.custodian).adopt(writer)

    def forget_cached(self) -> None:
        """Drops opened node records; they are read again when needed."""
        with self._mutex:
            self._nodes.clear()

    # -- inner -------------------------------------------------------------------------------------

    def _rotating(self, *, unused: bool = False) -> contextlib.AbstractContextManager[tuple[PageWriter, int]]:
        return rotating(self.store, self.custodian, self._owner, unused=unused)

    def _initialise(self) -> None:
        with self._rotating(unused=True) as (writer, _):
            if self.store.meta("tree") is not None:
                return
            tree_id = self._random(8).hex()
            node_key = self._random(tree.KEY_BYTES)
            context = tree.node_context(tree_id, tree.INDEX_NODE)
            body = tree.seal_record(
                node_key,
                self._random(FIXED_KEY_BYTES + CIPHER_KEY_BYTES),
                tree.record_context(tree_id, tree.INDEX_NODE),
                self._random,
            )
            wrapped = self.custodian.wrap([(context, node_key)])[0]
            writer.put_node(NodeRow(tree.INDEX_NODE, 1, wrapped, body), None)
            writer.set_meta("tree", tree_id)
            writer.set_meta("format", _FORMAT)
            writer.set_meta("root_id", self.custodian.root_id())

    def _index_keys(self) -> bytes:
        with self._mutex:
            self._nodes.pop(tree.INDEX_NODE, None)
            return self._node(tree.INDEX_NODE)

    def _node_context(self, node_id: int) -> bytes:
        return tree.node_context(self.tree_id, node_id)

    def _node(self, node_id: int) -> bytes:
        """The opened node record; cached until a page under it fails to open."""
        with self._mutex:
            if node_id not in self._nodes:
                rows = self.store.nodes([node_id])
                if not rows:
                    raise PageMissing(f"node {node_id} is not in the page store")
                self._nodes[node_id] = (rows[0].version, self._open_node(rows[0]))
            return self._nodes[node_id][1]

    def _was_made(self, page_id: int) -> bool:
        """Whether a node holds the key of such a page; one that is not there then is an error."""
        node_id = tree.node_of(page_id)
        if node_id >= tree.MAX_NODES:
            return False  # a foreign handle decrypts to any number
        for _ in range(2):
            try:
                if tree.page_key(self._node(node_id), page_id):
                    return True
            except PageMissing:
                return False
            with self._mutex:
                self._nodes.pop(node_id, None)  # another process may have added the page since
        return False

    def _open_node(self, row: NodeRow) -> bytes:
        """The opened record of a row, or of the row that took its place.

        Raises:
            RootKeyRetired: it is what the page store holds, so the page store is an old one.
        """
        while True:
            try:
                key = self.custodian.unwrap([(self._node_context(row.node_id), row.wrapped)])[0]
            except RootKeyRetired:
                newer = self.store.nodes([row.node_id])
                if not newer or newer[0].version == row.version:
                    raise
                row = newer[0]  # an epoch was closed between the read and the unwrap
            else:
                return tree.open_record(key, row.body, tree.record_context(self.tree_id, row.node_id))

    def _page_key(self, page_id: int) -> bytes:
        return tree.page_key(self._node(tree.node_of(page_id)), page_id)

    def _open_page(self, row: PageRow) -> bytes:
        context = tree.page_context(self.tree_id, row.page_id)
        node_id = tree.node_of(row.page_id)
        read: tuple[int, int] | None = None
        with self._mutex:
            while True:
                try:
                    return tree.open_record(self._page_key(row.page_id), row.body, context)
                except PageDamaged:
                    # Another process re-keyed page and node between our two reads: read both at one moment.
                    row, node = self.store.page_and_node(row.page_id, node_id)
                    if read == (row.version, node.version):
                        raise
                    read = row.version, node.version
                    self._nodes[node_id] = (node.version, self._open_node(node))

    def _sealed_page(self, key: bytes, page_id: int, body: bytes) -> PageRow:
        sealed = tree.seal_record(key, body, tree.page_context(self.tree_id, page_id), self._random)
        return PageRow(page_id, 0, len(body) // tree.RECORD_BYTES, sealed)

    def _add_records(
        self,
        writer: PageWriter,
        purpose_code: int,
        generations: Sequence[int],
        refs_on: Callable[[int, slice], Sequence[bytes]],
    ) -> list[bytes]:
        """Fills the last pages with fresh DEKs.

        Args:
            refs_on: (page id, which of the keys lie there) → their handles.
        """
        middles = {generation: tree.middle(purpose_code, generation) for generation in set(generations)}
        made: list[bytes] = []
        last = self.store.last_page()
        while len(made) < len(generations):
            if last is None or last.count >= tree.PAGE_RECORDS:
                page_id = last.page_id + 1 if last else 0
                body, version, count = b"", None, 0
                key = self._new_page_key(writer, page_id)
            else:
                page_id, version, count = last.page_id, last.version, last.count
                body = self._open_page(last)  # first: it notices when the node was re-keyed elsewhere
                key = self._page_key(page_id)
            part = slice(len(made), len(made) + tree.PAGE_RECORDS - count)
            refs = refs_on(page_id, part)
            kinds = [middles[generation] for generation in generations[part]]
            body += tree.joined(refs, kinds, self._random(tree.KEY_BYTES * len(refs)))
            last = self._sealed_page(key, page_id, body)
            writer.put_page(last, version)
            made += refs
        return made

    def _new_page_key(self, writer: PageWriter, page_id: int) -> bytes:
        key = self._random(tree.KEY_BYTES)
        self._rekey_nodes(writer, {page_id: key})
        return key

    def _rekey_nodes(self, writer: PageWriter, page_keys: dict[int, bytes]) -> None:
        """Writes node records with these page keys under fresh node keys: one custodian call."""
        node_ids = sorted({tree.node_of(page_id) for page_id in page_keys})
        if not node_ids:
            return
        fresh = [self._random(tree.KEY_BYTES) for _ in node_ids]
        contexts = [self._node_context(node_id) for node_id in node_ids]
        wrapped = self.custodian.wrap(list(zip(contexts, fresh, strict=True)))
        stored = {row.node_id: row for row in self.store.nodes(node_ids)}
        for node_id, key, wrap in zip(node_ids, fresh, wrapped, strict=True):
            row = stored.get(node_id)
            body = self._open_node(row) if row else b""
            for page_id, page_key in page_keys.items():
                if tree.node_of(page_id) == node_id:
                    body = tree.with_page_key(body, page_id, page_key)
            sealed = tree.seal_record(key, body, tree.record_context(self.tree_id, node_id), self._random)
            writer.put_node(NodeRow(node_id, 0, wrap, sealed), row.version if row else None)
            with self._mutex:
                self._nodes[node_id] = (row.version + 1 if row else 1, body)
