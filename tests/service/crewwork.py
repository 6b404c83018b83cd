"""What processes of a crew do in its tests; they import this module alone, and so start quickly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

from service.crew import Crew


def never_end(order: int, sender: Connection) -> None:
    """What a process does that hangs, whatever it is told."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sender.send(None)
    time.sleep(600)


def start_and_die(to: str) -> None:
    """A parent whose crew of one hangs."""
    crew = Crew(lambda number: number, never_end, lambda text: None)
    crew.start(0)
    (pid,) = [one.pid for one in multiprocessing.active_children()]
    crew.look(60)
    Path(to).write_text(str(pid))
    os.kill(os.getpid(), signal.SIGKILL)


def die(order: int, sender: Connection) -> None:
    """What a process does that cannot live."""
    os.kill(os.getpid(), signal.SIGKILL)


def begin_slowly(order: int, sender: Connection) -> None:
    """What a process does that does not take signals itself yet."""
    signal.pause()
