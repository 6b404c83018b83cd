"""The scanner finds what a thief with today's keys finds, in every kind of store, and says what it did not look at."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from keys import SubjectId
from keys.sealing import Opener
from lake import HttpBatch
from projections.tables import ViewTables
from purge import STORES, Scanned, Store, scan
from service.runtime import Runtime
from tests.purge.test_who_can_be_erased import SPELLINGS, letter, wait_in_intake
from tests.world import compact_all, erase, paid, publish, send

ANN = SubjectId("customer-ann-0001")
BOB = SubjectId("bob")


def hows(found: Scanned, below: str = "") -> set[str]:
    """How the person was found in files below a path."""
    return {one.how for one in found.findings if one.path.startswith(below)}


def place_in(store: Store) -> str:
    """A path of the store that a test may write."""
    pattern = "keys/root.key.lock" if store.name == "root key" else store.patterns[0]
    return pattern.replace("*", "planted")


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
def test_the_scanner_finds_what_is_planted_in_any_registered_store(world: Runtime, store: Store) -> None:
    """In clear: a row of a database, a line of a file. Nobody is there before."""
    where = place_in(store)
    path = world.home / where
    path.parent.mkdir(parents=True, exist_ok=True)
    assert scan(world.home, ANN).findings == ()
    for said in (ANN, BOB):
        if path.suffix == ".db":
            with sqlite3.connect(path) as db:
                db.execute("CREATE TABLE IF NOT EXISTS planted (said TEXT)")
                db.execute("INSERT INTO planted VALUES (?)", (said.reveal(),))
        else:
            with path.open("a") as file:
                file.write(f"\n# {said.reveal()}\n")
        found = scan(world.home, said)
        assert {one.path.removesuffix("-wal") for one in found.findings} == {where}
        assert found.failures == ()
    assert scan(world.home, SubjectId("customer-ann-000")).findings == (), "a prefix is somebody else"
    assert scan(world.home, SubjectId("bo")).findings == ()


def in_events(world: Runtime) -> None:
    """An event of the person."""
    send(world, [paid(ANN.reveal(), event_id="1")])
    compact_all(world)


def in_a_letter(world: Runtime) -> None:
    """A letter of nobody's."""
    letter(world, b"1," + ANN.reveal().encode())


def in_view_rows(world: Runtime) -> None:
    """A row of a subject-grain view that carries a text."""
    send(world, [paid("somebody", event_id="1")])
    ref = world.keyring.ref_of(SubjectId("somebody"))
    rows = pl.DataFrame({"subject_ref": [ref], "told": [ANN.reveal()]})
    ViewTables(world.lake.warehouse, world.keyring).write("views.told", "0" * 8, "b1", rows, ["service"], 0)


def in_the_intake(world: Runtime) -> None:
    """A batch that waits."""
    wait_in_intake(world, paid(ANN.reveal(), event_id="1"))


def in_states(world: Runtime) -> None:
    """What views are derived from."""
    in_events(world)
    publish(world)


def in_the_journal(world: Runtime) -> None:
    """A request that is not begun."""
    in_events(world)
    world.purge.submit(ANN)


def in_the_ledger(world: Runtime) -> None:
    """A remark in the code of a view that is published."""
    code = f"pass  # {ANN.reveal()} asked for it\n".encode()
    files = {"told.py": base64.b64encode(code).decode()}
    world.views.ledger.sources.put("told", "1" * 8, json.dumps({"files": files}).encode())


SEALED: dict[str, tuple[str, list[Callable[[Runtime], None]]]] = {
    "events table": ("lake/warehouse/lake/", [in_events, in_a_letter]),
    "view tables": ("lake/warehouse/views/", [in_view_rows]),
    "intake": ("lake/intake.db", [in_the_intake]),
    "view states": ("views/states.db", [in_states]),
    "publication ledger": ("views/ledger.db", [in_the_ledger]),
    "request journal": ("purge/journal.db", [in_the_journal]),
}
"""Where the stores with sealed values are, and what puts a person there."""


def test_every_store_with_sealed_values_has_a_control() -> None:
    """A store that is registered later fails here until somebody shows that the scanner opens it."""
    assert {one.name for one in STORES if "sealed" in one.protection} == set(SEALED)


@pytest.mark.parametrize(
    ("below", "plant"), [(below, plant) for below, plants in SEALED.values() for plant in plants]
)
def test_the_scanner_opens_every_kind_of_sealed_value(
    world: Runtime, below: str, plant: Callable[[Runtime], None]
) -> None:
    """With the keys of the folder itself; somebody else is not found in the same bytes."""
    plant(world)
    found = scan(world.home, ANN)
    everything = (*found.findings, *found.apart)
    assert {one.how for one in everything if one.path.startswith(below)} == {"opened"}
    assert found.failures == ()
    assert (scan(world.home, SubjectId("customer-ann-000")).findings) == ()


@pytest.mark.parametrize("raw", SPELLINGS)
def test_the_scanner_finds_every_spelling_that_a_letter_keeps(world: Runtime, raw: bytes) -> None:
    """What redaction takes out is what the scanner finds."""
    letter(world, raw)
    assert hows(scan(world.home, ANN)) == {"opened"}
    erase(world, ANN.reveal())
    done = scan(world.home, ANN)
    assert (done.findings, done.failures) == ((), ())


@pytest.mark.parametrize("said", ["bob", "a", "42", "ü", "b-1"])
def test_a_person_with_a_short_id_is_found_alive_and_not_after_the_erasure(world: Runtime, said: str) -> None:
    """Under six bytes: decoded values are compared; what cannot be looked for is named."""
    send(world, [paid(said, event_id="1"), paid("somebody", event_id="2")])
    publish(world)
    before = scan(world.home, SubjectId(said))
    assert hows(before) == {"opened"}
    assert any("under 6" in one for one in before.not_searched)
    erase(world, said)
    after = scan(world.home, SubjectId(said))
    assert (after.findings, after.failures) == ((), ())


def test_what_others_wrote_of_a_person_is_told_apart_and_fails_no_erasure(world: Runtime) -> None:
    """It is sealed under them, and goes with them."""
    send(
        world,
        [
            paid("somebody", event_id="1", note=f"shared with {ANN.reveal()}"),
            paid(ANN.reveal(), event_id="2"),
        ],
    )
    erase(world, ANN.reveal())
    found = scan(world.home, ANN)
    assert found.findings == ()
    assert {(one.how, one.whose) for one in found.apart} == {("opened", "another")}
    erase(world, "somebody")
    assert scan(world.home, ANN).apart == ()


def test_a_longer_name_that_holds_the_id_is_told_apart(world: Runtime) -> None:
    """Joined by a hyphen it may be somebody else, and may be not."""
    (world.home / "logs").mkdir(exist_ok=True)
    (world.home / "logs" / "odd.log").write_text(f"order-{ANN.reveal()}-7\n")
    found = scan(world.home, ANN)
    assert (found.findings, [one.path for one in found.apart]) == ((), ["logs/odd.log"])


def test_what_is_under_a_hold_is_opened_like_everything(world: Runtime) -> None:
    """A thief asks for no hold."""
    in_events(world)
    world.purge.hold(ANN, "a court")
    assert hows(scan(world.home, ANN)) == {"opened"}


@pytest.mark.parametrize("damage", ["lake/warehouse", "views/states.db"])
def test_a_store_that_cannot_be_opened_is_a_failure_and_never_nowhere(world: Runtime, damage: str) -> None:
    """Cut in half, whatever it is."""
    in_states(world)
    path = world.home / damage
    if path.is_dir():
        path = next(path.rglob("*.parquet"))
    world.close()
    for end in ("-wal", "-shm"):
        Path(f"{path}{end}").unlink(missing_ok=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = scan(world.home, SubjectId("nobody-at-all"))
    assert {one.path for one in found.failures} == {str(path.relative_to(world.home))}


def test_an_envelope_that_does_not_open_though_its_key_lives_is_a_failure(world: Runtime) -> None:
    """Damage is never taken for an erasure."""
    in_the_intake(world)
    with sqlite3.connect(world.home / "lake" / "intake.db") as db:
        (sealed,) = db.execute("SELECT sealed FROM waiting").fetchone()
        db.execute("UPDATE waiting SET sealed = ?", (sealed[:-1] + bytes([sealed[-1] ^ 1]),))
    assert [one.path for one in scan(world.home, ANN).failures] == ["lake/intake.db"]


def test_every_living_value_is_opened_once_and_none_of_the_dead(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bulk, whatever number of erasures came before."""
    send(world, [paid(f"customer-{n:04}", event_id=str(n)) for n in range(40)])
    publish(world)
    for number in range(2):
        erase(world, f"customer-{number:04}")
    batches: list[int] = []
    plain = Opener._open_batch

    def counted(self: Opener, *arguments: object) -> object:
        batches.append(len(arguments[1]))  # type: ignore[arg-type]
        return plain(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Opener, "_open_batch", counted)
    seen: list[tuple[int, int]] = []
    found = scan(world.home, SubjectId("customer-0000"), lambda done, files: seen.append((done, files)))
    assert found.findings == ()
    assert sum(batches) == found.opened_values
    assert len(batches) <= found.files + 8
    assert seen[-1] == (found.files, found.files)


def test_two_values_side_by_side_make_no_person(world: Runtime) -> None:
    """Nor does a longer id whose bytes no format tells apart from the next ones."""
    lines = [b"9,customer-ann-00011", b"customer-ann-", b"0001"]
    world.lake.ingestor().run(HttpBatch(lines, "x", world.lake.types))
    send(
        world,
        [
            paid("customer-ann-00011", event_id="1", note="customer-ann-"),
            paid("x", event_id="2", note="0001"),
        ],
    )
    publish(world)
    assert scan(world.home, ANN).findings == ()
