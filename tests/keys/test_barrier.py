"""The eviction barrier over real processes: one is paused, one is killed, nobody reads on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
from attrs import frozen

from keys import Keyring, SubjectId, open_embedded
from keys.leases import LEASE_SECONDS
from service.runtime import initialise, open_keyring
from service.settings import CONFIG_NAME, load_settings
from tests.keys.people import BOB, WORD, provision, seal, unseal
from tests.service.test_servers import change, log_in, settings

ROOT = Path(__file__).parents[2]
READERS = 8


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


@frozen
class Ground:
    """Where the keys lie, and how many people one upon the other are erased there."""

    home: Path
    keyring: Keyring
    erased: int


@pytest.fixture(params=["embedded", "servers"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """Root file and SQLite; or Vault and PostgreSQL, where the readers have the agent's log-in."""
    home = tmp_path / "lake"
    if request.param == "embedded":
        found = Ground(home, open_embedded(home), 6)
    else:
        vault, postgres = (request.getfixturevalue(name) for name in ("vault", "postgres"))
        home.mkdir()
        (home / CONFIG_NAME).write_text(tomli_w.dumps(settings(vault, postgres, home)))
        change(home, agent=log_in(vault, home, "agent"))
        initialise(home)
        found = Ground(home, open_keyring(home, load_settings(home)), 2)
    yield found
    found.keyring.close()


def test_after_the_barrier_no_process_opens_the_person(ground: Ground, tmp_path: Path) -> None:
    """Several people, one upon the other. Neither those that run, nor the killed one, nor the paused one.

    No read may end after the barrier with the person in it; of the paused process, which may have been
    stopped with plaintext in its hand, none may begin.
    """
    keyring = ground.keyring
    people = [SubjectId(f"erased-{n}") for n in range(ground.erased)]
    refs = [provision(keyring, who).ref for who in people]
    bob = provision(keyring, BOB).ref
    sealed, bobs = [seal(keyring, ref) for ref in refs], seal(keyring, bob)
    values = tmp_path / "values"
    values.write_text("".join(f"{ref.hex()} {one.hex()}\n" for ref, one in zip(refs, sealed, strict=True)))
    logs = [tmp_path / f"log-{n}" for n in range(READERS)]
    command = [sys.executable, "-m", "tests.keys.barrier_reader", ground.home, values]
    readers = [subprocess.Popen([*command, log], cwd=ROOT) for log in logs]
    paused, killed = readers[0], readers[1]
    unreadable_at: list[float] = []
    try:
        wait_for(logs, "o" * ground.erased)
        paused.send_signal(signal.SIGSTOP)
        killed.kill()
        killed.wait()
        for who, ref in zip(people, refs, strict=True):
            fences = keyring.fence([(who, ref)], "r")
            keyring.destroy([ref], fences)
            assert keyring.wait_until_unreadable(fences[0].epoch) > 0, "somebody held the key"
            unreadable_at.append(time.monotonic())
        wait_for(logs[2:], "s" * ground.erased, since=unreadable_at[-1])
        time.sleep(LEASE_SECONDS)
        woken_at = time.monotonic()
        paused.send_signal(signal.SIGCONT)
        wait_for(logs[:1], "s" * ground.erased, since=woken_at)
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
