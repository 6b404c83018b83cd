"""Worker processes that share a machine: none takes the threads of all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_POLARS_THREADS: Final = "POLARS_MAX_THREADS"


@contextmanager
def sharing_cores(processes: int) -> Iterator[None]:
    """Processes started in this block take a share of the cores each, so many they are.

    Polars has a thread for every core in each of them otherwise, and they take the cores from each other.
    What the operator has set stays.
    """
    if _POLARS_THREADS in os.environ:
        yield
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ[_POLARS_THREADS] = str(max(1, cores // processes))
    try:
        yield
    finally:
        os.environ.pop(_POLARS_THREADS, None)
