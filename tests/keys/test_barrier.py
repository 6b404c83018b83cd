"""The eviction barrier over real processes: one is paused, one is killed, nobody reads on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from attrs import frozen

from keys import SubjectId, open_embedded
from keys.leases import LEASE_SECONDS
from tests.keys.people import BOB, WORD, provision, seal, unseal

ROOT = Path(__file__).parents[2]
READERS = 8
ERASED = 6


@frozen
class Read:
    """One read of all values: when it began and ended, and a letter per value."""

    began: float
    ended: float
    outcome: str


def reads(log: Path) -> list[Read]:
    """Every read so far."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    parts = [line.split() for line in lines if line.endswith("\n")]
    return [Read(float(began), float(ended), outcome) for began, ended, outcome in parts]


def wait_for(logs: list[Path], outcome: str, since: float = 0.0) -> None:
    """Until each of them has seen it."""
    end = time.monotonic() + 60
    while not all(any(r.began >= since and r.outcome == outcome for r in reads(log)) for log in logs):
        assert time.monotonic() < end, [reads(log)[-1:] for log in logs]
        time.sleep(0.05)


def test_after_the_barrier_no_process_opens_the_person(tmp_path: Path) -> None:
    """Several people, one upon the other. Neither those that run, nor the killed one, nor the paused one.

    No read may end after the barrier with the person in it; of the paused process, which may have been
    stopped with plaintext in its hand, none may begin.
    """
    keyring = open_embedded(tmp_path / "keys")
    people = [SubjectId(f"erased-{n}") for n in range(ERASED)]
    refs = [provision(keyring, who).ref for who in people]
    bob = provision(keyring, BOB).ref
    sealed, bobs = [seal(keyring, ref) for ref in refs], seal(keyring, bob)
    values = tmp_path / "values"
    values.write_text("".join(f"{ref.hex()} {one.hex()}\n" for ref, one in zip(refs, sealed, strict=True)))
    logs = [tmp_path / f"log-{n}" for n in range(READERS)]
    command = [sys.executable, "-m", "tests.keys.barrier_reader", tmp_path / "keys", values]
    readers = [subprocess.Popen([*command, log], cwd=ROOT) for log in logs]
    paused, killed = readers[0], readers[1]
    unreadable_at: list[float] = []
    try:
        wait_for(logs, "o" * ERASED)
        paused.send_signal(signal.SIGSTOP)
        killed.kill()
        killed.wait()
        for who, ref in zip(people, refs, strict=True):
            fences = keyring.fence([(who, ref)], "r")
            keyring.destroy([ref], fences)
            assert keyring.wait_until_unreadable(fences[0].epoch) > 0, "somebody held the key"
            unreadable_at.append(time.monotonic())
        wait_for(logs[2:], "s" * ERASED, since=unreadable_at[-1])
        time.sleep(LEASE_SECONDS)
        woken_at = time.monotonic()
        paused.send_signal(signal.SIGCONT)
        wait_for(logs[:1], "s" * ERASED, since=woken_at)
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    late = [
        (log.name, person, read)
        for log in logs
        for read in reads(log)
        for person, at in enumerate(unreadable_at)
        if (read.began if log is logs[0] else read.ended) > at and read.outcome[person] == "o"
    ]
    assert late == []
    assert unseal(keyring, bob, bobs) == WORD, "nobody else is concerned"
