"""Executors: where derive tasks run. All an executor needs is `map`."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from typing import Protocol

from keys import mask_process
from lake import sharing_cores
from projections.codewatch import DEFAULT_CODE_SECONDS, CodeWatch
from projections.compute import Partial
from projections.derive import Deriver, DeriveTask

_worker: Deriver | None = None
_not_started: Exception | None = None
_watch: CodeWatch | None = None


class Executor(Protocol):
    """Runs tasks and yields their results in order."""

    def map(self, tasks: Sequence[DeriveTask]) -> Iterator[dict[str, Partial]]: ...


class InProcess:
    """Runs tasks one after the other, here."""

    def __init__(self, deriver: Deriver) -> None:
        self._deriver = deriver

    def map(self, tasks: Sequence[DeriveTask]) -> Iterator[dict[str, Partial]]:
        return (self._deriver.run(task) for task in tasks)


class ProcessPool:
    """Runs tasks in worker processes, each with a lake and a lease of its own.

    Args:
        opener: called for every run; gives a picklable function that opens the lake in a worker, and is
            left when the run is over.
        workers: number of processes.
        code_seconds: that one call of a view's code may take there.
    """

    def __init__(
        self,
        opener: Callable[[], AbstractContextManager[Callable[[], Deriver]]],
        workers: int,
        code_seconds: float = DEFAULT_CODE_SECONDS,
    ) -> None:
        self._opener = opener
        self._workers = workers
        self._code_seconds = code_seconds

    def map(self, tasks: Sequence[DeriveTask]) -> Iterator[dict[str, Partial]]:
        # Spawned, not forked: Polars keeps threads that do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with (
            self._opener() as open_deriver,
            sharing_cores(self._workers),
            ProcessPoolExecutor(self._workers, context, _start, (open_deriver, self._code_seconds)) as pool,
        ):
            yield from pool.map(_run, tasks)


def _start(open_deriver: Callable[[], Deriver], code_seconds: float) -> None:
    """Opens this worker; that keys or lake do not answer is told by its tasks, not by its death."""
    global _worker, _not_started, _watch
    mask_process()
    _watch = CodeWatch(None, code_seconds)  # its death is seen by the process that started it
    try:
        _worker = open_deriver()
    except Exception as error:
        _not_started = error


def _run(task: DeriveTask) -> dict[str, Partial]:
    if _not_started is not None:
        raise _not_started
    assert _worker is not None
    assert _watch is not None
    with _watch.on():
        return _worker.run(task)
