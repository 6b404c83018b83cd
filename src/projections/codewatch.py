"""Bounds what the code of a view's author can do to the process that runs it, and so to an erasure.

A call that does not end is ended, from a thread that watches. Code that cannot be ended ends the process
instead, and so does code that crashes it; a file says meanwhile whose code is running, so that the next
process knows. Such a version of a view is built again when somebody asks for it, and never by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Final, TypeVar

from projections.errors import ViewHangs

R = TypeVar("R")
DEFAULT_CODE_SECONDS: Final = 600.0
_LOOKS_A_LIMIT: Final = 20
_LONGEST_LOOK_SECONDS: Final = 1.0
_DEATHS: Final = 2
"""One can be an operator's `kill -9` at the wrong moment."""
_EXIT_CODE: Final = 70
_RUNNING, _DIED, _HUNG = "running-", "died-", "hung-"
_KILLED: Final = "the process that ran its code died, more than once"
_HANGS: Final = "its code does not end"


class _DoesNotEnd(BaseException):
    """Raised from outside in the thread that runs an author's code."""


class _Received(BaseException):
    """What was on its way has come."""


class Watched:
    """One build that is watched: one call of an author's code at a time, in the thread that made this.

    Args:
        limit_seconds: for one call.
        descriptor: of the file that says whose code is running; None where nobody would read it.
        hung: told of a call that is ended, or that the process ends for.
        clock_seconds: monotonic.
    """

    def __init__(
        self,
        limit_seconds: float,
        descriptor: int | None,
        hung: Callable[[str], None],
        clock_seconds: Callable[[], float],
    ) -> None:
        self._limit_seconds = limit_seconds
        self._descriptor = descriptor
        self._hung = hung
        self._clock_seconds = clock_seconds
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._began_at: float | None = None
        self._line = ""
        self._is_fired = False
        self._ended = threading.Event()
        self.versions: dict[str, str] = {}
        self._arm()  # before the watching thread can: that one may never come to run
        self._watcher = threading.Thread(target=self._watch, name="views' code", daemon=True)
        self._watcher.start()

    def call(self, view: str, function: Callable[[], R]) -> R:
        """What a function returns that runs code of a view's author.

        Raises:
            ViewHangs: it took longer than the limit.
        """
        if self._began_at is not None or threading.get_ident() != self._thread:
            return function()  # inside of another call, whose time counts
        try:
            self._enter(view)
            try:
                return function()
            finally:
                self._leave()
        except _DoesNotEnd:
            self._leave()  # again: it may have come in the midst of leaving
        raise ViewHangs(view, self._limit_seconds)

    def end(self) -> None:
        """Ends the watching."""
        self._ended.set()
        self._watcher.join()

    def _enter(self, view: str) -> None:
        self._line = f"{view} {self.versions.get(view, '?')}"
        if self._descriptor is not None:
            os.pwrite(self._descriptor, self._line.encode(), 0)
        with self._lock:
            self._began_at = self._clock_seconds()

    def _leave(self) -> None:
        with self._lock:
            self._began_at = None
            if self._is_fired:
                self._is_fired = False
                _take_back()
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)

    def _arm(self) -> None:
        """Has this process ended where no thread of Python runs for so long."""
        seconds = 2 * self._limit_seconds + _LONGEST_LOOK_SECONDS
        with contextlib.suppress(
            AttributeError, OSError, RuntimeError, ValueError
        ):  # nowhere to say where it was
            faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)  # type: ignore[arg-type]

    def _watch(self) -> None:
        pause_seconds = min(_LONGEST_LOOK_SECONDS, self._limit_seconds / _LOOKS_A_LIMIT)
        try:
            while not self._ended.wait(pause_seconds):
                self._arm()
                with self._lock:
                    took_seconds = 0.0 if self._began_at is None else self._clock_seconds() - self._began_at
                    if took_seconds < self._limit_seconds:
                        continue
                    if not self._is_fired:
                        self._hung(self._line)
                    self._is_fired = True
                    if took_seconds >= 2 * self._limit_seconds:  # it catches what ends it, or never looks
                        os._exit(_EXIT_CODE)
                    _raise_in(self._thread, _DoesNotEnd)
        finally:
            faulthandler.cancel_dump_traceback_later()


_watched: ContextVar[Watched | None] = ContextVar("watched", default=None)


def call_watched(view: str, function: Callable[[], R]) -> R:
    """What a function returns that runs code of a view's author; watched where a build is watched."""
    one = _watched.get()
    return function() if one is None else one.call(view, function)


class CodeWatch:
    """Watches builds, and remembers in whose code they hung or died.

    Args:
        folder: of what is remembered; None remembers nothing, for a process that somebody else watches.
        limit_seconds: for one call of a view's code.
    """

    def __init__(
        self,
        folder: Path | None,
        limit_seconds: float = DEFAULT_CODE_SECONDS,
        clock_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._clock_seconds = clock_seconds
        self._limit_seconds = limit_seconds

    @contextlib.contextmanager
    def on(self) -> Iterator[Watched]:
        """Watches what this thread runs inside."""
        with contextlib.ExitStack() as stack:
            descriptor = None
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                path = self._folder / (_RUNNING + secrets.token_hex(8))
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                stack.callback(os.close, descriptor)
                stack.callback(path.unlink, missing_ok=True)
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # goes with the process
            one = Watched(self._limit_seconds, descriptor, self._note_hung, self._clock_seconds)
            stack.callback(one.end)
            token = _watched.set(one)
            stack.callback(_watched.reset, token)
            yield one

    def given_up(self, view: str, version: str) -> str | None:
        """Why a version of a view is not built by itself any more; None where it may be."""
        self._take_in_deaths()
        line = f"{view} {version}"
        if any(text == line for _, text in self._notes(_HUNG)):
            return _HANGS
        deaths = sum(text == line for _, text in self._notes(_DIED))
        return _KILLED if deaths >= _DEATHS else None

    def forgive(self, views: Collection[str]) -> None:
        """Forgets what happened in the code of these views: they were built."""
        for prefix in (_DIED, _HUNG):
            for path, text in self._notes(prefix):
                if text.partition(" ")[0] in views:
                    path.unlink(missing_ok=True)

    def _note_hung(self, line: str) -> None:
        if self._folder is not None:
            (self._folder / (_HUNG + secrets.token_hex(8))).write_text(line)

    def _take_in_deaths(self) -> None:
        for path, text in self._notes(_RUNNING):
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if text:
                    path.rename(path.with_name(_DIED + path.name.removeprefix(_RUNNING)))
                else:
                    path.unlink(missing_ok=True)

    def _notes(self, prefix: str) -> list[tuple[Path, str]]:
        found = []
        for path in self._folder.glob(prefix + "*") if self._folder is not None else ():
            with contextlib.suppress(OSError):  # gone meanwhile
                found.append((path, path.read_text()))
        return found


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Raises in another thread, at its next step of Python (docs.python.org, PyThreadState_SetAsyncExc)."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


def _take_back() -> None:
    """What has not come to this thread yet comes no more.

    Sending nothing in its place would do that, and tell the interpreter for ever that something is on its
    way: it then looks at every step, and the first step under a debugger has no end (CPython 3.11,
    Python/ceval.c). So something else is sent in its place, and received here.
    """
    with contextlib.suppress(_Received):
        _raise_in(threading.get_ident(), _Received)
        while True:
            time.sleep(0)
