"""Every adapter of the two ports passes its contract."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from infra.postgres import Postgres
from infra.vault import Vault
from infra.vault.setup import make_keys
from keys import CustodianUnavailable, EmbeddedCustodian, SqlitePageStore
from keys.custodian import Custodian
from keys.pagestore import BlindRow, PageStore
from keys.postgresstore import PostgresPageStore
from keys.testing import CustodianContract, PageStoreContract
from keys.transit import TransitCustodian
from tests.keys.servers import admin_session, schema_of


class TestEmbeddedCustodian(CustodianContract):
    """A root key file."""

    def make(self, folder: Path) -> Custodian:
        return EmbeddedCustodian.create(folder / "root.key")

    def test_the_file_is_for_its_owner_only(self, tmp_path: Path) -> None:
        """Also after it was rewritten."""
        custodian = self.make(tmp_path)
        custodian.rotate()
        assert (tmp_path / "root.key").stat().st_mode & 0o777 == 0o600

    def test_a_retired_version_is_in_no_file_of_the_folder(self, tmp_path: Path) -> None:
        """Neither in the root file nor in one left over."""
        import json

        custodian = self.make(tmp_path)
        old = json.loads((tmp_path / "root.key").read_text())["versions"]["1"].encode()
        custodian.retire(custodian.rotate())
        assert all(old not in path.read_bytes() for path in tmp_path.iterdir())

    def test_the_overwrite_of_a_killed_process_is_finished_at_start(self, tmp_path: Path) -> None:
        """What it left behind is gone once anybody opens the root."""
        self.make(tmp_path)
        (tmp_path / "root.key.retired").write_bytes(b"an old root")
        self.make(tmp_path)
        assert not (tmp_path / "root.key.retired").exists()

    def test_a_second_name_of_the_living_root_is_not_overwritten(self, tmp_path: Path) -> None:
        """What a process leaves that is killed before the new root took the old one's place."""
        import os

        custodian = self.make(tmp_path)
        (wrapped,) = custodian.wrap([(b"c", b"k" * 32)])
        os.link(tmp_path / "root.key", tmp_path / "root.key.retired")
        assert self.make(tmp_path).unwrap([(b"c", wrapped)]) == [b"k" * 32]
        assert not (tmp_path / "root.key.retired").exists()

    @pytest.mark.parametrize("content", [None, b"", b'{"format": 1', b"[]", b'{"format": 1}'])
    def test_an_absent_or_damaged_root_is_unavailable(self, tmp_path: Path, content: bytes | None) -> None:
        """Out of reach, which says nothing about any key."""
        if content is not None:
            (tmp_path / "root.key").write_bytes(content)
        with pytest.raises(CustodianUnavailable):
            EmbeddedCustodian(tmp_path / "root.key")

    def test_another_process_s_rotation_is_seen(self, tmp_path: Path) -> None:
        """Without opening anew."""
        one, other = self.make(tmp_path), self.make(tmp_path)
        other.rotate()
        (wrapped,) = other.wrap([(b"c", b"k" * 32)])
        assert one.unwrap([(b"c", wrapped)]) == [b"k" * 32]


class TestSqlitePageStore(PageStoreContract):
    """One SQLite file."""

    def make(self, folder: Path) -> PageStore:
        return SqlitePageStore(folder / "pages.db")

    def test_deleted_bytes_are_overwritten(self, tmp_path: Path) -> None:
        """secure_delete, and the write-ahead log emptied."""
        store = self.make(tmp_path)
        ref = b"\xaaTHE-HANDLE-16\xbb"
        with store.transaction() as writer:
            writer.add_elsewhere([(ref, 0)])
        with store.transaction() as writer:
            writer.drop_elsewhere([(ref, 0)])
        assert store.flush_deleted()
        assert all(ref not in path.read_bytes() for path in tmp_path.iterdir())

    def test_deleted_index_rows_are_overwritten(self, tmp_path: Path) -> None:
        """In the table and in both of its indexes, of several pages of people."""
        store = self.make(tmp_path)
        rows = [BlindRow(b"the-name-%07d" % n, n // 20, b"the-handle-%05d" % n) for n in range(60)]
        with store.transaction() as writer:
            assert writer.add_blind(rows) == len(rows)
        with store.transaction() as writer:
            writer.drop_blind((row.page_id, row.name) for row in rows if row.page_id != 1)
        assert store.flush_deleted()
        found = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        for row in rows:
            assert (row.blind in found, row.name in found) == (row.page_id == 1, row.page_id == 1)


class TestOlderSqlitePageStore(PageStoreContract):
    """A file whose index rows are ordered by name, as they were once."""

    def make(self, folder: Path) -> PageStore:
        with sqlite3.connect(folder / "pages.db") as db:
            db.executescript(
                "CREATE TABLE IF NOT EXISTS blind (blind BLOB PRIMARY KEY, page_id INTEGER NOT NULL,"
                " name BLOB NOT NULL) WITHOUT ROWID;"
                "CREATE INDEX IF NOT EXISTS blind_by_page ON blind (page_id, name)"
            )
        db.close()
        return SqlitePageStore(folder / "pages.db")


class TestPostgresPageStore(PageStoreContract):
    """A schema of a real server."""

    @pytest.fixture(autouse=True)
    def _server(self, postgres: Postgres) -> None:
        self.dsn = postgres.address()["POSTGRES_DSN"]

    def make(self, folder: Path) -> PageStore:
        return PostgresPageStore(self.dsn, schema_of(folder))


class TestTransitCustodian(CustodianContract):
    """A real Vault or OpenBao; each folder stands for a root of its own."""

    @pytest.fixture(autouse=True)
    def _server(self, vault: Vault) -> None:
        self.vault = vault

    def make(self, folder: Path) -> Custodian:
        prefix = schema_of(folder)
        make_keys(self.vault.client(), prefix)
        return TransitCustodian(admin_session(self.vault), prefix=prefix)
