"""Keeping key material out of core dumps, debuggers and swap, as far as the system lets us."""

from __future__ import annotations

import ctypes
import resource
from typing import Final

_PR_SET_DUMPABLE: Final = 4
_MCL_CURRENT_AND_FUTURE: Final = 1 | 2
_MCL_ONFAULT: Final = 4


def harden(*, lock_memory: bool = True) -> dict[str, bool]:
    """Switches off core dumps and attaching by the same user, and locks memory; what worked.

    Args:
        lock_memory: not where a process holds a lake's data as well: all of that would be locked too.

    Pages are locked once they are touched, and none that holds a key is not. Otherwise a gigabyte would be
    filled and locked that libraries have reserved and never use, and an agent start for twenty seconds.

    Sources: prctl(2), setrlimit(2), mlockall(2). What Python copies meanwhile it cannot wipe.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    done = {
        "core dumps off": resource.getrlimit(resource.RLIMIT_CORE) == (0, 0),
        "not dumpable": libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0,
    }
    if lock_memory:
        done["memory locked"] = libc.mlockall(_MCL_CURRENT_AND_FUTURE | _MCL_ONFAULT) == 0
    return done
