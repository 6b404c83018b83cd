"""Several processes on one tree, killed at random: the history they wrote down must be a possible one."""

from __future__ import annotations

import base64
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from infra.errors import InfraError
from infra.postgres import Postgres
from keys import Shredded, SubjectId, WrongKey, tree
from keys.leases import LEASE_SECONDS
from tests.keys.history_worker import PEOPLE, newcomer, open_history, slot
from tests.keys.people import BLOCK, context, provision, seal, shred
from tests.keys.servers import schema_of

ROOT = Path(__file__).parents[2]
WORKERS = 4
SECONDS = 12.0
LATEST_SECONDS = 150.0
AT_LEAST = 3000
EACH_AT_LEAST = 50
KINDS = ("batch", "erase", "return")


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


def done(history: list[dict[str, Any]]) -> Counter[str]:
    """How many operations of each kind there were; those that found nothing to do are left out."""
    return Counter(one["kind"] for one in history if one["kind"] != "nothing")


def check(places: dict[str, str], history: list[dict[str, Any]]) -> None:
    """One ref and one key per (person, purpose, generation), nobody lost, nobody back without leave."""
    keyring = open_history(places)
    keyring.converge()
    assert keyring.gate().is_open
    refs: dict[tuple[str, str, int], set[str]] = defaultdict(set)
    lives: dict[tuple[str, str], set[tuple[str, int]]] = defaultdict(set)
    erasures: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for one in history:
        if one["kind"] == "erase":
            erasures[one["person"]].append(one)
        for seen in one.get("seen", ()):
            if "ref" in seen:
                refs[seen["person"], seen["purpose"], seen["generation"]].add(seen["ref"])
                lives[seen["ref"], seen["purpose"]].add((seen["person"], seen["generation"]))
    assert {part: found for part, found in refs.items() if len(found) > 1} == {}, "two handles"
    assert {part: found for part, found in lives.items() if len(found) > 1} == {}, "one handle for two lives"

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
    current = {name: keyring.ref_of(SubjectId(name)) for name in everybody(history)}
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
            assert is_fenced == (current[name] != ref), "a person was lost"
            if "sealed" in seen:
                (answer,) = opener.open(
                    context(seen["purpose"]), [ref], [BLOCK], [base64.b64decode(seen["sealed"])]
                )
                if is_fenced:
                    assert isinstance(answer, Shredded)
                else:
                    assert answer == f"{name} {seen['generation']}".encode()
                    opened += 1
    assert opened > 0
    assert keyring.fences.verify() == keyring.epoch() > 0
    keyring.close()


def everybody(history: list[dict[str, Any]]) -> set[str]:
    """Whoever may have been made, also by a process that was killed before it could say so."""
    began, ended = (edge(one[key] for one in history) for key, edge in (("began", min), ("ended", max)))
    comers = {newcomer(number) for number in range(slot(began), slot(ended + LATEST_SECONDS))}
    return comers | {f"person-{n}" for n in range(PEOPLE)}


def run(
    places: dict[str, str], folder: Path, outages: Sequence[Callable[[], None]] = ()
) -> list[dict[str, Any]]:
    """Lets a crew work and kills its members; longer where the machine is slow.

    Args:
        outages: what befalls the server, evenly over the time.
    """
    chance = random.Random(7)
    open_history(places).close()
    crew = Crew(places, folder)
    try:
        began = time.monotonic()
        due = [(began + SECONDS * n / (len(outages) + 1), it) for n, it in enumerate(outages, start=1)]
        while time.monotonic() < began + SECONDS or (
            not is_enough(crew.history()) and time.monotonic() < began + LATEST_SECONDS
        ):
            time.sleep(0.5 if time.monotonic() < began + SECONDS else 2.0)
            crew.kill_one(chance)
            if due and time.monotonic() > due[0][0]:
                due.pop(0)[1]()
    finally:
        crew.end()
    assert crew.killed > 5
    assert not due
    history = crew.history()
    assert is_enough(history), done(history)
    return history


def is_enough(history: list[dict[str, Any]]) -> bool:
    """Thousands of operations, and not of one kind alone."""
    found = done(history)
    return found.total() >= AT_LEAST and all(found[kind] >= EACH_AT_LEAST for kind in KINDS)


def power_cut(server: Postgres) -> None:
    """PostgreSQL's "immediate" end, and another start."""
    server.process.stop(signal.SIGQUIT)
    time.sleep(0.5)
    server.start()


def kill_and_start(server: Postgres) -> None:
    """SIGKILL for the server; its sessions end by themselves, and until then no other one can start."""
    server.process.stop(signal.SIGKILL)
    while True:
        try:
            server.start()
            return
        except InfraError:
            time.sleep(0.2)


def test_processes_on_sqlite_agree(tmp_path: Path) -> None:
    """One host."""
    places = {"home": str(tmp_path / "keys")}
    check(places, run(places, tmp_path))


def test_processes_on_postgresql_agree_although_the_server_is_killed(
    postgres: Postgres, tmp_path: Path
) -> None:
    """It comes back in the middle, twice; no worker stops because of it."""
    places = {
        "home": str(tmp_path / "keys"),
        "dsn": postgres.address()["POSTGRES_DSN"],
        "schema": schema_of(tmp_path),
    }
    outages = [lambda: power_cut(postgres), lambda: kill_and_start(postgres)]
    check(places, run(places, tmp_path, outages))


# A checker that finds nothing in a false history would prove nothing.


def seen(who: str, ref: bytes, generation: int = 1, sealed: bytes = b"") -> dict[str, Any]:
    """A worker saw that somebody has this handle."""
    found = {"person": who, "purpose": "service", "ref": ref.hex(), "generation": generation}
    return found | ({"sealed": base64.b64encode(sealed).decode()} if sealed else {})


def batch(*some: dict[str, Any], at: float = 1.0) -> dict[str, Any]:
    """An operation that took a second."""
    return {"kind": "batch", "seen": list(some), "began": at, "ended": at + 1.0}


@frozen
class Told:
    """A true history: Ann lives, Bob was erased; and what a false one can be made of."""

    places: dict[str, str]
    ann: dict[str, Any]
    bob: bytes
    true: list[dict[str, Any]]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    """What one worker would have written down."""
    places = {"home": str(tmp_path / "keys")}
    keyring = open_history(places)
    names = SubjectId("person-1"), SubjectId("person-2")
    ann, bob = (provision(keyring, who).ref for who in names)
    before = [seen("person-1", ann, 1, seal(keyring, ann, body=b"person-1 1")), seen("person-2", bob)]
    shred(keyring, names[1], bob)
    keyring.close()
    erased = {"kind": "erase", "person": "person-2", "generation": 1, "began": 3.0, "ended": 4.0}
    return Told(places, before[0], bob, [batch(*before), erased])


def test_the_checker_believes_a_true_history(told: Told) -> None:
    """Else what follows would prove nothing."""
    check(told.places, told.true)


def test_the_checker_finds_a_second_handle(told: Told) -> None:
    """Of one person, purpose and generation."""
    with pytest.raises(AssertionError, match="two handles"):
        check(told.places, [*told.true, batch(seen("person-1", b"h" * 16))])


def test_the_checker_finds_a_second_key(told: Told, tmp_path: Path) -> None:
    """Something of the same handle and generation was sealed under another one."""
    other = open_history({"home": str(tmp_path / "other")})
    stranger = seal(other, provision(other).ref, body=b"person-1 1")
    other.close()
    with pytest.raises(WrongKey):
        check(told.places, [*told.true, batch(told.ann | {"sealed": base64.b64encode(stranger).decode()})])


def test_the_checker_finds_somebody_who_came_back_without_leave(told: Told) -> None:
    """Seen after the erasure, when no lease of before it was left."""
    with pytest.raises(AssertionError, match="back again"):
        check(told.places, [*told.true, batch(seen("person-2", told.bob), at=4.0 + 2 * LEASE_SECONDS)])


def test_the_checker_finds_somebody_who_is_lost(told: Told) -> None:
    """A handle that was given out, and that neither the pages nor a fence know."""
    with pytest.raises(AssertionError, match="lost"):
        check(told.places, [*told.true, batch(seen("person-3", b"h" * 16))])
