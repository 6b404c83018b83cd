"""The page store on PostgreSQL: several hosts, one tree.

One schema per tree. A writing transaction takes the schema's advisory lock first, as SQLite's takes the
file's: writers queue, readers never wait, and two of them never deadlock. One that deadlocks with locks of
somebody else, or that the server ends, is rolled back and may be repeated. What was deleted stays in the
server's files until they are reused, in its write-ahead log and in its backups: ciphertext under page keys
that the epoch close made unreadable.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg_pool import ConnectionPool, PoolTimeout

from keys.errors import DatabaseDamaged, InvalidName, PageStoreFull, PageStoreUnavailable, StaleWrite
from keys.pagestore import (
    COUNT_ELSEWHERE,
    COUNT_NAMES,
    PAGE_AND_NODE,
    SIZE_OF_PAGES,
    BlindRow,
    NodeRow,
    PageRow,
    PageWriter,
    StoreSize,
    page_and_node,
)
from keys.retry import repeatedly

POOL_SIZE: Final = 8
POOL_TIMEOUT_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 2
_NONE_LEFT: Final = ("too many clients", "too many connections", "remaining connection slots")
"""How long a try waits for a connection; see `keys.retry.LAST_TRY_SECONDS`."""
_FETCH_ROWS: Final = 10_000
_SCHEMA_NAME = re.compile(r"[a-z][a-z0-9_]{0,50}")
_TABLES: Final[LiteralString] = """
CREATE TABLE IF NOT EXISTS meta (name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE IF NOT EXISTS nodes (node_id bigint PRIMARY KEY, version bigint NOT NULL,
    wrapped bytea NOT NULL, body bytea NOT NULL);
CREATE TABLE IF NOT EXISTS pages (page_id bigint PRIMARY KEY, version bigint NOT NULL,
    count integer NOT NULL, body bytea NOT NULL);
ALTER TABLE pages ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE TABLE IF NOT EXISTS blind (blind bytea PRIMARY KEY, page_id bigint NOT NULL, name bytea NOT NULL);
CREATE INDEX IF NOT EXISTS blind_by_page ON blind (page_id, name);
CREATE TABLE IF NOT EXISTS elsewhere (ref bytea NOT NULL, page_id bigint NOT NULL,
    PRIMARY KEY (ref, page_id));
CREATE TABLE IF NOT EXISTS destroyed (epoch bigint PRIMARY KEY, chain bytea NOT NULL)
"""
_GIVEN_UP: Final = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    psycopg.errors.TransactionTimeout,
)
"""Errors that end a transaction: it left nothing, unless its COMMIT landed and only the answer was lost."""
_Connection = psycopg.Connection[tuple[Any, ...]]


class PostgresPageStore:
    """A `PageStore` in one schema of a PostgreSQL database. Safe for threads, processes and hosts.

    Args:
        dsn: `postgresql://…`; may name a password file or service instead of a password.
        schema: made where it is not there; lower-case letters, digits and underscores.

    Raises:
        PageStoreUnavailable: the server cannot be reached.
        InvalidName: not a schema name.
    """

    def __init__(self, dsn: str, schema: str = "shredlake") -> None:
        if not _SCHEMA_NAME.fullmatch(schema):
            raise InvalidName(f"{schema!r} is not a name for the key store's schema")
        self._lock_number = int.from_bytes(hashlib.sha256(schema.encode()).digest()[:8], "big", signed=True)
        self._local = threading.local()
        self._dsn = dsn
        self._pool: ConnectionPool[_Connection] = ConnectionPool(
            dsn,
            min_size=1,
            max_size=POOL_SIZE,
            timeout=POOL_TIMEOUT_SECONDS,
            reconnect_timeout=POOL_TIMEOUT_SECONDS,
            kwargs={
                "autocommit": True,
                # Read committed: what is read behind the lock must be newer than the wait for it.
                "options": f"-c search_path={schema} -c lock_timeout=60s -c synchronous_commit=on"
                " -c default_transaction_isolation=read\\ committed",
                "connect_timeout": 5,
                # A host that has gone without a word: told within some ten seconds, also while we wait.
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "tcp_user_timeout": 10_000,
            },
            open=True,
        )
        with self._writing() as db:
            db.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
            (there,) = db.execute("SELECT to_regclass('destroyed')").fetchone() or (None,)
            if there is None:
                db.execute(_TABLES)

    # -- reads -------------------------------------------------------------------------------------

    def meta(self, name: str) -> str | None:
        rows = self._rows("SELECT value FROM meta WHERE name = %s", (name,))
        return rows[0][0] if rows else None

    def nodes(self, node_ids: Sequence[int] | None = None) -> list[NodeRow]:
        query: LiteralString = "SELECT node_id, version, wrapped, body FROM nodes"
        if node_ids is None:
            return [NodeRow(*row) for row in self._rows(query + " ORDER BY node_id")]
        return [NodeRow(*row) for row in self._rows(query + " WHERE node_id = ANY(%s)", (list(node_ids),))]

    def pages(self, page_ids: Sequence[int]) -> list[PageRow]:
        query: LiteralString = "SELECT page_id, version, count, body FROM pages WHERE page_id = ANY(%s)"
        return [PageRow(*row) for row in self._rows(query, (list(page_ids),))]

    def page_and_node(self, page_id: int, node_id: int) -> tuple[PageRow, NodeRow]:
        return page_and_node(self._rows(PAGE_AND_NODE.format("%s", "%s"), (page_id, node_id)), page_id)

    def page_ids(self) -> list[int]:
        return [row[0] for row in self._rows("SELECT page_id FROM pages ORDER BY page_id")]

    def last_page(self) -> PageRow | None:
        query: LiteralString = "SELECT page_id, version, count, body FROM pages ORDER BY page_id DESC LIMIT 1"
        rows = self._rows(query)
        return PageRow(*rows[0]) if rows else None

    def find_blind(self, blinds: Sequence[bytes]) -> dict[bytes, BlindRow]:
        query: LiteralString = "SELECT blind, page_id, name FROM blind WHERE blind = ANY(%s)"
        return {row[0]: BlindRow(*row) for row in self._rows(query, (list(blinds),))}

    def elsewhere_of(self, refs: Sequence[bytes]) -> list[tuple[bytes, int]]:
        query: LiteralString = "SELECT ref, page_id FROM elsewhere WHERE ref = ANY(%s)"
        return [(row[0], row[1]) for row in self._rows(query, (list(refs),))]

    def all_elsewhere(self) -> Iterator[tuple[bytes, int]]:
        with self._connection() as db, db.transaction(), db.cursor("all_elsewhere", binary=True) as cursor:
            cursor.itersize = _FETCH_ROWS
            cursor.execute("SELECT ref, page_id FROM elsewhere")
            for ref, page_id in cursor:
                yield bytes(ref), page_id

    def all_names(self) -> Iterator[BlindRow]:
        with self._connection() as db, db.transaction(), db.cursor("all_names", binary=True) as cursor:
            cursor.itersize = _FETCH_ROWS
            cursor.execute("SELECT blind, page_id, name FROM blind")
            for blind, page_id, name in cursor:
                yield BlindRow(bytes(blind), page_id, bytes(name))

    def names_after(self, blind: bytes, limit: int) -> list[BlindRow]:
        query: LiteralString = (
            "SELECT blind, page_id, name FROM blind WHERE blind > %s ORDER BY blind LIMIT %s"
        )
        return [BlindRow(*row) for row in self._rows(query, (blind, limit))]

    def all_meta(self) -> dict[str, str]:
        return dict(self._rows("SELECT name, value FROM meta"))

    def size(self) -> StoreSize:
        pages = self._rows(SIZE_OF_PAGES)[0]
        ((elsewhere,),), ((names,),) = self._rows(COUNT_ELSEWHERE), self._rows(COUNT_NAMES)
        (total,) = self._rows(
            "SELECT SUM(pg_total_relation_size(oid))::bigint FROM pg_class"
            " WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
        )[0]
        return StoreSize(pages[0], int(pages[1]), elsewhere, names, int(pages[2]), total)

    def destroyed(self) -> dict[int, bytes]:
        return dict(self._rows("SELECT epoch, chain FROM destroyed"))

    # -- writes ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[PageWriter]:
        with self._writing() as db:
            yield _PostgresWriter(db)

    def flush_deleted(self) -> bool:
        """Nothing to do: the server reuses its files as it sees fit; see the module."""
        return True

    def close(self) -> None:
        self._pool.close()

    # -- inner -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self) -> Iterator[_Connection]:
        """One transaction under the schema's lock; reads of this thread go through it meanwhile."""
        with self._connection() as db, db.transaction():
            db.execute("SELECT pg_advisory_xact_lock(%s)", (self._lock_number,))
            self._local.writing = db
            try:
                yield db
            finally:
                self._local.writing = None

    @contextlib.contextmanager
    def _connection(self) -> Iterator[_Connection]:
        try:
            with contextlib.ExitStack() as stack:
                yield self._lent(stack)
        except PoolTimeout:
            raise PageStoreUnavailable(
                f"all {POOL_SIZE} connections of this process to the page store were in use for"
                f" {POOL_TIMEOUT_SECONDS:g} s",
                next_step="The server answers, so repeat; if it stays so, look for a transaction that hangs.",
            ) from None
        except psycopg.errors.ReadOnlySqlTransaction:
            self._pool.drain()  # new connections may reach whoever leads now
            raise PageStoreUnavailable(
                "the page store's server takes no writes: it is a standby, or set read-only",
                next_step="Name the primary in keys.page_store (several hosts with"
                " target_session_attrs=read-write find it), or let the server write; repeating is safe.",
            ) from None
        except (psycopg.errors.DataCorrupted, psycopg.errors.IndexCorrupted) as error:
            raise DatabaseDamaged(f"the page store's server says {type(error).__name__}") from None
        except psycopg.errors.DiskFull:
            raise PageStoreFull("the page store has no room left") from None
        except psycopg.errors.UniqueViolation:
            raise StaleWrite("a node or page was made by another process") from None
        except _GIVEN_UP as error:
            self._pool.check()  # connections of the same outage are thrown away together
            raise PageStoreUnavailable(f"the page store gave up: {type(error).__name__}") from None

    def _lent(self, stack: contextlib.ExitStack) -> _Connection:
        """A connection; where the pool has none, one of our own tells soon whether the server is away."""
        try:
            return stack.enter_context(self._pool.connection(_LOOK_SECONDS))
        except PoolTimeout:
            pass
        try:
            psycopg.connect(self._dsn, connect_timeout=_LOOK_SECONDS).close()
        except psycopg.OperationalError as error:
            raise _no_connection(error) from None
        return stack.enter_context(self._pool.connection(POOL_TIMEOUT_SECONDS))

    def _rows(self, query: LiteralString, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query; outside of a transaction a lost connection is tried again."""
        writing: _Connection | None = getattr(self._local, "writing", None)
        if writing is not None:
            return writing.execute(query, parameters, binary=True).fetchall()

        def ask() -> list[tuple[Any, ...]]:
            with self._connection() as db:
                return db.execute(query, parameters, binary=True).fetchall()

        return repeatedly(ask)


def drop_schema(dsn: str, schema: str) -> None:
    """Drops a sandbox's schema with everything in it; nothing happens where there is none.

    Raises:
        PageStoreUnavailable: the server cannot be reached, or does not let us.
    """
    try:
        with psycopg.connect(dsn, connect_timeout=5) as db:
            db.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))
    except psycopg.Error as error:
        raise PageStoreUnavailable(f"the schema {schema} was not dropped: {type(error).__name__}") from None


def _no_connection(error: psycopg.OperationalError) -> PageStoreUnavailable:
    """Whether the server has no connection left for us, does not let us in, or is not there."""
    # Before a session begins psycopg gives no code, the server's words are all there is; they are not shown.
    text = str(error)
    if any(words in text for words in _NONE_LEFT):
        return PageStoreUnavailable(
            "the page store's server answers, and has no connection left for us",
            next_step="Raise `max_connections` of PostgreSQL (or the role's limit), or run fewer processes of"
            " Shredlake or of others on it; each takes up to 8. Nothing is lost; repeat the call.",
        )
    if "authentication failed" in text:
        return PageStoreUnavailable(
            "the page store's server does not let us in",
            next_step="Correct the log-in in keys.page_store (or its password file).",
        )
    return PageStoreUnavailable("the page store's server cannot be reached")


class _PostgresWriter:
    def __init__(self, db: _Connection) -> None:
        self._db = db

    def put_node(self, node: NodeRow, expected_version: int | None) -> None:
        if expected_version is None:
            self._db.execute(
                "INSERT INTO nodes VALUES (%b, 1, %b, %b)", (node.node_id, node.wrapped, node.body)
            )
            return
        done = self._db.execute(
            "UPDATE nodes SET version = version + 1, wrapped = %b, body = %b"
            " WHERE node_id = %b AND version = %b",
            (node.wrapped, node.body, node.node_id, expected_version),
        )
        if done.rowcount != 1:
            raise StaleWrite(f"node {node.node_id} was changed by another process")

    def put_page(self, page: PageRow, expected_version: int | None) -> None:
        if expected_version is None:
            self._db.execute(
                "INSERT INTO pages VALUES (%b, 1, %b, %b)", (page.page_id, page.count, page.body)
            )
            return
        done = self._db.execute(
            "UPDATE pages SET version = version + 1, count = %b, body = %b"
            " WHERE page_id = %b AND version = %b",
            (page.count, page.body, page.page_id, expected_version),
        )
        if done.rowcount != 1:
            raise StaleWrite(f"page {page.page_id} was changed by another process")

    def add_blind(self, rows: Iterable[BlindRow]) -> int:
        found = sorted(rows)
        done = self._db.execute(
            "INSERT INTO blind SELECT * FROM unnest(%b::bytea[], %b::bigint[], %b::bytea[])"
            " ON CONFLICT DO NOTHING",
            ([r.blind for r in found], [r.page_id for r in found], [r.name for r in found]),
        )
        return done.rowcount

    def drop_blind(self, rows: Iterable[tuple[int, bytes]]) -> None:
        found = list(rows)
        self._db.execute(
            "DELETE FROM blind USING unnest(%b::bigint[], %b::bytea[]) AS gone (page_id, name)"
            " WHERE blind.page_id = gone.page_id AND blind.name = gone.name",
            ([page_id for page_id, _ in found], [name for _, name in found]),
        )

    def add_elsewhere(self, rows: Iterable[tuple[bytes, int]]) -> None:
        found = list(rows)
        self._db.execute(
            "INSERT INTO elsewhere SELECT * FROM unnest(%b::bytea[], %b::bigint[]) ON CONFLICT DO NOTHING",
            ([ref for ref, _ in found], [page_id for _, page_id in found]),
        )

    def drop_elsewhere(self, rows: Iterable[tuple[bytes, int]]) -> None:
        found = list(rows)
        self._db.execute(
            "DELETE FROM elsewhere USING unnest(%b::bytea[], %b::bigint[]) AS gone (ref, page_id)"
            " WHERE elsewhere.ref = gone.ref AND elsewhere.page_id = gone.page_id",
            ([ref for ref, _ in found], [page_id for _, page_id in found]),
        )

    def replace_names(self, blinds: Sequence[bytes], rows: Sequence[BlindRow]) -> None:
        self._db.execute("DELETE FROM blind WHERE blind = ANY(%b)", (list(blinds),))
        self.add_blind(rows)

    def mark_destroyed(self, fences: Iterable[tuple[int, bytes]]) -> None:
        found = list(fences)
        self._db.execute(
            "INSERT INTO destroyed SELECT * FROM unnest(%b::bigint[], %b::bytea[]) ON CONFLICT DO NOTHING",
            ([epoch for epoch, _ in found], [chain for _, chain in found]),
        )

    def set_meta(self, name: str, value: str) -> None:
        self._db.execute(
            "INSERT INTO meta VALUES (%b, %b) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )
