"""Keeps a server shut while the restore gate is, and opens it by itself once it can.

A server whose fence log is an older copy, or another lake's, must say so to whoever asks it, and serve
nobody. It converges as soon as somebody has brought the fences back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from keys import Keyring, RestoreGateClosed, ShredlakeError
from service.readiness import Readiness

_LOOK_SECONDS: Final = 1.0
_log = logging.getLogger("shredlake.gate")


class Gatekeeper:
    """The restore gate of a running server. Safe for threads.

    Args:
        keyring: whose gate it is.
        clock_seconds: monotonic; a look at the gate is good for a second.
    """

    def __init__(self, keyring: Keyring, *, clock_seconds: Callable[[], float] = time.monotonic) -> None:
        self._keyring = keyring
        self._clock_seconds = clock_seconds
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._shut: ShredlakeError | None = RestoreGateClosed("the restore gate was not looked at yet")
        self._good_until = 0.0
        self._is_open = False
        self._probe = Readiness({"the page store": lambda: keyring.gate().trusted()})

    def start(self, when_open: Callable[[], None]) -> None:
        """Destroys again what is fenced, now or, where that cannot be yet, as soon as it can.

        Args:
            when_open: called once, when all of it is destroyed.
        """
        if self._converged():
            when_open()
            return
        self._thread = threading.Thread(target=self._until_open, args=(when_open,), name="gate", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the trying."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Lets a request through, or raises why not. Fences of erasures under way shut nobody out.

        Raises:
            RestoreGateClosed: the fence log is another's or an older one, or a restore is not converged.
            KeysError: the gate could not be asked.
        """
        if self._is_open and self._clock_seconds() >= self._good_until:
            failures = self._probe.failures()  # a page store that is away must not hold every request
            self._shut = next(iter(failures.values()), None)
            self._good_until = self._clock_seconds() + _LOOK_SECONDS
        if self._shut is not None:
            raise self._shut

    def reason(self) -> ShredlakeError | None:
        """Why it is not safe to read right now, fences that are not destroyed among it; None if it is."""
        if not self._is_open:
            return self._shut
        found: list[RestoreGateClosed | None] = []
        failed = self._looked(lambda: found.append(self._keyring.gate().reason))
        return failed or found[0]

    def _until_open(self, when_open: Callable[[], None]) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            if self._converged():
                _log.info("the restore gate is open")
                when_open()
                return

    def _converged(self) -> bool:
        before = self._shut
        self._shut = self._looked(self._keyring.converge)
        self._is_open = self._shut is None
        if self._shut is not None and str(self._shut) != str(before):
            _log.error("not ready: %s. %s", self._shut.message, self._shut.next_step)
        return self._is_open

    def _looked(self, look: Callable[[], object]) -> ShredlakeError | None:
        try:
            look()
        except ShredlakeError as error:
            return error
        return None
