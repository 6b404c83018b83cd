"""Closing an epoch on a real Vault and PostgreSQL: killed anywhere, answers lost, everybody at work."""

from __future__ import annotations

import multiprocessing
import signal
import sqlite3
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from infra.postgres import Postgres
from infra.vault import Vault
from keys import (
    CustodianUnavailable,
    Keyring,
    RootKeyRetired,
    SqlitePageStore,
    copy_store,
    open_embedded,
)
from keys.drill import nodes_that_open
from keys.errors import StaleWrite
from keys.rootowner import LATEST
from keys.vaultsession import ATTEMPTS
from tests.keys import closing
from tests.keys.closing import Places, Town, custodian_of, open_there, places_of
from tests.keys.cutanswers import cutting
from tests.keys.people import ANN, WORD, provision, seal, unseal

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.keys.closing"])
PEOPLE = 40
QUIET_TURNS = 50
CLOSES = 40


@pytest.fixture
def places(vault: Vault, postgres: Postgres, tmp_path: Path) -> Places:
    """Keys of this test alone."""
    return places_of(vault, postgres, tmp_path)


def copied(keyring: Keyring, to: Path) -> SqlitePageStore:
    """A backup of the pages as they are."""
    backup = SqlitePageStore(to)
    copy_store(keyring.tree.store, backup)
    return backup


def assert_closed(places: Places, town: Town, copy: SqlitePageStore) -> None:
    """Nobody is lost, an older copy opens nobody, one root version is left and known."""
    keyring = open_there(places)
    assert town.opened(keyring) == len(town.living)
    assert keyring.check().problems == ()
    status = keyring.custodian.status()
    assert status.minimum_version == status.latest_version
    assert keyring.tree.store.meta(LATEST) == str(status.latest_version)
    keyring.close()
    assert nodes_that_open(custodian_of(places), copy) == 0


def attempt(places: Places, kill_at: int | None) -> Any:
    """Closes an epoch in a process of its own; (requests and commits, the proof), None where killed."""
    said = CONTEXT.SimpleQueue()
    process = CONTEXT.Process(target=closing.close_epoch, args=(places, kill_at, said))
    process.start()
    wait([process.sentinel], 120)
    process.join(0)
    if process.exitcode == -signal.SIGKILL:
        return None
    assert process.exitcode == 0
    return said.get()


def test_a_close_that_is_killed_at_any_request_or_commit_is_finished_by_the_next(
    places: Places, tmp_path: Path
) -> None:
    """Killed before each, twice over; then a fresh process closes. After the last one nothing is left to do."""
    keyring = open_there(places)
    town = Town()
    town.grow(keyring, PEOPLE)
    assert keyring.close_epoch().old_wrap_refused  # the first one also makes what later ones prove with
    effects, refused = attempt(places, None)
    assert refused
    assert effects >= 10
    for at in range(1, effects + 1):
        copy = copied(keyring, tmp_path / f"copy-{at}.db")
        assert nodes_that_open(custodian_of(places), copy) > 1
        town.erase_one(keyring)
        for _ in range(2):
            assert attempt(places, at) is None, f"request or commit {at} was not reached"
        town.grow(keyring, 1)
        assert town.opened(keyring) == len(town.living), "between the kill and the next close"
        assert attempt(places, None) is not None
        assert_closed(places, town, copy)
    keyring.close()


# -- lost answers -----------------------------------------------------------------------------------

ROTATED_TWICE, ROTATED_ONCE = 2, 1


@pytest.mark.parametrize(
    ("path", "lost", "closes", "rotations"),
    [
        ("-root/rotate", 1, False, ROTATED_TWICE),
        ("rewrap/{}-root", 1, True, ROTATED_ONCE),
        ("rewrap/{}-root", ATTEMPTS, False, ROTATED_TWICE),
        ("encrypt/{}-root", ATTEMPTS, False, ROTATED_TWICE),
        ("-root/config", 1, True, ROTATED_ONCE),
        ("-root/config", ATTEMPTS, False, ROTATED_TWICE),
        ("-root/trim", 1, True, ROTATED_ONCE),
        ("-root/trim", ATTEMPTS, False, ROTATED_TWICE),
        ("decrypt/{}-root", ATTEMPTS, False, ROTATED_TWICE),
        ("keys/{}-root", ATTEMPTS, False, ROTATED_ONCE),  # before anything was rotated
    ],
)
def test_a_close_whose_answer_is_lost_is_finished_or_repeated(
    vault: Vault, places: Places, tmp_path: Path, path: str, lost: int, closes: bool, rotations: int
) -> None:
    """The server did it and could not say so: nobody is lost, and no version is taken for another lake's."""
    keyring = open_there(places)
    town = Town()
    town.grow(keyring, PEOPLE)
    assert keyring.close_epoch().old_wrap_refused
    before = keyring.custodian.status().latest_version
    copy = copied(keyring, tmp_path / "copy.db")
    town.erase_one(keyring)
    with cutting(vault) as cutter:
        unlucky = open_there(places | {"address": cutter.address})
        cutter.lose(path.format(places["name"]), lost)
        if closes:
            assert unlucky.close_epoch().old_wrap_refused
        else:
            with pytest.raises(CustodianUnavailable):
                unlucky.close_epoch()
        assert cutter.lost == lost
        assert town.opened(keyring) == len(town.living)
        town.grow(keyring, 1)
        if not closes:
            assert unlucky.close_epoch().old_wrap_refused
        unlucky.close()
    assert keyring.custodian.status().latest_version == before + rotations
    assert_closed(places, town, copy)
    keyring.close()


# -- meanwhile --------------------------------------------------------------------------------------


class Crew:
    """Two processes that write and two that read, watched from here."""

    def __init__(self, places: Places, known: list[tuple[bytes, bytes]]) -> None:
        self._ends, self._said = CONTEXT.Event(), CONTEXT.SimpleQueue()
        jobs = [closing.write_on, closing.write_on, closing.read_on, closing.read_on]
        self._turns = [CONTEXT.Value("q", 0) for _ in jobs]
        self._processes = [
            CONTEXT.Process(target=closing.work, args=(places, job, known, turns, self._ends, self._said))
            for job, turns in zip(jobs, self._turns, strict=True)
        ]
        for process in self._processes:
            process.start()

    def turns(self) -> list[int]:
        """Of each, so far. One that stopped would be waited for in vain."""
        assert all(process.is_alive() for process in self._processes) or not self._said.empty()
        return [turns.value for turns in self._turns]

    def failed(self) -> bool:
        """Whether one has given up."""
        return not self._said.empty()

    def end(self) -> list[tuple[str, list[tuple[float, float]], str]]:
        """(job, (moment, seconds) of each turn, error) of each."""
        self._ends.set()
        told = [self._said.get() for _ in self._processes]
        for process in self._processes:
            process.join(60)
        return told


def test_processes_seal_open_and_provision_without_an_error_while_epochs_close(
    places: Places, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """And while people are erased. What closes one after the other add to a turn is a property of the test."""
    keyring = open_there(places)
    town = Town()
    town.grow(keyring, PEOPLE)
    assert keyring.close_epoch().old_wrap_refused
    copy = copied(keyring, tmp_path / "copy.db")
    crew = Crew(places, list(town.living.items())[PEOPLE // 2 :])
    closes, busy_from = 0, 0.0
    try:
        while min(crew.turns()) < QUIET_TURNS and not crew.failed():
            time.sleep(0.05)
        busy_from, quiet = time.monotonic(), crew.turns()
        while not crew.failed() and (closes < CLOSES or min(crew.turns()) < min(quiet) + QUIET_TURNS):
            if closes < PEOPLE // 2:
                town.erase_one(keyring)
            assert keyring.close_epoch().old_wrap_refused
            closes += 1
    finally:
        told = crew.end()
    assert [error for _, _, error in told if error] == []
    for job in ("write_on", "read_on"):
        turns = [turn for name, took, _ in told if name == job for turn in took]
        before = statistics.median(seconds for began, seconds in turns if began < busy_from)
        while_closing = statistics.median(seconds for began, seconds in turns if began >= busy_from)
        record_property(f"{job} ms", round(before * 1000, 1))
        record_property(f"{job} ms added by epoch closes", round((while_closing - before) * 1000, 1))
    assert_closed(places, town, copy)
    keyring.close()


def test_whoever_reads_while_an_epoch_is_closed_gets_the_newer_wrap(tmp_path: Path) -> None:
    """A node was read before the close and is unwrapped after it; an old page store stays refused."""
    keyring, closer = open_embedded(tmp_path), open_embedded(tmp_path)
    ref = provision(keyring, ANN).ref
    sealed = seal(keyring, ref)
    backup = copied(keyring, tmp_path / "backup.db")
    unwrap, closes = keyring.custodian.unwrap, iter([True, True])

    def after_a_close(items: Any) -> list[bytes]:
        if next(closes, False):
            closer.close_epoch()
        return unwrap(items)

    keyring.custodian.unwrap = after_a_close  # type: ignore[method-assign]
    keyring.tree.forget_cached()
    keyring.resident.forget_all()
    assert unseal(keyring, ref, sealed) == WORD
    assert not next(closes, False), "both closes came in between"
    keyring.tree.store = backup
    keyring.tree.forget_cached()
    keyring.resident.forget_all()
    with pytest.raises(RootKeyRetired):
        unseal(keyring, ref, sealed)


def test_nothing_is_retired_when_the_pages_went_back_behind_the_rotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore in that very moment leaves nodes that only the older root opens: everybody stays readable."""
    keyring = open_embedded(tmp_path / "keys")
    ref = provision(keyring).ref
    sealed, before = seal(keyring, ref), keyring.tree.store.nodes()
    flush = keyring.tree.store.flush_deleted

    def restored() -> bool:
        with sqlite3.connect(tmp_path / "keys" / "pages.db") as pages:
            rows = [(one.version, one.wrapped, one.body, one.node_id) for one in before]
            pages.executemany("UPDATE nodes SET version = ?, wrapped = ?, body = ? WHERE node_id = ?", rows)
        return flush()

    monkeypatch.setattr(keyring.tree.store, "flush_deleted", restored)
    with pytest.raises(StaleWrite):
        keyring.close_epoch()
    monkeypatch.undo()
    keyring.close()
    assert unseal(open_embedded(tmp_path / "keys"), ref, sealed) == WORD
