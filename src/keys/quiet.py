"""Keeps Python's cyclic collector out of batch work.

A batch holds hundreds of thousands of small objects and makes no cycles; each collection would walk all
of them for nothing (a third of the parser's time, a quarter of what deriving keys takes).
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_LOCK = threading.Lock()
_inside = 0
_was_enabled = False


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """No cyclic collection while any thread is inside; reference counting goes on."""
    global _inside, _was_enabled
    with _LOCK:
        if _inside == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if _inside == 0 and _was_enabled:
                gc.enable()
