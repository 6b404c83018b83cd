"""The port to where sealed pages lie, and its SQLite adapter.

The store sees only ciphertext, keyed hashes and random handles. All changes of one call are one
transaction that holds the write lock from its first moment, so readers see a page before or after.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from attrs import field, frozen

from keys.errors import (
    DatabaseFull,
    DatabaseUnavailable,
    PageMissing,
    PageStoreFull,
    PageStoreUnavailable,
    StaleWrite,
)
from keys.sqlite import Database

# Index rows are appended, and only the short index by their random names grows everywhere at once: 0.7 × the
# time of a table ordered by name with an index over (page, name), which was the most of creating somebody.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS nodes (node_id INTEGER PRIMARY KEY, version INTEGER NOT NULL,
    wrapped BLOB NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS pages (page_id INTEGER PRIMARY KEY, version INTEGER NOT NULL,
    count INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS blind (blind BLOB NOT NULL UNIQUE, page_id INTEGER NOT NULL, name BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS blind_by_page ON blind (page_id);
CREATE TABLE IF NOT EXISTS elsewhere (ref BLOB NOT NULL, page_id INTEGER NOT NULL, PRIMARY KEY (ref, page_id))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS destroyed (epoch INTEGER PRIMARY KEY, chain BLOB NOT NULL)
"""
_CHUNK = 500
_ROWS = 200


@frozen
class NodeRow:
    """A node as stored: wrapped node key and sealed page keys."""

    node_id: int
    version: int
    wrapped: bytes = field(repr=False)
    body: bytes = field(repr=False)


@frozen
class PageRow:
    """A page as stored; `count` is its number of records."""

    page_id: int
    version: int
    count: int
    body: bytes = field(repr=False)


class BlindRow(NamedTuple):
    """An index row: keyed hash of a name → its ref's home page, and the ref sealed under the index key."""

    blind: bytes
    page_id: int
    name: bytes


@frozen
class StoreSize:
    """How much a page store holds.

    Attributes:
        elsewhere, names: rows of the two indexes.
        page_bytes: of sealed pages; `total_bytes` with indexes and the store's own overhead.
    """

    pages: int
    records: int
    elsewhere: int
    names: int
    page_bytes: int
    total_bytes: int


class PageWriter(Protocol):
    """The writes of one transaction. Compare-and-set: a changed version raises `StaleWrite`."""

    def put_node(self, node: NodeRow, expected_version: int | None) -> None: ...
    def put_page(self, page: PageRow, expected_version: int | None) -> None: ...
    def add_blind(self, rows: Iterable[BlindRow]) -> int:
        """Adds what is not there; returns how many were added."""
        ...

    def drop_blind(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """Drops index rows by (page, sealed ref)."""
        ...

    def add_elsewhere(self, rows: Iterable[tuple[bytes, int]]) -> None: ...
    def drop_elsewhere(self, rows: Iterable[tuple[bytes, int]]) -> None: ...
    def replace_names(self, blinds: Sequence[bytes], rows: Sequence[BlindRow]) -> None: ...
    def mark_destroyed(self, fences: Iterable[tuple[int, bytes]]) -> None:
        """Writes down (epoch, chain) of fences whose keys are gone."""
        ...

    def set_meta(self, name: str, value: str) -> None: ...


class PageStore(Protocol):
    """Where the key tree lies. Every adapter passes `keys.testing.PageStoreContract`."""

    def transaction(self) -> contextlib.AbstractContextManager[PageWriter]: ...
    def meta(self, name: str) -> str | None: ...
    def nodes(self, node_ids: Sequence[int] | None = None) -> list[NodeRow]: ...
    def pages(self, page_ids: Sequence[int]) -> list[PageRow]: ...
    def page_and_node(self, page_id: int, node_id: int) -> tuple[PageRow, NodeRow]:
        """Both as of one moment. Raises `PageMissing`."""
        ...

    def page_ids(self) -> list[int]: ...
    def last_page(self) -> PageRow | None: ...
    def find_blind(self, blinds: Sequence[bytes]) -> dict[bytes, BlindRow]: ...
    def elsewhere_of(self, refs: Sequence[bytes]) -> list[tuple[bytes, int]]:
        """(ref, page) of records that lie on another page than their handle's home."""
        ...

    def all_elsewhere(self) -> Iterator[tuple[bytes, int]]: ...
    def all_names(self) -> Iterator[BlindRow]: ...
    def names_after(self, blind: bytes, limit: int) -> list[BlindRow]: ...
    def all_meta(self) -> dict[str, str]: ...
    def destroyed(self) -> dict[int, bytes]:
        """Epoch → chain of the fences whose keys are gone."""
        ...

    def size(self) -> StoreSize: ...
    def flush_deleted(self) -> bool: ...
    def close(self) -> None: ...


PAGE_AND_NODE: Final = (
    "SELECT p.page_id, p.version, p.count, p.body, n.node_id, n.version, n.wrapped, n.body"
    " FROM pages p, nodes n WHERE p.page_id = {} AND n.node_id = {}"
)
"""One statement, so that both rows are of one moment."""


SIZE_OF_PAGES: Final = "SELECT COUNT(*), COALESCE(SUM(count), 0), COALESCE(SUM(LENGTH(body)), 0) FROM pages"
COUNT_NAMES: Final = "SELECT COUNT(*) FROM blind"
COUNT_ELSEWHERE: Final = "SELECT COUNT(*) FROM elsewhere"


def page_and_node(rows: Sequence[tuple[Any, ...]], page_id: int) -> tuple[PageRow, NodeRow]:
    """The two rows out of `PAGE_AND_NODE`'s answer. Raises `PageMissing`."""
    if not rows:
        raise PageMissing(f"page {page_id} or its node is not in the page store")
    return PageRow(*rows[0][:4]), NodeRow(*rows[0][4:])


class SqlitePageStore:
    """A `PageStore` in one SQLite file with secure_delete."""

    def __init__(self, path: Path) -> None:
        self._db = Database(path, _SCHEMA)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[PageWriter]:
        others: DatabaseUnavailable | None = None
        try:
            with self._db.write() as db:
                try:
                    yield _SqliteWriter(db)
                except DatabaseUnavailable as error:  # ours are told where the transaction ends
                    others = error
                    raise
        except DatabaseUnavailable as error:
            if error is others:
                raise
            if isinstance(error, DatabaseFull):
                raise PageStoreFull("the page store has no room left") from None
            raise PageStoreUnavailable(f"the page store gave up: {error.message}") from None

    def meta(self, name: str) -> str | None:
        rows = self._db.read("SELECT value FROM meta WHERE name = ?", (name,))
        return rows[0][0] if rows else None

    def nodes(self, node_ids: Sequence[int] | None = None) -> list[NodeRow]:
        sql = "SELECT node_id, version, wrapped, body FROM nodes"
        if node_ids is None:
            return [NodeRow(*row) for row in self._db.read(sql)]
        return [NodeRow(*row) for row in self._in(sql + " WHERE node_id IN", node_ids)]

    def pages(self, page_ids: Sequence[int]) -> list[PageRow]:
        sql = "SELECT page_id, version, count, body FROM pages WHERE page_id IN"
        return [PageRow(*row) for row in self._in(sql, page_ids)]

    def page_and_node(self, page_id: int, node_id: int) -> tuple[PageRow, NodeRow]:
        rows = self._db.read(PAGE_AND_NODE.format("?", "?"), (page_id, node_id))
        return page_and_node(rows, page_id)

    def page_ids(self) -> list[int]:
        return [row[0] for row in self._db.read("SELECT page_id FROM pages ORDER BY page_id")]

    def last_page(self) -> PageRow | None:
        rows = self._db.read("SELECT page_id, version, count, body FROM pages ORDER BY page_id DESC LIMIT 1")
        return PageRow(*rows[0]) if rows else None

    def find_blind(self, blinds: Sequence[bytes]) -> dict[bytes, BlindRow]:
        sql = "SELECT blind, page_id, name FROM blind WHERE blind IN"
        return {row[0]: BlindRow(*row) for row in self._in(sql, blinds)}

    def elsewhere_of(self, refs: Sequence[bytes]) -> list[tuple[bytes, int]]:
        sql = "SELECT ref, page_id FROM elsewhere WHERE ref IN"
        return [(row[0], row[1]) for row in self._in(sql, refs)]

    def all_elsewhere(self) -> Iterator[tuple[bytes, int]]:
        yield from self._db.rows("SELECT ref, page_id FROM elsewhere")

    def all_names(self) -> Iterator[BlindRow]:
        return map(BlindRow._make, self._db.rows("SELECT blind, page_id, name FROM blind"))

    def names_after(self, blind: bytes, limit: int) -> list[BlindRow]:
        sql = "SELECT blind, page_id, name FROM blind WHERE blind > ? ORDER BY blind LIMIT ?"
        return [BlindRow(*row) for row in self._db.read(sql, (blind, limit))]

    def all_meta(self) -> dict[str, str]:
        return dict(self._db.read("SELECT name, value FROM meta"))

    def size(self) -> StoreSize:
        pages = self._db.read(SIZE_OF_PAGES)[0]
        ((elsewhere,),), ((names,),) = self._db.read(COUNT_ELSEWHERE), self._db.read(COUNT_NAMES)
        (total,) = self._db.read("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")[0]
        return StoreSize(pages[0], pages[1], elsewhere, names, pages[2], total)

    def destroyed(self) -> dict[int, bytes]:
        return dict(self._db.read("SELECT epoch, chain FROM destroyed"))

    def flush_deleted(self) -> bool:
        return self._db.flush_deleted()

    def close(self) -> None:
        self._db.close()

    def _in(self, sql: str, values: Sequence[bytes | int]) -> Iterator[tuple[Any, ...]]:
        for at in range(0, len(values), _CHUNK):
            chunk = tuple(values[at : at + _CHUNK])
            yield from self._db.read(f"{sql} ({','.join('?' * len(chunk))})", chunk)


class _SqliteWriter:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def put_node(self, node: NodeRow, expected_version: int | None) -> None:
        if expected_version is None:
            self._db.execute(
                "INSERT INTO nodes VALUES (?, ?, ?, ?)", (node.node_id, 1, node.wrapped, node.body)
            )
            return
        done = self._db.execute(
            "UPDATE nodes SET version = version + 1, wrapped = ?, body = ? WHERE node_id = ? AND version = ?",
            (node.wrapped, node.body, node.node_id, expected_version),
        )
        if done.rowcount != 1:
            raise StaleWrite(f"node {node.node_id} was changed by another process")

    def put_page(self, page: PageRow, expected_version: int | None) -> None:
        if expected_version is None:
            self._db.execute(
                "INSERT INTO pages VALUES (?, ?, ?, ?)", (page.page_id, 1, page.count, page.body)
            )
            return
        done = self._db.execute(
            "UPDATE pages SET version = version + 1, count = ?, body = ? WHERE page_id = ? AND version = ?",
            (page.count, page.body, page.page_id, expected_version),
        )
        if done.rowcount != 1:
            raise StaleWrite(f"page {page.page_id} was changed by another process")

    def add_blind(self, rows: Iterable[BlindRow]) -> int:
        columns, added = list(chain.from_iterable(rows)), 0
        for at in range(0, len(columns), 3 * _ROWS):  # many rows a statement: a fifth less than one by one
            some = columns[at : at + 3 * _ROWS]
            values = ",".join(["(?,?,?)"] * (len(some) // 3))
            added += self._db.execute(f"INSERT OR IGNORE INTO blind VALUES {values}", some).rowcount
        return added

    def drop_blind(self, rows: Iterable[tuple[int, bytes]]) -> None:
        # A page's rows are found by its number and looked through: many of them at once.
        for page_id, of_page in groupby(sorted(rows), key=itemgetter(0)):
            names = [name for _, name in of_page]
            for at in range(0, len(names), _CHUNK):
                chunk = names[at : at + _CHUNK]
                sql = f"DELETE FROM blind WHERE page_id = ? AND name IN ({','.join('?' * len(chunk))})"
                self._db.execute(sql, (page_id, *chunk))

    def add_elsewhere(self, rows: Iterable[tuple[bytes, int]]) -> None:
        self._db.executemany("INSERT OR IGNORE INTO elsewhere VALUES (?, ?)", rows)

    def drop_elsewhere(self, rows: Iterable[tuple[bytes, int]]) -> None:
        self._db.executemany("DELETE FROM elsewhere WHERE ref = ? AND page_id = ?", rows)

    def replace_names(self, blinds: Sequence[bytes], rows: Sequence[BlindRow]) -> None:
        self._db.executemany("DELETE FROM blind WHERE blind = ?", ((blind,) for blind in blinds))
        self.add_blind(rows)

    def mark_destroyed(self, fences: Iterable[tuple[int, bytes]]) -> None:
        self._db.executemany("INSERT OR IGNORE INTO destroyed VALUES (?, ?)", fences)

    def set_meta(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
