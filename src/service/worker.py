"""Runs erasure requests in the background, one at a time, the one due first ahead; resumes on start."""

from __future__ import annotations

import logging
import threading

from keys import ShredlakeError
from purge import Purge, Status, UnderHold

_IDLE_SECONDS = 1.0
_log = logging.getLogger("shredlake.worker")


class ErasureWorker:
    """A thread that carries pending and interrupted requests to their receipts."""

    def __init__(self, purge: Purge) -> None:
        self._purge = purge
        self._wake = threading.Event()
        self._stop = False
        self._gave_up: set[str] = set()
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
            for request in self._purge.journal.all():
                if self._stop or request.request_id in self._gave_up:
                    continue
                if request.status in (Status.PENDING, Status.IN_PROGRESS, Status.INCOMPLETE):
                    self._run(request.request_id)
            self._wake.wait(_IDLE_SECONDS)
            self._wake.clear()

    def _run(self, request_id: str) -> None:
        try:
            done = self._purge.run(request_id)
            _log.info("erasure %s: %s", request_id, done.status.value)
        except UnderHold:
            _log.info("erasure %s waits for a legal hold", request_id)
        except ShredlakeError as error:
            _log.error("erasure %s: %s: %s", request_id, type(error).__name__, error)
            if not error.retry_helps:
                self._gave_up.add(request_id)  # until the next start, or `erase apply --resume`
        except Exception:
            _log.exception("erasure %s failed", request_id)
            self._gave_up.add(request_id)
