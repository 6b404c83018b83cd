"""Any of a lake's stores may be restored from an older backup than the others: nobody who was erased is counted again.

Eight of them remember something of the others; a lake has 256 combinations of old and new. The run of all tests
takes those of one and two older stores, of all but one, and of all; `OLDER_COPIES=all` takes every one.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from keys import RestoreGateClosed, ShredlakeError, SubjectId
from projections import LakeBehind, LedgerBehind
from service.doctor import examine
from service.runtime import Runtime, open_runtime
from tests.command import command
from tests.service.test_restores import brought, copy_of, home
from tests.world import erase, paid, publish, send

__all__ = ["home"]

STORES = {
    "lake": "lake/warehouse",
    "intake": "lake/intake.db",
    "ledger": "views/ledger.db",
    "states": "views/states.db",
    "keys": "keys",
    "fences": "evidence/fences.db",
    "journal": "purge/journal.db",
    "log": "evidence/tlog.db",
}
CATALOG = "lake/catalog.db"
"""Of the lake's tables; it comes back with them."""


def combinations() -> Iterator[tuple[str, ...]]:
    """Which stores are older."""
    some = {1, 2, len(STORES) - 1, len(STORES)}
    sizes = range(1, len(STORES) + 1) if os.environ.get("OLDER_COPIES") == "all" else sorted(some)
    for size in sizes:
        yield from itertools.combinations(STORES, size)


@pytest.fixture
def backups(home: Path) -> tuple[Path, Path]:
    """A copy of before Bob's erasure and two more events, and one of after it."""
    before, now = home.parent / "before", home.parent / "now"
    with open_runtime(home) as runtime:
        publish(runtime)
        runtime.purge.log_publications()
        erase(runtime, "ann")
    shutil.copytree(home, before)
    with open_runtime(home) as runtime:
        send(runtime, [paid("emil", event_id="emil"), paid("finn", event_id="finn")])
        publish(runtime)
        runtime.purge.log_publications()
        erase(runtime, "bob")
    shutil.copytree(home, now)
    return before, now


def read(runtime: Runtime) -> None:
    """What anybody may look at counts cid, emil and finn, and Bob is nobody."""
    assert runtime.keyring.gate().reason is None
    assert runtime.views.as_reported("people_per_day").rows["people"].to_list() == [3]
    assert runtime.views.person("balance", SubjectId("bob")).rows == ()


def test_whichever_stores_are_older_what_is_read_is_of_today_or_an_error_names_what_to_bring(
    home: Path, backups: tuple[Path, Path]
) -> None:
    """And with what it names the lake comes to read as it did."""
    before, now = backups
    newest = copy_of(home).read_bytes()
    for older in combinations():
        shutil.rmtree(home)
        shutil.copytree(now, home)
        copy_of(home).write_bytes(newest)
        for name in older:
            bring(before, home, name)
        told = []
        while len(told) <= len(STORES):
            try:
                with open_runtime(home) as runtime:
                    if reason := runtime.keyring.gate().reason:
                        raise reason
                    read(runtime)
                break
            except ShredlakeError as error:
                told.append(type(error))
                mend(home, now, error)
        else:
            pytest.fail(f"with older {older} it does not converge: {told}")


def bring(copy: Path, home: Path, name: str) -> None:
    """A store as it was."""
    brought(copy / STORES[name], home / STORES[name])
    if name == "lake":
        brought(copy / CATALOG, home / CATALOG)


def mend(home: Path, now: Path, error: ShredlakeError) -> None:
    """Does what the error says."""
    assert error.next_step
    if isinstance(error, LakeBehind):
        bring(now, home, "lake")
    elif isinstance(error, LedgerBehind):
        assert "views/ledger.db" in error.next_step
        bring(now, home, "ledger")
    else:
        assert isinstance(error, RestoreGateClosed)
        brings = (
            ("import-fences", str(copy_of(home))) if "import-fences" in error.next_step else ("converge",)
        )
        assert f"keys {brings[0]}" in error.next_step
        assert command(home, "keys", *brings).returncode == 0


def test_an_older_transparency_log_is_named_before_something_parts_from_its_checkpoints(
    home: Path, backups: tuple[Path, Path]
) -> None:
    """What is read does not rest on it; what auditors keep does."""
    before, now = backups
    bring(before, home, "log")
    check = "transparency log"
    with open_runtime(home) as runtime:
        (found,) = [one for one in examine(runtime) if one.check == check]
        assert (found.level, "evidence/tlog.db" in found.text) == ("error", True)
    bring(now, home, "log")
    with open_runtime(home) as runtime:
        assert [one.level for one in examine(runtime) if one.check == check] == ["ok"]
