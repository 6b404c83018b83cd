"""What the head of each view's table should be: written down in the transaction that decides it.

The ledger switches readers that go through a release. Every other engine reads the head of a table in the
catalog, which is moved after that; so what it should become is an intent here, and stays one until it is so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from attrs import frozen

from keys import Database

HEADS_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS heads (table_name TEXT PRIMARY KEY, publication_id INTEGER,
    release_id INTEGER NOT NULL, epoch INTEGER NOT NULL, is_moved INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heads_adopted (is_done INTEGER PRIMARY KEY)
"""


@frozen
class Wanted:
    """What a table's head should be.

    Attributes:
        publication_id: whose rows it shows; None where it shows none.
        release_id: that decided it.
        epoch: of the fence log when it was decided.
        is_moved: whether it was seen to be so.
    """

    table: str
    publication_id: int | None
    release_id: int
    epoch: int
    is_moved: bool


def table_of(view: str) -> str:
    """The table of a view, whatever its version: `views.<view>`."""
    return f"views.{view}"


def want(db: Any, table: str, publication_id: int | None, release_id: int, epoch: int) -> None:
    """Writes an intent, in the transaction of whoever decides."""
    db.execute(
        "INSERT INTO heads VALUES (?, ?, ?, ?, 0) ON CONFLICT (table_name) DO UPDATE SET publication_id ="
        " excluded.publication_id, release_id = excluded.release_id, epoch = excluded.epoch, is_moved = 0",
        (table, publication_id, release_id, epoch),
    )


class HeadBook:
    """The intents of one ledger."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def all(self) -> list[Wanted]:
        """Of every table, by name."""
        return [_wanted(row) for row in self._db.read("SELECT * FROM heads ORDER BY table_name")]

    def pending(self) -> list[Wanted]:
        """Those that nobody has seen fulfilled."""
        return [one for one in self.all() if not one.is_moved]

    def of(self, table: str) -> Wanted | None:
        """Of one table."""
        rows = self._db.read("SELECT * FROM heads WHERE table_name = ?", (table,))
        return _wanted(rows[0]) if rows else None

    def moved(self, done: Wanted) -> None:
        """Notes that an intent is fulfilled, unless another one has replaced it."""
        with self._db.write() as db:
            db.execute(
                "UPDATE heads SET is_moved = 1 WHERE table_name = ? AND publication_id IS ?"
                " AND release_id = ? AND epoch = ?",
                (done.table, done.publication_id, done.release_id, done.epoch),
            )

    def ask_again(self, tables: Iterable[str]) -> None:
        """Makes intents due that were fulfilled once; a table without one shall show nothing."""
        with self._db.write() as db:
            for table in tables:
                db.execute(
                    "INSERT INTO heads VALUES (?, NULL, 0, 0, 0) ON CONFLICT (table_name)"
                    " DO UPDATE SET is_moved = 0",
                    (table,),
                )

    def is_adopted(self) -> bool:
        """Whether the tables of a lake that knew no intents have theirs."""
        return bool(self._db.read("SELECT 1 FROM heads_adopted"))

    def adopt(self, heads: Iterable[tuple[str, int | None, int, int]]) -> None:
        """Gives them: (table, publication id, release id, epoch) each; those that are there stay."""
        with self._db.write() as db:
            db.executemany("INSERT OR IGNORE INTO heads VALUES (?, ?, ?, ?, 0)", list(heads))
            db.execute("INSERT OR IGNORE INTO heads_adopted VALUES (1)")


def _wanted(row: tuple[Any, ...]) -> Wanted:
    return Wanted(row[0], row[1], row[2], row[3], bool(row[4]))
