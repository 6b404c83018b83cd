"""Whether what the server needs answers: all asked at once, none waited for longer than a few seconds.

A server that is away answers nobody, often for as long as its client waits: a probe must not hang with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from attrs import define, field

from keys import ShredlakeError, unexpected
from lake import StorageFailed
from lake.objects import storage_errors
from service.errors import ServiceError

if TYPE_CHECKING:
    from service.gatekeeper import Gatekeeper
    from service.runtime import Runtime

LIMIT_SECONDS: Final = 3.0
WATCH_SECONDS: Final = 2.0
_log = logging.getLogger("shredlake.readiness")


class NotAnswering(ServiceError):
    """What the server needs has not answered within a probe's time."""

    retry_helps = True
    default_next_step = "Check its address and health; the server is ready again by itself once it answers."


def needs_of(runtime: Runtime, gatekeeper: Gatekeeper) -> dict[str, Callable[[], object]]:
    """What a server of this lake needs: what raises where it is away."""

    def gate() -> None:
        reason = gatekeeper.reason()
        if reason is not None:
            raise reason

    events = runtime.lake.events

    def store() -> None:
        table = events.load()
        with storage_errors():
            if not table.io.new_input(table.metadata_location).exists():
                raise StorageFailed("the store lacks the newest metadata of the events' table")

    return {
        "the restore gate with the key pages": gate,
        "the custodian": lambda: runtime.keyring.custodian.status(),
        "the catalog": events.load,
        "the store": store,
    }


@define
class _Asked:
    """A question under way; nobody asks a second one beside it."""

    done: threading.Event = field(factory=threading.Event)
    error: ShredlakeError | None = None


class Readiness:
    """Safe for threads.

    Args:
        needs: name → what raises where it is away.
        limit_seconds: how long an answer is waited for.
        log_changes: say in the log what is away, and that it answers again.
    """

    def __init__(
        self,
        needs: Mapping[str, Callable[[], object]],
        limit_seconds: float = LIMIT_SECONDS,
        *,
        log_changes: bool = True,
    ) -> None:
        self._needs = needs
        self._log_changes = log_changes
        self._limit_seconds = limit_seconds
        self._under_way: dict[str, _Asked] = {}
        self._told: dict[str, str] = {}
        self._lock = threading.Lock()

    def failures(self) -> dict[str, ShredlakeError]:
        """Which needs are not met, and why; all are asked at once, and none is waited for longer."""
        asked = {name: self._ask(name) for name in self._needs}
        until = time.monotonic() + self._limit_seconds
        found: dict[str, ShredlakeError] = {}
        for name, one in asked.items():
            if not one.done.wait(max(0.0, until - time.monotonic())):
                found[name] = NotAnswering(f"{name} has not answered within {self._limit_seconds:g} s")
            elif one.error is not None:
                found[name] = one.error
        if self._log_changes:
            self._tell(found)
        return found

    def _tell(self, found: Mapping[str, ShredlakeError]) -> None:
        """Each change goes to the log once, however often and by how many it is asked."""
        with self._lock:
            before, self._told = self._told, {name: type(error).__name__ for name, error in found.items()}
            for name, error in found.items():
                if before.get(name) != type(error).__name__:
                    _log.error("not ready: %s: %s. %s", name, error.message, error.next_step)
            for name in before.keys() - found.keys():
                _log.info("%s answers again", name)

    def _ask(self, name: str) -> _Asked:
        with self._lock:
            asked = self._under_way.get(name)
            if asked is None:
                asked = self._under_way[name] = _Asked()
                threading.Thread(target=self._run, args=(name, asked), name="ready", daemon=True).start()
            return asked

    def _run(self, name: str, asked: _Asked) -> None:
        try:
            self._needs[name]()
        except ShredlakeError as error:
            asked.error = error
        except Exception as error:
            asked.error = unexpected(error)
        with self._lock:
            del self._under_way[name]
        asked.done.set()


class Watch:
    """A thread that asks every few seconds, so that an outage is in the log although nobody asks.

    Args:
        readiness: what it asks; an outage is told by it.
        seconds: between two questions.
    """

    def __init__(self, readiness: Readiness, seconds: float = WATCH_SECONDS) -> None:
        self._readiness = readiness
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="watch", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends."""
        self._stopped.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._readiness.failures()
