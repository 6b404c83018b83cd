"""Handles that know their home page, and the index rows that are left beside them."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.postgres import Postgres
from keys import (
    KeyPlaces,
    Keyring,
    PageStoreError,
    Provisioned,
    SubjectId,
    embedded_places,
    open_embedded,
    open_keys,
    tree,
)
from keys.handles import Handles
from keys.postgresstore import PostgresPageStore
from tests.keys.people import ANN, BOB, WORD, provision, seal, shred, unseal
from tests.keys.servers import schema_of

KEY = bytes(range(32))


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    """One process's view of a fresh tree."""
    return open_embedded(tmp_path / "keys")


@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=20))
def test_a_handle_says_its_page_to_the_key_alone(pages: list[int]) -> None:
    """Whatever the page; distinct, and nothing of it shows without the key."""
    handles = Handles(KEY)
    made = [ref for page in pages for ref in handles.make(page, 3, os.urandom)]
    assert handles.homes(made) == [page for page in pages for _ in range(3)]
    assert len(set(made)) == len(made)
    assert not any(page == other for page, other in zip(pages, Handles(bytes(32)).homes(made), strict=False))


def test_handles_fall_evenly_on_buckets() -> None:
    """Views cut people by the first bits."""
    made = Handles(KEY).make(7, 16_384, os.urandom)
    counts = [sum(1 for ref in made if ref[0] >> 4 == bucket) for bucket in range(16)]
    assert 850 < min(counts) <= max(counts) < 1200  # 1,024 each, within 5 σ


def test_a_handle_of_nowhere_has_no_page(keyring: Keyring) -> None:
    """Somebody else's bytes; and the store is asked for no page that cannot be."""
    provision(keyring)
    assert keyring.tree.pages_of([os.urandom(16)]) == []
    assert keyring.ref_of(BOB) is None


def test_a_handle_made_by_another_process_is_found(keyring: Keyring, tmp_path: Path) -> None:
    """On a page that came after our first look."""
    provision(keyring)
    other = open_embedded(tmp_path / "keys")
    other.mint(tree.PAGE_RECORDS)
    late = provision(other, BOB).ref
    assert unseal(keyring, late, seal(other, late)) == WORD


def test_a_page_that_was_rolled_back_is_nowhere(keyring: Keyring) -> None:
    """What a failed transaction saw is forgotten."""
    keyring.mint(tree.PAGE_RECORDS)
    seen: list[bytes] = []

    def fail() -> None:
        with keyring._transaction() as writer:
            seen.extend(keyring.tree.create(writer, 1, [1]))
            assert keyring.tree.pages_of(seen) == [1]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert keyring.tree.pages_of(seen) == []


def test_two_processes_that_name_the_same_people_agree(
    keyring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second had looked before the first was done: it looks again, and makes the rest."""
    first = open_embedded(tmp_path / "keys")
    people = [SubjectId(f"p{n}") for n in range(50)]
    looked: list[list[Provisioned | Exception]] = []
    real = keyring._provisioning._provision_missing

    def late(*arguments: Any) -> Any:
        if not looked:
            looked.append(list(first.provision(people[:20])))
        return real(*arguments)

    monkeypatch.setattr(keyring._provisioning, "_provision_missing", late)
    made = keyring.provision(people)
    assert [one.ref for one in made[:20]] == [one.ref for one in looked[0]]  # type: ignore[union-attr]
    assert [one.created for one in made] == [False] * 20 + [True] * 30  # type: ignore[union-attr]
    assert keyring.check().problems == ()
    assert keyring.check().subjects == 50


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    """Its handles would be read wrongly."""
    open_embedded(tmp_path / "keys").close()
    with sqlite3.connect(tmp_path / "keys" / "pages.db") as db:
        db.execute("UPDATE meta SET value = '1' WHERE name = 'format'")
    with pytest.raises(PageStoreError, match="another version"):
        open_embedded(tmp_path / "keys")


def everything(keyring: Keyring) -> None:
    """Every hot path once: naming, finding, sealing, opening, withdrawing, erasing, closing."""
    people = [SubjectId(f"p{n}") for n in range(600)]
    made = [one for one in keyring.provision(people) if isinstance(one, Provisioned)]
    keyring.provision(people, "marketing")
    keyring.ref_of(people[0])
    keyring.resident.forget_all()
    for one in made[:3]:
        assert unseal(keyring, one.ref, seal(keyring, one.ref)) == WORD
    keyring.drop([keyring.mint(1)[0].ref])
    shred(keyring, people[1], made[1].ref, "marketing")
    shred(keyring, people[2], made[2].ref)
    keyring.close_epoch()
    assert provision(keyring, ANN).created


def test_no_hot_path_scans_a_table_of_sqlite(keyring: Keyring) -> None:
    """The plan of every statement that was run, on the key pages and on the fence log."""
    traced = [(keyring._store._db.connection(), list[str]()), (keyring.fences._db.connection(), list[str]())]  # type: ignore[attr-defined]
    for db, seen in traced:
        db.set_trace_callback(seen.append)
    everything(keyring)
    asked_before = len(traced[1][1])
    assert keyring.erased(SubjectId("p2")) is not None
    keyring.authorize_return(SubjectId("p2"))
    assert provision(keyring, SubjectId("p2")).generation == 2
    for db, _ in traced:
        db.set_trace_callback(None)
    assert [one for one in traced[1][1][asked_before:] if "epoch > 0" in one] == [], "the whole log was read"
    newest = "ORDER BY epoch DESC LIMIT 1"  # one row from the end, which the plan calls a scan
    plans = {
        step[3]
        for db, seen in traced
        for statement in dict.fromkeys(one for one in seen if one.startswith(("SELECT", "UPDATE", "DELETE")))
        if not statement.endswith(newest)
        for step in db.execute("EXPLAIN QUERY PLAN " + statement)
    }
    assert any("fences USING INDEX fence_once" in plan for plan in plans)
    assert any("SEARCH blind" in plan for plan in plans)
    whole = {plan for plan in plans if plan.startswith("SCAN") and "CONSTANT ROW" not in plan}
    # Small by nature: a thousand pages a million people, four node keys, one row per erasure, one name.
    assert whole <= {"SCAN pages", "SCAN nodes", "SCAN destroyed", "SCAN log"}


def test_no_hot_path_scans_a_table_of_postgresql(postgres: Postgres, tmp_path: Path) -> None:
    """The server's own counters, with the planner's small-table habit switched off."""
    dsn, schema = postgres.address()["POSTGRES_DSN"], schema_of(tmp_path)
    places = KeyPlaces(
        embedded_places(tmp_path / "keys").custodian,
        lambda: PostgresPageStore(f"{dsn}?application_name=plans", schema),
    )
    open_keys(places, tmp_path / "keys").close()  # making an index reads its table
    with psycopg.connect(dsn, autocommit=True) as db:
        before = _scans(db, schema)
        db.execute("ALTER ROLE CURRENT_USER SET enable_seqscan = off")
        try:
            keyring = open_keys(places, tmp_path / "keys")
            everything(keyring)
            keyring.close()  # a connection that ends says what it did
        finally:
            db.execute("ALTER ROLE CURRENT_USER RESET enable_seqscan")
        for after in polled(lambda: _scans(db, schema)):
            if after["blind"][1] > before["blind"][1] + 5:
                break
    assert after["blind"][1] > before["blind"][1] + 5
    for table in ("blind", "elsewhere"):
        assert after[table][0] == before[table][0], table


def _scans(db: psycopg.Connection[Any], schema: str) -> dict[str, tuple[int, int]]:
    rows = db.execute(
        "SELECT relname, seq_scan, COALESCE(idx_scan, 0) FROM pg_stat_user_tables WHERE schemaname = %s",
        (schema,),
    )
    return {name: (whole, by_index) for name, whole, by_index in rows}


def polled(look: Callable[[], dict[str, tuple[int, int]]]) -> Iterator[dict[str, tuple[int, int]]]:
    """Looks again for a while: the server counts with a delay."""
    for _ in range(100):
        yield look()
        time.sleep(0.1)
