"""Alarms of views that gave another result for the same input, on record until they are settled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from attrs import frozen

from keys import Database, Effects
from projections.sameness import Difference

ALARM_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS alarms (alarm_id INTEGER PRIMARY KEY, view TEXT NOT NULL, version TEXT NOT NULL,
    first_id TEXT NOT NULL, build_id TEXT NOT NULL UNIQUE, raised_at TEXT NOT NULL, times INTEGER NOT NULL,
    who TEXT NOT NULL, rows_before INTEGER NOT NULL, rows_now INTEGER NOT NULL,
    rows_differing INTEGER NOT NULL, accepted_as TEXT)
"""
_FIELDS: Final = "view, version, build_id, raised_at, times, who, rows_before, rows_now, rows_differing"


@frozen
class Alarm:
    """A view gave another result over the same input, fences and holds, by the same code.

    Attributes:
        build_id: of the result of before.
        raised_at: last.
        times: how often the result was another one.
        rows_before, rows_now, rows_differing: see `Difference`; of the last time.
    """

    view: str
    version: str
    build_id: str
    raised_at: datetime
    times: int
    who: str
    rows_before: int
    rows_now: int
    rows_differing: int


class AlarmBook:
    """Alarms of one lake, in the file of its publications.

    Args:
        db: with the tables of `ALARM_SCHEMA`.
    """

    def __init__(self, db: Database, clock: Callable[[], datetime], effects: Effects) -> None:
        self._db = db
        self._clock = clock
        self._effects = effects

    def newest_id(self, first_id: str) -> str:
        """The id under which this build's result is kept: of the one that was accepted last."""
        sql = "SELECT accepted_as FROM alarms WHERE first_id = ? AND accepted_as IS NOT NULL"
        rows = self._db.read(f"{sql} ORDER BY alarm_id DESC LIMIT 1", (first_id,))
        return rows[0][0] if rows else first_id

    def raise_alarm(
        self, view: str, version: str, first_id: str, found: Difference, who: str, *, accept: bool = False
    ) -> str:
        """Records that a build differs from the result of before; returns the build's id.

        Args:
            first_id: of the build before anything was accepted.
            accept: the new result is to be kept, under an id of its own; that settles the alarm.
        """
        before = self.newest_id(first_id)
        fresh = hashlib.sha256(f"{before}|accepted".encode()).hexdigest()[:32] if accept else None
        at = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
        rows = (found.rows_before, found.rows_now, found.rows_differing)
        with self._effects("alarm"), self._db.write() as db:
            db.execute(
                "INSERT INTO alarms (view, version, first_id, build_id, raised_at, times, who, rows_before,"
                " rows_now, rows_differing, accepted_as) VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?)"
                " ON CONFLICT (build_id) DO UPDATE SET raised_at = excluded.raised_at, times = times + 1,"
                " who = excluded.who, rows_before = excluded.rows_before, rows_now = excluded.rows_now,"
                " rows_differing = excluded.rows_differing, accepted_as = excluded.accepted_as",
                (view, version, first_id, before, at, who, *rows, fresh),
            )
        return fresh or before

    def unaccepted(self) -> list[Alarm]:
        """Alarms whose new result nobody accepted, oldest first."""
        sql = f"SELECT {_FIELDS} FROM alarms WHERE accepted_as IS NULL ORDER BY alarm_id"
        return [_alarm(row) for row in self._db.read(sql)]


def _alarm(row: tuple[Any, ...]) -> Alarm:
    view, version, build_id, raised_at, *more = row
    return Alarm(view, version, build_id, datetime.fromisoformat(raised_at), *more)
