"""Processes that are started again when they die, and how fast they are together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process
from typing import TYPE_CHECKING, Any, Final

from attrs import define, evolve

from keys import ShredlakeError, masked_end
from service.errors import WorkerFailed

if TYPE_CHECKING:
    from lake.kafka import Progress

RATE_SECONDS: Final = 10.0
PAUSES_SECONDS: Final = (1.0, 4.0, 16.0)
_STEADY_SECONDS: Final = 300.0
_LAST_WORK_SECONDS: Final = 10.0


class Rate:
    """A count's speed over the last seconds. Pure.

    Args:
        seconds: how far back it looks.
    """

    def __init__(self, seconds: float = RATE_SECONDS) -> None:
        self._seconds = seconds
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, now: float, count: int) -> float:
        """Per second, given a monotonic time and the count so far."""
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] <= now - self._seconds:
            self._seen.popleft()
        (since, before) = self._seen[0]
        return max(0, count - before) / (now - since) if now > since else 0.0


@define
class _Member:
    number: int
    process: BaseProcess
    began_at: float
    newest: Progress | None = None


class Crew:
    """Numbered processes, each of which tells how it stands.

    Args:
        order: what the process of a number is told; plain values: they travel.
        work: what it runs, with its order and a connection to tell on. An error of ours that it tells ends
            the crew; a code that is not 0 has it started again.
        warn: told of a process that died.
        pauses_seconds: before the first start again, the second and so on; there are no more than these
            until a process has lived for five minutes.
    """

    def __init__(
        self,
        order: Callable[[int], Any],
        work: Callable[[Any, Connection], None],
        warn: Callable[[str], None],
        pauses_seconds: Sequence[float] = PAUSES_SECONDS,
    ) -> None:
        self._context = multiprocessing.get_context(
            "spawn"
        )  # Polars keeps threads that do not survive a fork
        self._order = order
        self._work = work
        self._warn = warn
        self._pauses_seconds = pauses_seconds
        self._members: dict[Connection, _Member] = {}
        self._starts_at: dict[int, float] = {}
        self._deaths: dict[int, int] = {}
        self._ended: list[Progress] = []
        self._stopped = False
        self.failed: list[ShredlakeError] = []

    def start(self, number: int) -> None:
        """Starts a process."""
        receiver, sender = self._context.Pipe(duplex=False)
        order = self._order(number)
        process = self._context.Process(target=_work_while_watched, args=(self._work, order, sender))
        process.start()
        sender.close()  # so that the end of the process is the end of the pipe
        self._members[receiver] = _Member(number, process, time.monotonic())

    def is_alive(self) -> bool:
        """Whether a process runs, or is about to be started again."""
        return bool(self._members or self._starts_at)

    def size(self) -> int:
        """How many run."""
        return len(self._members)

    def newest(self) -> list[Progress]:
        """What each told last, those that have ended included."""
        return [*self._ended, *(one.newest for one in self._members.values() if one.newest is not None)]

    def stop(self) -> None:
        """Tells all to end; none is started again."""
        if not self._stopped:
            self._stopped = True
            self._starts_at.clear()
            for member in self._members.values():
                member.process.terminate()

    def look(self, seconds: float) -> None:
        """Hears what was told within some seconds, and starts who is due."""
        for number, at in list(self._starts_at.items()):
            if time.monotonic() >= at:
                del self._starts_at[number]
                self.start(number)
        if not self._members:
            time.sleep(seconds)
        for ready in wait(list(self._members), seconds):
            assert isinstance(ready, Connection)
            try:
                said = ready.recv()
            except (EOFError, OSError):
                self._gone(self._members.pop(ready))
                continue
            if isinstance(said, ShredlakeError):
                self.failed.append(said)
            else:
                self._members[ready].newest = said

    def _gone(self, member: _Member) -> None:
        member.process.join()
        code, number = member.process.exitcode, member.number
        if code == 0 or self._stopped or self.failed:
            told_to_end = self._stopped and code == -signal.SIGTERM  # before it could take the signal itself
            if code and not told_to_end and not self.failed:
                self.failed.append(WorkerFailed(f"a consumer process ended with code {code}"))
            if member.newest is not None:
                self._ended.append(member.newest)
            return
        if member.newest is not None:  # what it owned is somebody else's by now
            self._ended.append(evolve(member.newest, partitions=0, lag=0, held_bytes=0, waits_for=None))
        lived_seconds = time.monotonic() - member.began_at
        deaths = 1 if lived_seconds >= _STEADY_SECONDS else self._deaths.get(number, 0) + 1
        self._deaths[number] = deaths
        if deaths > len(self._pauses_seconds):
            self.failed.append(WorkerFailed(f"a consumer process ended {deaths} times, now with code {code}"))
            return
        pause_seconds = self._pauses_seconds[deaths - 1]
        self._starts_at[number] = time.monotonic() + pause_seconds
        self._warn(
            f"consumer process {number} ended with code {code}; it starts again in {pause_seconds:g} s"
        )


def _work_while_watched(work: Callable[[Any, Connection], None], order: Any, sender: Connection) -> None:
    """What a process of a crew runs; it does not outlive who started it."""
    with masked_end():
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
        work(order, sender)


def _end_with_parent() -> None:
    """Nobody would see or stop this process any more: it is told to end, and made to where it does not.

    A pipe tells, which the system closes whatever the parent died of, also before we looked.
    """
    parent = parent_process()
    assert parent is not None, "only started by a crew"
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LAST_WORK_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
