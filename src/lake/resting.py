"""Rests between pieces of work, so that a shared disk is left to others."""

from __future__ import annotations

import time
from collections.abc import Callable


class Rests:
    """So many seconds of rest per second of work.

    Args:
        ratio: 0 never rests.
        clock, sleep: in seconds.
    """

    def __init__(
        self,
        ratio: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ratio = ratio
        self._clock = clock
        self._sleep = sleep
        self._since = clock()

    def begin(self) -> None:
        """Work begins now; what came before is no work."""
        self._since = self._clock()

    def rest(self) -> None:
        """A piece of work is done; the next one begins behind the rest."""
        if self._ratio:
            self._sleep((self._clock() - self._since) * self._ratio)
        self._since = self._clock()


NO_REST = Rests(0.0)
