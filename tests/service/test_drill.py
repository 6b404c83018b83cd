"""Backup drills: who can be read when yesterday's backups are brought back, and what they must not touch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from infra.postgres import Postgres
from infra.vault import Vault
from keys import (
    Custodian,
    CustodianUnavailable,
    DrillReport,
    DrillSite,
    EmbeddedCustodian,
    Keyring,
    RootKeyRetired,
    SqlitePageStore,
    run_drill,
)
from keys.drill import BEFORE, NEW_PAGES, OLD_PAGES, OLD_ROOT, TODAY
from keys.errors import CustodianError, CustodianSealed, SandboxNotEmpty
from keys.transit import TransitCustodian
from keys.vaultsession import VaultServer
from keys.vaultsnapshot import Administered, SnapshotRestore, raft_backup, refuse_used
from purge import payload_of
from service.drill import DrilledLake, drill_site
from service.errors import DrillInvalid, DrillRunning
from service.keyplaces import vault_session
from service.runtime import Runtime, open_runtime
from service.settings import load_settings
from tests.keys.servers import schema_of, server_of
from tests.service.test_servers import home, world
from tests.world import erase, paid, send

__all__ = ["home", "world"]


def drill(home: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The command on a lake, with its temporary files in a folder of its own."""
    folder.mkdir()
    command = [sys.executable, "-c", "from service.cli import main; main()", "--home", str(home)]
    return subprocess.run(
        [*command, "--output", "json", "keys", "drill", *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": str(folder)},
    )


def restore_into(vault: Vault, empty: Vault, folder: Path) -> list[str]:
    """What an administrator gives the command so that it may try the server's snapshot."""
    secrets = {
        "snapshot-token-file": str(vault.client().token),
        "restore-token-file": str(empty.client().token),
        "unseal-keys-file": "\n".join(vault.unseal_keys()),
    }
    options = ["--restore-address", empty.address()["VAULT_ADDR"]]
    options += ["--restore-ca-file", empty.address()["VAULT_CACERT"]]
    for name, secret in secrets.items():
        (folder / name).write_text(secret)
        options += [f"--{name}", str(folder / name)]
    return options


def state_of(runtime: Runtime, vault: Vault, postgres: Postgres, home: Path) -> dict[str, Any]:
    """What a drill must leave as it is: the lake's root, key pages, events, and the database's schemas."""
    key = vault.client().adapter.get(f"/v1/transit/keys/{schema_of(home)}-root")["data"]
    head = runtime.lake.events.metadata().current_snapshot()
    size = runtime.keyring.tree.store.size()
    with psycopg.connect(postgres.address()["POSTGRES_DSN"]) as db:
        schemas = db.execute("SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg_%'").fetchall()
    return {
        "root": (key["latest_version"], key["min_available_version"]),
        "pages": (size.pages, size.records, size.names),
        "meta": runtime.keyring.tree.store.all_meta(),
        "head": head.snapshot_id if head else None,
        "fences": runtime.keyring.epoch(),
        "schemas": sorted(name for (name,) in schemas),
    }


def test_a_drill_on_servers_shows_what_backups_and_a_snapshot_bring_back(
    vault: Vault, postgres: Postgres, empty_vault: Vault, home: Path, world: Runtime, tmp_path: Path
) -> None:
    """10,000 people, 1,000 erased, in the configured page store; the lake itself stays as it is."""
    send(world, [paid("person-ann", event_id="1"), paid("person-bob", event_id="2")])
    receipt = world.purge.journal.get(erase(world, "person-bob")).receipt
    assert receipt is not None
    before = state_of(world, vault, postgres, home)
    done = drill(home, tmp_path / "scratch", *restore_into(vault, empty_vault, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "1,000 people erased" in done.stderr
    found = json.loads(done.stdout)
    assert (found["people"], found["erased"], found["sampled"]) == (10_000, 1000, 1000)
    assert {one["what"]: (one["erased_opened"], one["others_opened"]) for one in found["attempts"]} == {
        BEFORE: (1000, 1000),
        TODAY: (0, 1000),
        OLD_PAGES: (0, 0),
        NEW_PAGES: (0, 1000),
        OLD_ROOT: (1000, 1000),
    }
    assert found["passed"]
    assert found["old_wrap_refused"]
    level = payload_of(receipt)["predicate"]["level"]
    horizon = datetime.fromisoformat(level["E2"]["due"]) - datetime.fromisoformat(level["E1"]["since"])
    ahead = datetime.fromisoformat(found["backups_gone_at"]) - datetime.now(UTC)
    assert horizon - timedelta(minutes=10) < ahead <= horizon == timedelta(days=30)
    assert state_of(world, vault, postgres, home) == before
    assert list((tmp_path / "scratch").iterdir()) == []
    world.close()
    with open_runtime(home) as again:
        assert again.keyring.close_epoch().old_wrap_refused


def test_a_snapshot_is_never_forced_onto_a_server_that_somebody_uses(
    vault: Vault, home: Path, world: Runtime, tmp_path: Path
) -> None:
    """The lake's own least of all: nothing is restored, and the epochs closed since stay closed."""
    world.close()
    versions = vault.client().adapter.get(f"/v1/transit/keys/{schema_of(home)}-root")["data"]["keys"]
    done = drill(
        home, tmp_path / "scratch", "--people", "20", "--erase", "2", *restore_into(vault, vault, tmp_path)
    )
    assert done.returncode == 1
    assert "the lake's own" in done.stderr
    left = vault.client().adapter.get(f"/v1/transit/keys/{schema_of(home)}-root")["data"]["keys"]
    assert left == versions
    refuse_used(("a", frozenset({"transit"})), ("b", frozenset({"system", "identity", "cubbyhole"})))
    with pytest.raises(SandboxNotEmpty, match="which cluster"):
        refuse_used(("a", frozenset()), ("", frozenset()))
    with pytest.raises(SandboxNotEmpty, match="kv"):
        refuse_used(("a", frozenset()), ("b", frozenset({"system", "kv"})))


def test_a_restored_server_can_be_unsealed_by_hand(
    vault: Vault, empty_vault: Vault, home: Path, world: Runtime, tmp_path: Path
) -> None:
    """Somebody is told to; where nobody does in time, the error says what to do, and our log-in works later."""
    world.close()
    settings = load_settings(home).keys.vault
    assert settings is not None

    def custodian(server: VaultServer) -> TransitCustodian:
        there = settings.model_copy(update={"address": server.address, "ca_file": server.ca_file})
        return TransitCustodian(vault_session(there), prefix=settings.prefix)

    own, other = server_of(vault), server_of(empty_vault)
    plan = SnapshotRestore(
        Administered(own, str(vault.client().token)),
        Administered(other, str(empty_vault.client().token)),
        wait_seconds=2,
    )
    told: list[str] = []
    restore = raft_backup(plan, custodian, tmp_path / "snapshot", told.append)
    with pytest.raises(CustodianSealed) as raised:
        restore()
    assert "unseal" in raised.value.next_step
    assert other.address in told[0]
    empty_vault.client().sys.submit_unseal_key(vault.unseal_keys()[0])
    empty_vault.process.wait_until(lambda: _answers(custodian(other)))
    assert custodian(other).root_id() == custodian(own).root_id()


def _answers(custodian: TransitCustodian) -> bool:
    try:
        return bool(custodian.root_id())
    except CustodianError:
        return False


def test_what_a_killed_drill_left_is_removed_by_the_next(
    postgres: Postgres, home: Path, world: Runtime, tmp_path: Path
) -> None:
    """Its schemas, which are always the same ones of a lake, and its folder; and only one runs at a time."""
    world.close()
    (tmp_path / "scratch").mkdir()
    command = [sys.executable, "-c", "from service.cli import main; main()", "--home", str(home)]
    killed = subprocess.Popen(
        [*command, "keys", "drill", "--people", "100000", "--erase", "1000"],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(tmp_path / "scratch")},
    )
    try:
        while not drill_schemas(postgres):
            assert killed.poll() is None, "it was over before it could be killed"
            time.sleep(0.02)
        settings = load_settings(home).keys
        with pytest.raises(DrillRunning), drill_site(home, settings, None, print):
            pass
    finally:
        killed.kill()
        killed.wait()
    assert drill_schemas(postgres)
    assert list((tmp_path / "scratch").glob("shredlake-drill-*"))
    done = drill(home, tmp_path / "next", "--people", "20", "--erase", "2")
    assert done.returncode == 0, done.stderr
    assert drill_schemas(postgres) == []
    assert not list(tmp_path.glob("*/shredlake-drill-*"))


def drill_schemas(postgres: Postgres) -> list[str]:
    """Schemas of drills that are in the database."""
    with psycopg.connect(postgres.address()["POSTGRES_DSN"]) as db:
        found = db.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'drill%'").fetchall()
    return [str(name) for (name,) in found]


def embedded_site(folder: Path) -> tuple[DrillSite, Path]:
    """A root file that can be copied, and SQLite."""
    return DrillSite(lambda: EmbeddedCustodian.create(folder / "root.key"), _stores(folder)), folder


def _stores(folder: Path) -> Callable[[str], SqlitePageStore]:
    return lambda name: SqlitePageStore(folder / f"{name}.db")


def small(site: DrillSite, folder: Path, data: DrilledLake | None = None) -> DrillReport:
    """A drill of 50 people."""
    return run_drill(site, data or DrilledLake(folder / "lake"), folder, people=50, erase=5)


def test_a_root_that_retires_nothing_fails_the_drill(tmp_path: Path) -> None:
    """From yesterday's pages everybody can be read, and the report says so."""

    class Keeps(EmbeddedCustodian):
        def retire(self, below: int) -> None:
            pass

    EmbeddedCustodian.create(tmp_path / "root.key")
    found = small(DrillSite(lambda: Keeps(tmp_path / "root.key"), _stores(tmp_path)), tmp_path)
    old = found.attempt(OLD_PAGES)
    assert old is not None
    assert (old.erased_opened, old.others_opened, old.as_promised) == (5, 45, False)
    assert not found.old_wrap_refused
    assert not found.passed


def test_a_single_old_node_that_still_opens_fails_the_drill(tmp_path: Path) -> None:
    """Although the index of the old pages is refused: whoever has a node reads every page under it."""

    class RefusesTheIndex(EmbeddedCustodian):
        closed = False

        def retire(self, below: int) -> None:
            self.closed = True

        def unwrap(self, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
            (version,) = {int.from_bytes(wrapped[11:15], "big") for _, wrapped in items}
            if self.closed and version < self.status().latest_version and b"|-1" in items[0][0]:
                raise RootKeyRetired("retired")
            return super().unwrap(items)

    EmbeddedCustodian.create(tmp_path / "root.key")
    root = RefusesTheIndex(tmp_path / "root.key")
    found = small(DrillSite(lambda: root, _stores(tmp_path)), tmp_path)
    assert [one.what for one in found.attempts if not one.as_promised] == [OLD_PAGES]


def test_a_backup_that_does_not_open_with_its_own_root_fails_the_drill(tmp_path: Path) -> None:
    """A zero would mean nothing then."""

    def of_today() -> Callable[[], Custodian]:
        return lambda: EmbeddedCustodian(tmp_path / "root.key")

    site = DrillSite(lambda: EmbeddedCustodian.create(tmp_path / "root.key"), _stores(tmp_path), of_today)
    found = small(site, tmp_path)
    assert [one.what for one in found.attempts if not one.as_promised] == [OLD_ROOT]
    assert not found.passed


def test_a_backup_of_the_lake_without_somebody_s_events_is_an_error(tmp_path: Path) -> None:
    """Who is not in it cannot be read, whatever became of the keys."""

    class Forgets(DrilledLake):
        def write(self, keyring: Keyring, subjects: Sequence[Any], progress: Any) -> list[bytes]:
            super().write(keyring, subjects[1:], progress)
            return [made.ref for made in keyring.provision(subjects)]  # type: ignore[union-attr]

    site, folder = embedded_site(tmp_path)
    with pytest.raises(DrillInvalid, match="of 49 of 50 people"):
        small(site, folder, Forgets(folder / "lake"))


def test_an_outage_in_a_drill_is_an_error_and_not_a_refusal(tmp_path: Path) -> None:
    """It would prove nothing."""

    class Away(EmbeddedCustodian):
        gone = False

        def retire(self, below: int) -> None:
            self.gone = True  # out of reach from here on, and nothing was retired

        def unwrap(self, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
            if self.gone:
                raise CustodianUnavailable("away")
            return super().unwrap(items)

    EmbeddedCustodian.create(tmp_path / "root.key")
    custodian = Away(tmp_path / "root.key")
    with pytest.raises(CustodianUnavailable):
        small(DrillSite(lambda: custodian, _stores(tmp_path)), tmp_path)
