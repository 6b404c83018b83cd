"""The eviction barrier over real processes: one is paused, one is killed, nobody reads on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from keys import open_embedded
from keys.leases import LEASE_SECONDS
from tests.keys.people import ANN, BOB, WORD, provision, seal, unseal

ROOT = Path(__file__).parents[2]
READERS = 8


def reads(log: Path) -> list[tuple[float, str]]:
    """(when it began, what came of it) of every read so far."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(float(line.split()[0]), line.split()[1]) for line in lines if " " in line]


def wait_for(logs: list[Path], outcome: str, since: float = 0.0) -> None:
    """Until each of them has seen it."""
    end = time.monotonic() + 30
    while not all(any(at >= since and seen == outcome for at, seen in reads(log)) for log in logs):
        assert time.monotonic() < end, [reads(log)[-1:] for log in logs]
        time.sleep(0.05)


def test_after_the_barrier_no_process_opens_the_person(tmp_path: Path) -> None:
    """Neither those that run, nor the one that was killed, nor the one that was paused and wakes."""
    keyring = open_embedded(tmp_path / "keys")
    ann, bob = provision(keyring, ANN).ref, provision(keyring, BOB).ref
    sealed = {ann: seal(keyring, ann), bob: seal(keyring, bob)}
    logs = [tmp_path / f"log-{n}" for n in range(READERS)]
    readers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.keys.barrier_reader", str(tmp_path / "keys"), ann.hex(), sealed[ann].hex(), str(log)],
            cwd=ROOT,
        )
        for log in logs
    ]  # fmt: skip
    paused, killed = readers[0], readers[1]
    try:
        wait_for(logs, "opened")
        paused.send_signal(signal.SIGSTOP)
        killed.kill()
        killed.wait()
        fences = keyring.fence([(ANN, ann)], "r")
        keyring.destroy([ann], fences)
        waited = keyring.wait_until_unreadable(fences[0].epoch)
        unreadable_at = time.monotonic()
        assert waited > 0, "somebody held the key"
        wait_for(logs[2:], "shredded", since=unreadable_at)
        time.sleep(max(0.0, LEASE_SECONDS - waited))
        woken_at = time.monotonic()
        paused.send_signal(signal.SIGCONT)
        wait_for(logs[:1], "shredded", since=woken_at)
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    late = [
        (log.name, at, seen)
        for log in logs
        for at, seen in reads(log)
        if at > unreadable_at and seen == "opened"
    ]
    assert late == []
    assert unseal(keyring, bob, sealed[bob]) == WORD, "nobody else is concerned"
