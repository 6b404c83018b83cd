"""Several processes on one tree, killed at random: the history they wrote down must be a possible one."""

from __future__ import annotations

import base64
import json
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from infra.postgres import Postgres
from keys import Shredded, SubjectId, tree
from keys.leases import LEASE_SECONDS
from tests.keys.history_worker import PEOPLE, open_history
from tests.keys.people import BLOCK, context
from tests.keys.servers import schema_of

ROOT = Path(__file__).parents[2]
WORKERS = 4
SECONDS = 12.0
AT_LEAST = 1000


class Crew:
    """Worker processes that are replaced when they are killed."""

    def __init__(self, places: dict[str, str], folder: Path) -> None:
        self._places = places
        self._folder = folder
        self._seed = 0
        self.killed = 0
        self.processes = [self._start() for _ in range(WORKERS)]

    def _start(self) -> subprocess.Popen[bytes]:
        self._seed += 1
        arguments = [json.dumps(self._places), str(self._seed), str(self._folder / f"log-{self._seed}")]
        errors = (self._folder / f"errors-{self._seed}").open("wb")
        return subprocess.Popen(
            [sys.executable, "-m", "tests.keys.history_worker", *arguments], cwd=ROOT, stderr=errors
        )

    def kill_one(self, chance: random.Random) -> None:
        """SIGKILL for one, and another in its place."""
        at = chance.randrange(WORKERS)
        assert self.processes[at].poll() is None, self.complaints()
        self.processes[at].kill()
        self.processes[at].wait()
        self.processes[at] = self._start()
        self.killed += 1

    def end(self) -> None:
        """SIGKILL for all; nobody may have stopped by itself."""
        alive = [process.poll() is None for process in self.processes]
        for process in self.processes:
            process.kill()
            process.wait()
        assert all(alive), self.complaints()

    def complaints(self) -> str:
        """What the processes wrote to stderr."""
        return "\n".join(p.read_text()[-2000:] for p in sorted(self._folder.glob("errors-*")))

    def history(self) -> list[dict[str, Any]]:
        """Every completed operation, by its beginning."""
        lines = [
            json.loads(line)
            for path in self._folder.glob("log-*")
            for line in path.read_text().splitlines()
            if line.endswith("}")
        ]
        return sorted((one for one in lines if "ended" in one), key=lambda one: float(one["began"]))


def check(places: dict[str, str], history: list[dict[str, Any]]) -> None:
    """One ref and one key per (person, generation), nobody lost, nobody back without leave."""
    keyring = open_history(places)
    keyring.converge()
    assert keyring.gate().is_open
    refs: dict[tuple[str, int], set[str]] = defaultdict(set)
    erasures: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in history:
        if one["kind"] == "erase":
            erasures[one["person"]].append(one)
        for seen in one.get("seen", ()):
            if "ref" in seen:
                refs[seen["person"], seen["generation"]].add(seen["ref"])
    assert {part: found for part, found in refs.items() if len(found) > 1} == {}
    handles = [next(iter(found)) for found in refs.values()]
    assert len(set(handles)) == len(handles)

    for one in history:
        for seen in one.get("seen", ()):
            # Until its lease ran out another process may still answer from its cache.
            known_at = one["began"] - LEASE_SECONDS
            before = [e for e in erasures[seen["person"]] if e["ended"] < known_at]
            if "generation" in seen and before:
                assert seen["generation"] > max(e["generation"] for e in before), "erased and back again"

    records = [
        tree.decode(record)
        for _, page in keyring.tree.open_pages(keyring._store.page_ids())
        for record in tree.records(page)
    ]
    assert len({(r.ref, r.purpose_code) for r in records}) == len(records), "two keys for one handle"
    current = {n: keyring.ref_of(SubjectId(f"person-{n}")) for n in range(PEOPLE)}
    assert {r.ref for r in records} == {ref for ref in current.values() if ref is not None}
    fenced = {fence.ref_tag for fence in keyring.fences.all()}
    opener = keyring.opener()
    opened = 0
    for one in history:
        for seen in one.get("seen", ()):
            if "ref" not in seen:
                continue
            ref = bytes.fromhex(seen["ref"])
            is_fenced = keyring.fences.ref_tag(ref) in fenced
            name = seen["person"]
            assert is_fenced == (current[int(name.split("-")[1])] != ref), "a person was lost"
            if "sealed" in seen:
                (answer,) = opener.open(context(), [ref], [BLOCK], [base64.b64decode(seen["sealed"])])
                if is_fenced:
                    assert isinstance(answer, Shredded)
                else:
                    assert answer == f"{name} {seen['generation']}".encode()
                    opened += 1
    assert opened > 0
    assert keyring.fences.verify() == keyring.epoch() > 0
    keyring.close()


def run(
    places: dict[str, str], folder: Path, at_least: int, server: Postgres | None = None
) -> list[dict[str, Any]]:
    """Lets a crew work, kills its members, and once the server; longer where the machine is slow."""
    chance = random.Random(7)
    open_history(places).close()
    crew = Crew(places, folder)
    try:
        end, latest = time.monotonic() + SECONDS, time.monotonic() + 12 * SECONDS
        restarts_at = [time.monotonic() + SECONDS / 2] if server is not None else []
        while time.monotonic() < end or (len(crew.history()) <= at_least and time.monotonic() < latest):
            time.sleep(0.5 if time.monotonic() < end else 2.0)
            crew.kill_one(chance)
            if server is not None and restarts_at and time.monotonic() > restarts_at[0]:
                restarts_at.clear()
                server.process.stop(signal.SIGQUIT)  # PostgreSQL's "immediate": as after a power cut
                time.sleep(0.5)
                server.start()
    finally:
        crew.end()
    assert crew.killed > 5
    return crew.history()


def test_processes_on_sqlite_agree(tmp_path: Path) -> None:
    """One host."""
    places = {"home": str(tmp_path / "keys")}
    history = run(places, tmp_path, AT_LEAST // 4)  # every write waits for the disk
    assert len(history) > AT_LEAST // 4
    check(places, history)


def test_processes_on_postgresql_agree_although_the_server_is_killed(
    postgres: Postgres, tmp_path: Path
) -> None:
    """It comes back in the middle; no worker stops because of it."""
    places = {
        "home": str(tmp_path / "keys"),
        "dsn": postgres.address()["POSTGRES_DSN"],
        "schema": schema_of(tmp_path),
    }
    history = run(places, tmp_path, AT_LEAST, postgres)
    assert len(history) > AT_LEAST
    check(places, history)


def test_the_checker_finds_a_second_handle(tmp_path: Path) -> None:
    """A checker that finds nothing in a false history would prove nothing."""
    places = {"home": str(tmp_path / "keys")}
    keyring = open_history(places)
    keyring.provision([SubjectId("person-1")])
    keyring.close()
    seen = [{"person": "person-1", "ref": f"{n:032x}", "generation": 1} for n in (1, 2)]
    with pytest.raises(AssertionError):
        check(places, [{"kind": "batch", "seen": seen, "began": 1.0, "ended": 2.0}])
