"""Runs jobs by cron expression: missed runs are made up for once, runs never overlap, history is kept."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from attrs import frozen
from cronsim import CronSim, CronSimError

from keys import Database, ShredlakeError
from service.errors import BadSettings
from service.settings import Job

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS runs (run_id INTEGER PRIMARY KEY, job TEXT NOT NULL, due_at TEXT NOT NULL,
    started_at TEXT NOT NULL, finished_at TEXT, outcome TEXT, missed INTEGER NOT NULL,
    UNIQUE (job, due_at))
"""
TICK_SECONDS: Final = 1.0
_ABANDONED: Final = timedelta(hours=6)
_log = logging.getLogger("shredlake.scheduler")


@frozen
class Run:
    """One run of a job; `missed` counts due times it made up for."""

    job: str
    due_at: datetime
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None
    missed: int


def due_times(cron: str, after: datetime, until: datetime, limit: int = 1000) -> list[datetime]:
    """Moments in (after, until] that a cron expression names, at most `limit`. Pure.

    Raises:
        BadSettings: not a cron expression.
    """
    found: list[datetime] = []
    try:
        for moment in CronSim(cron, after):
            if moment > until or len(found) == limit:
                break
            found.append(moment)
    except CronSimError as error:
        raise BadSettings(f"`{cron}` is not a cron expression: {error}") from None
    return found


class Scheduler:
    """Runs jobs of a lake; safe when several processes run one each.

    Args:
        run: does a job's work and returns a sentence about it.
        since: jobs that never ran count from here.
    """

    def __init__(
        self,
        path: Path,
        jobs: Sequence[Job],
        run: Callable[[Job], str],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        since: datetime | None = None,
    ) -> None:
        self._db = Database(path, _SCHEMA)
        self._jobs = jobs
        self._run = run
        self._clock = clock
        self._since = since or clock()
        self._stop = threading.Event()
        for job in jobs:
            due_times(job.cron, self._since, self._since)

    def tick(self) -> list[Run]:
        """Runs what is due now; several missed times of a job become one run, and no job stops another."""
        done = []
        for job in self._jobs:
            now = self._clock()
            due = due_times(job.cron, self._last(job.name) or self._since, now)
            if due and self._claim(job.name, due[-1], len(due) - 1):
                outcome = self._attempt(job)
                self._finish(job.name, due[-1], outcome)
                done.append(self.history(job.name)[0])
        return done

    def history(self, job: str | None = None) -> list[Run]:
        """Past runs, newest first."""
        sql = "SELECT job, due_at, started_at, finished_at, outcome, missed FROM runs"
        rows = self._db.read(f"{sql} WHERE ? IS NULL OR job = ? ORDER BY run_id DESC", (job, job))
        return [
            Run(
                row[0],
                datetime.fromisoformat(row[1]),
                datetime.fromisoformat(row[2]),
                datetime.fromisoformat(row[3]) if row[3] else None,
                row[4],
                row[5],
            )
            for row in rows
        ]

    def forever(self) -> None:
        """Ticks until `stop`."""
        while not self._stop.wait(TICK_SECONDS):
            try:
                self.tick()
            except ShredlakeError as error:
                _log.error("scheduler: %s", error)
            except Exception as error:  # jobs go on tomorrow; its text may quote a value
                _log.error("scheduler: %s", type(error).__name__)

    def stop(self) -> None:
        """Ends `forever` after the run that is under way."""
        self._stop.set()

    def _last(self, job: str) -> datetime | None:
        rows = self._db.read("SELECT MAX(due_at) FROM runs WHERE job = ?", (job,))
        return datetime.fromisoformat(rows[0][0]) if rows[0][0] else None

    def _claim(self, job: str, due: datetime, missed: int) -> bool:
        """Whether this process may run it: nobody else has, and no earlier run is under way."""
        now = self._clock()
        with self._db.write() as db:
            running = db.execute(
                "SELECT 1 FROM runs WHERE job = ? AND finished_at IS NULL AND started_at > ?",
                (job, (now - _ABANDONED).isoformat()),
            ).fetchone()
            if running:
                return False
            made = db.execute(
                "INSERT OR IGNORE INTO runs (job, due_at, started_at, missed) VALUES (?, ?, ?, ?)",
                (job, due.isoformat(), now.isoformat(), missed),
            )
            return made.rowcount == 1

    def _attempt(self, job: Job) -> str:
        try:
            return self._run(job)
        except ShredlakeError as error:
            _log.error("job %s failed: %s", job.name, error)
            return f"failed: {type(error).__name__}: {error}"
        except Exception as error:  # its text may quote a value
            _log.error("job %s failed: %s", job.name, type(error).__name__)
            return f"failed: {type(error).__name__}"

    def _finish(self, job: str, due: datetime, outcome: str) -> None:
        with self._db.write() as db:
            db.execute(
                "UPDATE runs SET finished_at = ?, outcome = ? WHERE job = ? AND due_at = ?",
                (self._clock().isoformat(), outcome, job, due.isoformat()),
            )
