"""The intake over HTTP: a real server, one client on a connection that stays open, until all is committed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx

from bench.clicks import CLICKED, clicked
from bench.measure import Figure
from infra.process import free_port
from service.runtime import initialise, open_runtime

PEOPLE: Final = 10_000
SIZES: Final = {100: 20_000, 1000: 100_000}
"""Events per batch → events in all."""
_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.02


def accepted(folder: Path) -> list[Figure]:
    """All figures of this module."""
    found = []
    for size, count in SIZES.items():
        home = folder / f"http-{size}"
        initialise(home)
        with open_runtime(home) as runtime:
            runtime.lake.types.register(CLICKED)
            token = runtime.token
        taken, done = _post(home, token, size, count)
        found += [
            Figure(f"HTTP, batches of {size:,}: durable before 202", count / taken, "events/s"),
            Figure(f"HTTP, batches of {size:,}: committed", count / done, "events/s"),
        ]
    return found


def _post(home: Path, token: str, size: int, count: int) -> tuple[float, float]:
    """(seconds until the last 202, seconds until all is in the table)."""
    port = free_port()
    command = [sys.executable, "-c", "from service.cli import main; main()", "--home", str(home)]
    bodies = [
        b"[" + b",".join(clicked(number, PEOPLE) for number in range(start, start + size)) + b"]"
        for start in range(0, count, size)
    ]
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/cloudevents-batch+json"}
    with (
        subprocess.Popen(
            [*command, "serve", "--port", str(port)],
            env=os.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=_SECONDS) as client,
    ):
        try:
            _wait_until(lambda: _answers(client))
            began = time.perf_counter()
            for body in bodies:
                last = client.post("/v1/events", content=body)
                last.raise_for_status()
            taken = time.perf_counter() - began
            _wait_until(lambda: client.get(last.headers["Location"]).json()["state"] == "committed")
            return taken, time.perf_counter() - began
        finally:
            server.terminate()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/v1/health/live").is_success
    except httpx.TransportError:
        return False


def _wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + _SECONDS
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("the server took too long")
        time.sleep(_LOOK_SECONDS)
