"""Commits in the background what came over HTTP; goes on with what an earlier process left."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Final

from keys import ShredlakeError, unexpected
from lake import Intake

_IDLE_SECONDS: Final = 1.0
_BESIDE_SECONDS: Final = 0.05
_FIRST_PAUSE_SECONDS: Final = 0.25
_LONGEST_PAUSE_SECONDS: Final = 10.0
_log = logging.getLogger("shredlake.intake")


class IntakeWorker:
    """A thread that commits what is due; the threads of other processes on the same lake do the same.

    Args:
        intake: whose lock lets one of them commit at a time.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._wake = threading.Event()
        self._asked = threading.Event()
        self._stopped = threading.Event()
        self._pause_seconds = 0.0
        self._thread = threading.Thread(target=self._loop, name="intake", daemon=True)

    def start(self) -> None:
        """Begins, with what waits already."""
        self._thread.start()

    def taken(self) -> None:
        """Something new waits."""
        self._wake.set()

    def hurry(self) -> None:
        """Somebody waits for the commit: it is due now."""
        self._asked.set()
        self._wake.set()

    def stop(self) -> None:
        """Ends after a last commit; what cannot be committed now is by the next start."""
        self._stopped.set()
        self._wake.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            try:
                seconds = self._step()
                self._pause_seconds = 0.0
            except Exception as error:
                seconds = self._pause_seconds = min(
                    max(_FIRST_PAUSE_SECONDS, 2 * self._pause_seconds), _LONGEST_PAUSE_SECONDS
                )
                self._tell(error)
            # After a failure news must not make it hammer a store that is away.
            (self._stopped if self._pause_seconds else self._wake).wait(seconds)
        if not self._pause_seconds:
            with contextlib.suppress(Exception):
                self._intake.drain()

    def _step(self) -> float:
        """Commits where it is due; seconds until there is something to do again."""
        due = self._intake.seconds_until_due()
        if due is None:
            self._asked.clear()
            self._intake.tidy()
            return _IDLE_SECONDS
        if due > 0 and not self._asked.is_set():
            return min(due, _IDLE_SECONDS)
        self._asked.clear()
        if self._intake.commit() is None:
            self._asked.set()
            return _BESIDE_SECONDS  # another process is at it
        self._intake.tidy()
        return 0.0

    def _tell(self, error: Exception) -> None:
        if isinstance(error, ShredlakeError):
            _log.warning("what waits is not committed yet: %s: %s", type(error).__name__, error.message)
        else:
            # its type alone: its text may quote an event, and whatever handler is set up would write it
            _log.error("what waits is not committed yet: %s", unexpected(error).message)
