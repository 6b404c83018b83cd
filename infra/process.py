"""One server process: started detached, known by its pid file, asked until ready, stopped cleanly."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from infra.errors import InfraError

STOP_SECONDS = 10.0
READY_SECONDS = 60.0
_PORTS = range(20_000, 32_000)


class ServerProcess:
    """The process behind `<folder>/pid`, with its output in `<folder>/log`.

    Args:
        folder: the server's own data folder.
        name: for messages.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self._pid_file = folder / "pid"

    @property
    def pid(self) -> int | None:
        """The living process's id, or None."""
        try:
            pid, started = self._pid_file.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if _start_time(int(pid)) == started else None

    def start(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        """Starts it in a session of its own.

        Raises:
            InfraError: one is running on this folder already.
        """
        if self.pid is not None:
            raise InfraError(f"{self.name} is running on {self.folder} already (pid {self.pid})")
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
                cwd=self.folder,
                start_new_session=True,
            )
        self._pid_file.write_text(f"{process.pid} {_start_time(process.pid)}")
        self._process = process  # reaped by `poll`, so that a dead child does not look alive

    def wait_until(self, ready: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
        """Asks until the server says that it is ready.

        Raises:
            InfraError: it died, or the time is over; the text shows the end of its log.
        """
        end = time.monotonic() + seconds
        while not ready():
            died = getattr(self, "_process", None) is not None and self._process.poll() is not None
            if died or time.monotonic() > end:
                what = "stopped" if died else f"was not ready after {seconds:.0f} s"
                raise InfraError(f"{self.name} {what}; the end of {self.folder / 'log'}:\n{self.log_tail()}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """TERM (or another signal), ten seconds, KILL. Nothing when it is not running."""
        pid = self.pid
        if pid is None:
            return
        self.kill(how)
        end = time.monotonic() + STOP_SECONDS
        while self._is_there(pid):
            if time.monotonic() > end:
                self.kill(signal.SIGKILL)
                end = time.monotonic() + STOP_SECONDS
            time.sleep(0.02)
        self._pid_file.unlink(missing_ok=True)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to the server, if it runs."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, how)

    def log_tail(self, lines: int = 15) -> str:
        """The newest lines of the log."""
        log = self.folder / "log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""

    def _is_there(self, pid: int) -> bool:
        process = getattr(self, "_process", None)
        if process is not None and process.pid == pid:
            return process.poll() is None
        return self.pid == pid


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago.

    Below the range that outgoing connections take theirs from: while a server is down, a client that
    tries to reach it could be given its very port and connect to itself.
    """
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(_PORTS, len(_PORTS)):
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise InfraError("no free port on the loopback")


def _start_time(pid: int) -> str | None:
    """When a process started, in clock ticks since boot: tells it from a later one of the same number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return None
    return None if fields[0] == "Z" else fields[19]
