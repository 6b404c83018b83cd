"""Repeating what may be repeated while the page store is out of reach."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from keys.errors import DatabaseUnavailable, PageStoreError

ATTEMPTS: Final = 7
LAST_TRY_SECONDS: Final = 20.0
"""No try begins later than so long after the first: with what one try waits, an outage's cost to a call."""
_FIRST_PAUSE_SECONDS: Final = 0.1
_T = TypeVar("_T")


def repeatedly(work: Callable[[], _T], *, clock_seconds: Callable[[], float] = time.monotonic) -> _T:
    """Does it again, with growing pauses, after page store errors that a retry may help.

    Only for what may be done twice: a transaction whose answer was lost may have landed.

    Args:
        clock_seconds: monotonic; says when it is too late for another try.
    """
    last = clock_seconds() + LAST_TRY_SECONDS
    attempt = 1
    while True:
        # Full jitter: processes that failed together do not come back together.
        pause = _FIRST_PAUSE_SECONDS * 2**attempt * random.random()
        try:
            return work()
        except (PageStoreError, DatabaseUnavailable) as error:
            if not error.retry_helps or attempt == ATTEMPTS or clock_seconds() + pause > last:
                raise
        time.sleep(pause)
        attempt += 1
