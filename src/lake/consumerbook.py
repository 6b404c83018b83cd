"""What consumers of topics say of themselves, where other processes of the lake can read it.

A consumer that waits, reads nothing or has died says so to nobody but its own terminal; `doctor` and a
server's readiness are asked elsewhere.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from attrs import asdict, frozen

from keys import ShredlakeError
from keys.sqlite import Database
from lake.kafkaprogress import Progress, StuckPartition

SILENT_SECONDS: Final = 15.0
_SAY_AGAIN_SECONDS: Final = 5.0
_FORGET_SECONDS: Final = 60.0
_log = logging.getLogger("shredlake.kafka")
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS consumers (name TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL,
    seen_at REAL NOT NULL, waits_for TEXT, stuck TEXT NOT NULL, ended_by TEXT) WITHOUT ROWID
"""


@frozen
class ConsumerState:
    """What a consumer said last.

    Attributes:
        seen_at: when, in seconds since the epoch.
        waits_for: the type of the error that it waits for, or None.
        ended_by: the type of the error that ended it; one that ended well is not in the book.
    """

    seen_at: float
    waits_for: str | None
    stuck: tuple[StuckPartition, ...]
    ended_by: str | None

    def is_silent(self, now: float) -> bool:
        """Whether it should have said something since: it hangs, or was killed."""
        return self.ended_by is None and now - self.seen_at > SILENT_SECONDS

    def is_well(self, now: float) -> bool:
        """Whether there is nothing to say of it, at a moment in seconds since the epoch."""
        return not (self.is_silent(now) or self.ended_by or self.waits_for or self.stuck)


class ConsumerBook:
    """The consumers of one lake.

    Args:
        path: SQLite file.
        clock_seconds: since the epoch.
    """

    def __init__(self, path: Path, clock_seconds: Callable[[], float] = time.time) -> None:
        self._db = Database(path, _SCHEMA)
        self._clock = clock_seconds

    def note(self, name: str, progress: Progress) -> None:
        """A consumer lives. Raises `DatabaseUnavailable`."""
        stuck = json.dumps([asdict(one) for one in progress.stuck])
        row = (name, socket.gethostname(), os.getpid(), self._clock(), progress.waits_for, stuck)
        with self._db.write() as db:
            db.execute("INSERT OR REPLACE INTO consumers VALUES (?, ?, ?, ?, ?, ?, NULL)", row)

    def ended(self, name: str, error: str | None = None) -> None:
        """It has ended: well, or by an error of this type. Raises `DatabaseUnavailable`."""
        with self._db.write() as db:
            if error is None:
                db.execute("DELETE FROM consumers WHERE name = ?", (name,))
            else:
                row = (name, socket.gethostname(), os.getpid(), self._clock(), error)
                db.execute("INSERT OR REPLACE INTO consumers VALUES (?, ?, ?, ?, NULL, '[]', ?)", row)

    def forget_dead(self) -> None:
        """Consumers are started: those of earlier starts that have ended are not of interest any more."""
        host, long_ago = socket.gethostname(), self._clock() - _FORGET_SECONDS
        with self._db.write() as db:
            for name, where, pid, seen_at in db.execute(
                "SELECT name, host, pid, seen_at FROM consumers"
            ).fetchall():
                if seen_at < long_ago or (where == host and not _runs(pid)):
                    db.execute("DELETE FROM consumers WHERE name = ?", (name,))

    def all(self) -> list[ConsumerState]:
        """What each said last. Raises `DatabaseUnavailable`."""
        rows = self._db.read("SELECT seen_at, waits_for, stuck, ended_by FROM consumers ORDER BY name")
        return [
            ConsumerState(at, waits, tuple(StuckPartition(**one) for one in json.loads(stuck)), ended)
            for at, waits, stuck, ended in rows
        ]

    def close(self) -> None:
        """Closes the database."""
        self._db.close()


def open_consumer_book(lake_folder: Path) -> ConsumerBook:
    """The book of a lake. Raises `DatabaseUnavailable`."""
    return ConsumerBook(lake_folder / "topics.db")


class SaysHowItStands:
    """Writes into the book what one consumer reports: news at once, that it lives every few seconds.

    A book that cannot be written stops no consumer.

    Args:
        name: of the consumer, the same when its process is started again.
        clock_seconds: monotonic.
    """

    def __init__(
        self, book: ConsumerBook, name: str, clock_seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._book = book
        self._name = name
        self._clock = clock_seconds
        self._said: tuple[str | None, Sequence[StuckPartition]] | None = None
        self._again_at = 0.0

    def progress(self, progress: Progress) -> None:
        """How it stands."""
        news, now = (progress.waits_for, progress.stuck), self._clock()
        if news != self._said or now >= self._again_at:
            self._said, self._again_at = news, now + _SAY_AGAIN_SECONDS
            self._try(lambda: self._book.note(self._name, progress))

    def ended(self, error: BaseException | None = None) -> None:
        """That it ends."""
        self._try(lambda: self._book.ended(self._name, None if error is None else type(error).__name__))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except ShredlakeError as error:
            _log.warning("how this consumer stands was not written down: %s", error.message)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
