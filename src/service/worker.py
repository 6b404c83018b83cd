"""Runs erasure requests in the background, all that wait together, the one due first ahead; resumes on start.

A request that fails is tried again until it is done, whatever the error: soon where a retry helps, else
every hour at the latest, since what stopped it is mended without a word to this process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from attrs import frozen

from keys import ShredlakeError, unexpected
from purge import MAX_TOGETHER, OPEN_STATUSES, Purge, UnderHold

_IDLE_SECONDS: Final = 1.0
_TIDY_SECONDS: Final = 60.0
_SOON_SECONDS: Final = (1.0, 60.0)
_LATER_SECONDS: Final = (60.0, 3600.0)
_log = logging.getLogger("shredlake.worker")


@frozen
class _Failed:
    """How often in a row a request failed, and when it is tried again."""

    times: int
    again_at: float


class ErasureWorker:
    """A thread that carries pending and interrupted requests to their receipts.

    Args:
        clock_seconds: monotonic; for the pauses between tries.
    """

    def __init__(self, purge: Purge, *, clock_seconds: Callable[[], float] = time.monotonic) -> None:
        self._purge = purge
        self._clock_seconds = clock_seconds
        self._wake = threading.Event()
        self._stop = False
        self._tidy_at = 0.0
        self._failed: dict[str, _Failed] = {}
        self._thread = threading.Thread(target=self._loop, name="erasures", daemon=True)

    def start(self) -> None:
        """Begins, with what an earlier process left."""
        self._catch_up()
        self._thread.start()

    def wake(self) -> None:
        """Looks at the journal now."""
        self._wake.set()

    def stop(self) -> None:
        """Ends after the request under way."""
        self._stop = True
        self._wake.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop:
            try:
                self._round()
            except Exception as error:  # the journal could not be read
                _log.error("erasures wait: %s", unexpected(error).message)
            self._wake.wait(_IDLE_SECONDS)
            self._wake.clear()

    def _round(self) -> None:
        now = self._clock_seconds()
        due = [
            request.request_id
            for request in self._purge.journal.all()
            if request.status in OPEN_STATUSES
            and ((failed := self._failed.get(request.request_id)) is None or now >= failed.again_at)
        ]
        for start in range(0, len(due), MAX_TOGETHER):
            if self._stop:
                return
            self._run(due[start : start + MAX_TOGETHER])
        if now >= self._tidy_at:
            self._tidy_at = now + _TIDY_SECONDS
            self._purge.forget_old_salts()
            self._catch_up()
            for name in self._purge.bring_views_back():
                _log.info("view %s builds again and is published", name)

    def _catch_up(self) -> None:
        """The public log is read without the custodian: what it has to sign and to tell, it does here."""
        try:
            self._purge.log.catch_up()
        except ShredlakeError as error:
            _log.warning("the public log is as it was: %s: %s", type(error).__name__, error.message)

    def _run(self, request_ids: list[str]) -> None:
        failures: dict[str, Exception] = {}
        for done in self._purge.run_together(request_ids, on_failure=failures.__setitem__):
            error = failures.get(done.request_id)
            if error is None:
                _log.info("erasure %s: %s", done.request_id, done.status.value)
                self._failed.pop(done.request_id, None)
            else:
                self._note(done.request_id, error)

    def _note(self, request_id: str, error: Exception) -> None:
        if isinstance(error, UnderHold):
            _log.info("erasure %s waits for a legal hold", request_id)
            self._failed.pop(request_id, None)
        elif isinstance(error, ShredlakeError):
            _log.error("erasure %s: %s: %s", request_id, type(error).__name__, error)
            self._again(request_id, _SOON_SECONDS if error.retry_helps else _LATER_SECONDS)
        else:  # its text may quote the person; whatever handler writes it
            _log.error("erasure %s failed: %s", request_id, unexpected(error).message)
            self._again(request_id, _LATER_SECONDS)

    def _again(self, request_id: str, pauses: tuple[float, float]) -> None:
        first, longest = pauses
        times = self._failed[request_id].times + 1 if request_id in self._failed else 1
        pause = min(longest, first * 2.0 ** min(times - 1, 30))
        self._failed[request_id] = _Failed(times, self._clock_seconds() + pause)
