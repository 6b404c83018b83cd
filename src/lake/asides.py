"""Lines that an operator has set aside, and what stands in the way of the intake.

A line that is set aside becomes a dead letter without being looked at: the way past whatever nobody foresaw.
What was decided stays written down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from attrs import frozen

from keys.sqlite import Database
from lake.salvage import DROPPED, SET_ASIDE, Aside
from lake.topicbook import FeedingTopic

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS asides (source TEXT NOT NULL, line INTEGER NOT NULL, dropped INTEGER NOT NULL,
    because TEXT, at REAL NOT NULL, PRIMARY KEY (source, line)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS trouble (one INTEGER PRIMARY KEY CHECK (one = 1), error TEXT NOT NULL,
    since REAL NOT NULL, attempts INTEGER NOT NULL)
"""
_BATCH: Final = "batch:"


@frozen
class Trouble:
    """Why the intake does not commit.

    Attributes:
        error: its type; its text may quote an event.
        since: seconds since the epoch of the first failure since the last commit.
    """

    error: str
    since: float
    attempts: int


class AsideBook:
    """Of one lake.

    Args:
        path: SQLite file.
        clock_seconds: seconds since the epoch.
    """

    def __init__(self, path: Path, clock_seconds: Callable[[], float] = time.time) -> None:
        self._db = Database(path, _SCHEMA)
        self._clock = clock_seconds

    def of(self, source: str) -> Aside:
        """The lines of a source, and what their letters say. Raises `DatabaseUnavailable`."""
        rows = self._db.read("SELECT line, dropped FROM asides WHERE source = ?", (source,))
        return {line: DROPPED if dropped else SET_ASIDE for line, dropped in rows}

    def of_batch(self, batch_id: str) -> Aside:
        """The same of a whole batch that came over HTTP: line 0 stands for all."""
        return self.of(_BATCH + batch_id)

    def set(self, source: str, line: int, *, drop: bool = False, because: str | None = None) -> None:
        """Sets a line aside: its letter keeps its bytes, or, where it is dropped, nothing."""
        with self._db.write() as db:
            row = (source, line, int(drop), because, self._clock())
            db.execute("INSERT OR REPLACE INTO asides VALUES (?, ?, ?, ?, ?)", row)

    def set_batch(self, batch_id: str, *, drop: bool = False, because: str | None = None) -> None:
        """Sets all events of a batch aside."""
        self.set(_BATCH + batch_id, 0, drop=drop, because=because)

    def set_message(
        self,
        topic: FeedingTopic,
        partition: int,
        offset: int,
        *,
        drop: bool = False,
        because: str | None = None,
    ) -> None:
        """Sets a message of a topic aside."""
        source = f"kafka:{topic.cluster_id}:{topic.topic_id}:{partition}"
        self.set(source, offset, drop=drop, because=because)

    def failed(self, error: BaseException) -> None:
        """The intake could not commit."""
        with self._db.write() as db:
            db.execute(
                "INSERT INTO trouble VALUES (1, ?, ?, 1) ON CONFLICT (one) DO UPDATE SET"
                " error = excluded.error, attempts = attempts + 1",
                (type(error).__name__, self._clock()),
            )

    def went_well(self) -> None:
        """It could."""
        if self.trouble() is not None:
            with self._db.write() as db:
                db.execute("DELETE FROM trouble")

    def trouble(self) -> Trouble | None:
        """What stands in the intake's way; None where nothing does."""
        rows = self._db.read("SELECT error, since, attempts FROM trouble")
        return Trouble(*rows[0]) if rows else None

    def close(self) -> None:
        """Closes the database."""
        self._db.close()
