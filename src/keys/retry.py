"""Repeating what may be repeated while the page store is out of reach."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from keys.errors import DatabaseUnavailable, PageStoreError

ATTEMPTS: Final = 7
_FIRST_PAUSE_SECONDS: Final = 0.1
_T = TypeVar("_T")


def repeatedly(work: Callable[[], _T], *, attempts: int = ATTEMPTS) -> _T:
    """Does it again, with growing pauses, after page store errors that a retry may help.

    Only for what may be done twice: a transaction whose answer was lost may have landed.
    """
    for attempt in range(1, attempts):
        try:
            return work()
        except (PageStoreError, DatabaseUnavailable) as error:
            if not error.retry_helps:
                raise
            # Full jitter: processes that failed together do not come back together.
            time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt * random.random())
    return work()
