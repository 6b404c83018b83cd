"""One builder of a view at a time, on this host, whatever process it is in."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from projections.errors import BuildUnderWay

_LOOK_SECONDS: Final = 0.02


class BuildLocks:
    """File locks by the names of views; a killed builder's go with it.

    Args:
        folder: of the lock files; made when it is first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def held(self, names: Collection[str], wait_seconds: float | None = None) -> Iterator[None]:
        """Builds these views alone; everybody takes them in one order.

        Args:
            wait_seconds: for another builder of one of them; None waits for its end.

        Raises:
            BuildUnderWay: it has not ended by then.
        """
        until = None if wait_seconds is None else time.monotonic() + wait_seconds
        self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for name in sorted(set(names)):
                descriptor = os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o600)
                stack.callback(os.close, descriptor)
                _lock(descriptor, name, until)
            yield


def _lock(descriptor: int, name: str, until: float | None) -> None:
    while until is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise BuildUnderWay(f"another build of `{name}` does not end") from None
            time.sleep(_LOOK_SECONDS)
        else:
            return
    fcntl.flock(descriptor, fcntl.LOCK_EX)
