"""Keeping key material out of core dumps, debuggers and swap, as far as the system lets us."""

from __future__ import annotations

import ctypes
import resource
from typing import Final

_PR_SET_DUMPABLE: Final = 4
_MCL_CURRENT_AND_FUTURE: Final = 1 | 2


def harden() -> dict[str, bool]:
    """Switches off core dumps and attaching by the same user, and locks memory; what worked.

    Sources: prctl(2), setrlimit(2), mlockall(2). What Python copies meanwhile it cannot wipe.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    return {
        "core dumps off": resource.getrlimit(resource.RLIMIT_CORE) == (0, 0),
        "not dumpable": libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0,
        "memory locked": libc.mlockall(_MCL_CURRENT_AND_FUTURE) == 0,
    }
