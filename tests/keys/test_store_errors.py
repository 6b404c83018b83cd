"""Disks that are full, files that are damaged or locked, servers that take no writes: each by its name."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

import keys.sqlite
from infra.postgres import Postgres
from keys import (
    DatabaseDamaged,
    DatabaseFull,
    DatabaseUnavailable,
    Keyring,
    LeaseBook,
    PageStoreUnavailable,
    open_embedded,
)
from keys.postgresstore import PostgresPageStore
from keys.retry import repeatedly
from tests.keys.people import ANN, BOB, WORD, provision, seal, shred, unseal
from tests.keys.servers import schema_of


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of keys."""
    return tmp_path / "keys"


@pytest.fixture
def keyring(home: Path) -> Keyring:
    """An embedded keyring."""
    return open_embedded(home)


def test_a_full_disk_under_the_fence_log_fences_nobody_half(keyring: Keyring) -> None:
    """With room again the same call succeeds, and until then nothing was destroyed."""
    ref = provision(keyring).ref
    sealed = seal(keyring, ref)
    db = keyring.fences._db.connection()
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DatabaseFull, match=r"fences\.db has no room left") as raised:
        keyring.fence([(ANN, ref)] * 500, "r" * 4000)
    assert "room" in raised.value.next_step
    assert keyring.epoch() == 0
    assert unseal(keyring, ref, sealed) == WORD
    db.execute("PRAGMA max_page_count = 1000000")
    assert shred(keyring, ANN, ref) == 1


@pytest.mark.parametrize("name", ["fences.db", "pages.db", "leases.db"])
def test_a_file_that_is_no_database_is_named_and_is_no_erasure(
    keyring: Keyring, home: Path, name: str
) -> None:
    """Its first page was overwritten."""
    provision(keyring)
    keyring.close()
    (home / name).write_bytes(b"not a database at all " * 400)
    with pytest.raises(DatabaseDamaged, match=name) as raised:
        open_embedded(home)
    assert "backup" in raised.value.next_step


def test_a_malformed_page_in_the_middle_is_named_too(keyring: Keyring, home: Path) -> None:
    """Whoever reads it is told; the row that SQLite might quote is not in the text."""
    for n, who in enumerate((ANN, BOB)):
        shred(keyring, who, provision(keyring, who).ref)
        assert keyring.epoch() == n + 1
    keyring.close()
    with sqlite3.connect(home / "fences.db") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = db.execute("PRAGMA page_size").fetchone()
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'fences'").fetchone()
    with (home / "fences.db").open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
    with pytest.raises(DatabaseDamaged, match=r"fences\.db is malformed"):
        open_embedded(home).fences.all()


@pytest.mark.parametrize("write", [
    lambda keyring: keyring.mint(1),
    lambda keyring: keyring.fences.append([(b"s", b"r", "*", 1)], "r"),
    lambda keyring: keyring.leases.release("x"),
])  # fmt: skip
def test_a_file_that_stays_locked_is_unavailable(
    home: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Keyring], object]
) -> None:
    """Says which, and that a retry helps."""
    monkeypatch.setattr(keys.sqlite, "BUSY_TIMEOUT_SECONDS", 0.01)
    keyring = open_embedded(home)
    holders = [sqlite3.connect(home / f"{name}.db") for name in ("pages", "fences", "leases")]
    for holder in holders:
        holder.execute("BEGIN IMMEDIATE")
    with pytest.raises((PageStoreUnavailable, DatabaseUnavailable), match="SQLITE_BUSY") as raised:
        write(keyring)
    assert raised.value.retry_helps
    for holder in holders:
        holder.close()
    write(keyring)


def test_a_defect_of_ours_is_not_called_an_outage(tmp_path: Path) -> None:
    """A statement that is wrong stays an error of its own kind."""
    book = LeaseBook(tmp_path / "leases.db")
    with pytest.raises(sqlite3.ProgrammingError):
        book._db.read("SELECT ?", ())


def test_a_server_that_became_a_standby_is_unavailable_until_it_leads_again(
    postgres: Postgres, tmp_path: Path
) -> None:
    """Reads go on; connections of that time are not used again."""
    dsn, name = postgres.address()["POSTGRES_DSN"], schema_of(tmp_path)
    identifier = sql.Identifier(name)
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
        store = PostgresPageStore(psycopg.conninfo.make_conninfo(dsn, dbname=name), name)

        def turn(read_only: str) -> None:
            admin.execute(
                sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}").format(
                    identifier, sql.Literal(read_only)
                )
            )

        with store.transaction() as writer:
            writer.set_meta("a", "1")
        turn("on")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        assert store.meta("a") == "1"
        with pytest.raises(PageStoreUnavailable, match="takes no writes") as raised, store.transaction() as w:
            w.set_meta("a", "2")
        assert raised.value.retry_helps
        assert "primary" in raised.value.next_step
        turn("off")

        def write() -> None:
            with store.transaction() as writer:
                writer.set_meta("a", "3")

        repeatedly(write)  # a connection that was made meanwhile is read-only, and thrown away
        assert store.meta("a") == "3"
        store.close()
