"""One way to open SQLite files: durable, overwriting what it deletes, one connection per thread."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from keys.errors import DatabaseDamaged, DatabaseFull, DatabaseUnavailable

BUSY_TIMEOUT_SECONDS = 60
_PASSES_BY: Final = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
}


class Database:
    """A SQLite file in WAL mode with `secure_delete`, safe for several threads and processes.

    Args:
        path: the file; its folder is made, its mode is 0600.
        schema: `CREATE … IF NOT EXISTS` statements, run once per opening.

    Raises:
        DatabaseFull, DatabaseUnavailable, DatabaseDamaged: here and from every method; what else goes wrong
            is a defect of ours and stays an error of `sqlite3`.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self.path = path
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with self.write() as db:
            for statement in filter(str.strip, schema.split(";")):
                db.execute(statement)

    def connection(self) -> sqlite3.Connection:
        """This thread's connection, in autocommit mode; its errors are SQLite's own."""
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            found = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
            found.execute("PRAGMA journal_mode=WAL")
            found.execute("PRAGMA synchronous=FULL")
            found.execute("PRAGMA secure_delete=ON")
            found.execute("PRAGMA cache_size=-65536")
            # A long log: random rows meet in the same page before it is written back, 1.14 × in creation.
            found.execute("PRAGMA wal_autocheckpoint=32000")
            self._local.connection = found
            self._all.append(found)
        return found

    def read(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of one query. Raises as `write`."""
        try:
            return self.connection().execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._told(error) from None

    def rows(self, sql: str) -> Iterator[tuple[Any, ...]]:
        """The rows of one query, read while they are taken. Raises as `write`."""
        try:
            yield from self.connection().execute(sql)
        except sqlite3.DatabaseError as error:
            raise self._told(error) from None

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One write transaction that holds the file's write lock from its first moment.

        Raises:
            DatabaseFull: no room; nothing was written.
            DatabaseUnavailable: locked for too long, or the disk does not answer.
            DatabaseDamaged: the file is malformed.
        """
        try:
            db = self.connection()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # a full disk has rolled it back already
                    db.execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as error:
            raise self._told(error) from None

    def flush_deleted(self) -> bool:
        """Moves the write-ahead log into the file and empties it, so that deleted bytes are gone.

        Returns False while a reader keeps the log alive; a later call finishes.
        """
        return bool(self.read("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0)

    def close(self) -> None:
        """Closes every thread's connection."""
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._local = threading.local()

    def _told(self, error: sqlite3.DatabaseError) -> Exception:
        """The same as one of ours: by its code, since its text may quote a row. A defect stays itself."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        name = self.path.name
        if code == sqlite3.SQLITE_FULL:
            return DatabaseFull(f"{name} has no room left")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return DatabaseDamaged(f"{name} is malformed")
        if code in _PASSES_BY:
            return DatabaseUnavailable(f"{name} cannot be used: {error.sqlite_errorname}")
        return error
