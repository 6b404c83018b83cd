"""Keeps Python's cyclic collector out of batch work.

A batch holds hundreds of thousands of small objects and makes no cycles; each collection would walk all
of them for nothing (a third of the parser's time, a quarter of what deriving keys takes).
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Final

COLLECT_SECONDS: Final = 10.0
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


@contextlib.contextmanager
def rare_collections(clock_seconds: Callable[[], float]) -> Iterator[Callable[[], None]]:
    """No cyclic collection inside but one every ten seconds, when what it gives is called: for long loops.

    Left to itself the collector walks what waits each time a quarter more of it has come: a fifth of the
    time of a consumer that catches up.
    """
    collected_at = clock_seconds()

    def collect() -> None:
        nonlocal collected_at
        if clock_seconds() - collected_at >= COLLECT_SECONDS:
            gc.collect()
            collected_at = clock_seconds()

    with no_collections():
        yield collect
