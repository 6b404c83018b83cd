"""One way to open SQLite files: durable, overwriting what it deletes, one connection per thread."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BUSY_TIMEOUT_SECONDS = 60


class Database:
    """A SQLite file in WAL mode with `secure_delete`, safe for several threads and processes.

    Args:
        path: the file; its folder is made, its mode is 0600.
        schema: `CREATE … IF NOT EXISTS` statements, run once per opening.
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
        """This thread's connection, in autocommit mode."""
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
        """All rows of one query."""
        return self.connection().execute(sql, parameters).fetchall()

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One write transaction that holds the file's write lock from its first moment."""
        db = self.connection()
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            if db.in_transaction:  # a full disk has rolled it back already
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")

    def flush_deleted(self) -> bool:
        """Moves the write-ahead log into the file and empties it, so that deleted bytes are gone.

        Returns False while a reader keeps the log alive; a later call finishes.
        """
        row = self.connection().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return bool(row[0] == 0)

    def close(self) -> None:
        """Closes every thread's connection."""
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._local = threading.local()
