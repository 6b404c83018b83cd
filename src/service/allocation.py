"""Memory that one batch frees is kept for the next, instead of going back to the system page by page."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_MIB: Final = 1024 * 1024
_GLIBC: Final = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 256 * _MIB),  # so much may lie unused at the heap's end
    "MALLOC_TOP_PAD_": (-2, 16 * _MIB),  # asked for at once
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 * _MIB),  # larger ones alone are mapped and unmapped each time
}
"""Variable → (number of the option, value); see mallopt(3)."""
_JEMALLOC: Final = "_RJEM_MALLOC_CONF"
_JEMALLOC_RULE: Final = "dirty_decay_ms:5000,muzzy_decay_ms:5000"


def keep_freed_memory() -> bool:
    """Tunes this process's C library and, by the environment, both allocators of processes it starts.

    What the operator has set stays. Getting a page of 4 KiB back from the system takes longer than opening
    the block that fills it; ADR 34 has the figures. The peak is what it was.

    Returns whether this process's own allocator took it; only that of the GNU C library does.
    """
    theirs = {name for name in _GLIBC if name in os.environ}
    for name, (_, value) in _GLIBC.items():
        os.environ.setdefault(name, str(value))
    os.environ.setdefault(_JEMALLOC, _JEMALLOC_RULE)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    taken = [mallopt(*option) == 1 for name, option in _GLIBC.items() if name not in theirs]
    return all(taken)
