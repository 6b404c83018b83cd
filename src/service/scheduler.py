"""Runs jobs by cron expression: missed runs are made up for once, runs never overlap, history is kept."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from attrs import frozen
from cronsim import CronSim

from keys import Database, ShredlakeError, unexpected
from service.errors import BadSettings
from service.settings import Job, five_fields

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS runs (run_id INTEGER PRIMARY KEY, job TEXT NOT NULL, due_at TEXT NOT NULL,
    started_at TEXT NOT NULL, finished_at TEXT, outcome TEXT, missed INTEGER NOT NULL,
    UNIQUE (job, due_at))
"""
TICK_SECONDS: Final = 1.0
MOST_MISSED: Final = 10_000
_KILLED: Final = "failed: its process was killed"
_log = logging.getLogger("shredlake.scheduler")


@frozen
class Run:
    """One run of a job; `missed` counts due times it made up for, up to `MOST_MISSED`."""

    job: str
    due_at: datetime
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None
    missed: int


def newest_due(cron: str, after: datetime, until: datetime) -> datetime | None:
    """The newest moment in (after, until] that a cron expression names, in UTC; None without one. Pure.

    Cron is meant in UTC, whose days all have 24 hours: no time is skipped and none comes twice where clocks
    are changed. However long ago `after` is, it takes no longer.

    Raises:
        BadSettings: not a cron expression of five fields.
    """
    check_cron(cron)
    since, now = after.astimezone(UTC), until.astimezone(UTC)
    behind = now.replace(second=0, microsecond=0) + timedelta(minutes=1)  # the moments before it
    found = next(CronSim(cron, behind, reverse=True), None)
    return None if found is None or found <= since else found


def missed_before(cron: str, after: datetime, due: datetime) -> int:
    """How many moments a cron expression names in (after, due), at most `MOST_MISSED`. Pure."""
    earlier = itertools.takewhile(lambda moment: moment < due, CronSim(cron, after.astimezone(UTC)))
    return sum(1 for _ in itertools.islice(earlier, MOST_MISSED))


def check_cron(cron: str) -> None:
    """Raises `BadSettings`, with the field that does not fit."""
    try:
        five_fields(cron)
    except ValueError as error:
        raise BadSettings(str(error)) from None


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
        self._locks = path.with_name("locks")
        self._jobs = jobs
        self._run = run
        self._clock = clock
        self._since = since or clock()
        self._stop = threading.Event()
        for job in jobs:
            check_cron(job.cron)

    def tick(self) -> list[Run]:
        """Runs what is due now; several missed times of a job become one run.

        What goes wrong around one job, a full disk say, keeps no other from running.
        """
        done = []
        for job in self._jobs:
            try:
                done += self._run_if_due(job)
            except Exception as error:
                _log.error("job %s could not be scheduled: %s", job.name, unexpected(error).message)
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
            self.tick()

    def stop(self) -> None:
        """Ends `forever` after the run that is under way."""
        self._stop.set()

    def _last(self, job: str) -> datetime | None:
        rows = self._db.read("SELECT MAX(due_at) FROM runs WHERE job = ?", (job,))
        return datetime.fromisoformat(rows[0][0]) if rows[0][0] else None

    def _run_if_due(self, job: Job) -> list[Run]:
        if self._due(job) is None:
            return []
        with self._locked(job.name) as is_free:
            due = self._due(job) if is_free else None  # again: another process may have run it meanwhile
            if due is None:
                return []
            self._claim(job.name, due, missed_before(job.cron, self._after(job), due))
            self._finish(job.name, due, self._attempt(job))
        return [self.history(job.name)[0]]

    def _due(self, job: Job) -> datetime | None:
        return newest_due(job.cron, self._after(job), self._clock())

    def _after(self, job: Job) -> datetime:
        return self._last(job.name) or self._since

    @contextlib.contextmanager
    def _locked(self, job: str) -> Iterator[bool]:
        """One run of a job at a time, whoever runs it; a killed process's lock goes with it."""
        self._locks.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(job.encode()).hexdigest()[:16]
        descriptor = os.open(self._locks / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_free = True
            except BlockingIOError:
                is_free = False
            yield is_free
        finally:
            os.close(descriptor)

    def _claim(self, job: str, due: datetime, missed: int) -> None:
        """Begins a run. Under the job's lock, one that never ended was of a process that was killed."""
        now = self._clock().isoformat()
        with self._db.write() as db:
            db.execute(
                "UPDATE runs SET finished_at = ?, outcome = ? WHERE job = ? AND finished_at IS NULL",
                (now, _KILLED, job),
            )
            db.execute(
                "INSERT INTO runs (job, due_at, started_at, missed) VALUES (?, ?, ?, ?)",
                (job, due.isoformat(), now, missed),
            )

    def _attempt(self, job: Job) -> str:
        try:
            return self._run(job)
        except ShredlakeError as error:
            _log.error("job %s failed: %s", job.name, error)
            return f"failed: {type(error).__name__}: {error}"
        except Exception as error:  # the text of a foreign error may quote a value
            _log.error("job %s failed: %s", job.name, unexpected(error).message)
            return f"failed: {unexpected(error).message}"

    def _finish(self, job: str, due: datetime, outcome: str) -> None:
        with self._db.write() as db:
            db.execute(
                "UPDATE runs SET finished_at = ?, outcome = ? WHERE job = ? AND due_at = ?",
                (self._clock().isoformat(), outcome, job, due.isoformat()),
            )
