"""Runs erasure requests in the background, one at a time, the one due first ahead; resumes on start.

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

from keys import ShredlakeError
from purge import Purge, Status, UnderHold

_IDLE_SECONDS: Final = 1.0
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
        self._failed: dict[str, _Failed] = {}
        self._thread = threading.Thread(target=self._loop, name="erasures", daemon=True)

    def start(self) -> None:
        """Begins, with what an earlier process left."""
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
                _log.error("erasures wait: %s", type(error).__name__)
            self._wake.wait(_IDLE_SECONDS)
            self._wake.clear()

    def _round(self) -> None:
        for request in self._purge.journal.all():
            if self._stop:
                return
            failed = self._failed.get(request.request_id)
            is_open = request.status in (Status.PENDING, Status.IN_PROGRESS, Status.INCOMPLETE)
            if is_open and (failed is None or self._clock_seconds() >= failed.again_at):
                self._run(request.request_id)

    def _run(self, request_id: str) -> None:
        try:
            done = self._purge.run(request_id)
        except UnderHold:
            _log.info("erasure %s waits for a legal hold", request_id)
        except ShredlakeError as error:
            _log.error("erasure %s: %s: %s", request_id, type(error).__name__, error)
            self._again(request_id, _SOON_SECONDS if error.retry_helps else _LATER_SECONDS)
            return
        except Exception as error:  # its text may quote the person; whatever handler writes it
            _log.error("erasure %s failed: %s", request_id, type(error).__name__)
            self._again(request_id, _LATER_SECONDS)
            return
        else:
            _log.info("erasure %s: %s", request_id, done.status.value)
        self._failed.pop(request_id, None)

    def _again(self, request_id: str, pauses: tuple[float, float]) -> None:
        first, longest = pauses
        times = self._failed[request_id].times + 1 if request_id in self._failed else 1
        pause = min(longest, first * 2.0 ** min(times - 1, 30))
        self._failed[request_id] = _Failed(times, self._clock_seconds() + pause)
