"""A lake whose root is in Vault and whose key pages are in PostgreSQL, as its users see it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import tomli_w
from fastapi.testclient import TestClient
from psycopg.sql import SQL, Identifier
from typer.testing import CliRunner

from infra.postgres import Postgres
from infra.vault import Vault
from infra.vault.setup import set_up
from keys import KeysElsewhere, Shredded, SubjectId
from keys.errors import CustodianDenied, CustodianUnavailable, RootShared
from lake import EventRead, Needles
from lake import verify as verify_lake
from purge import payload_of, scan
from purge.verifier import Refused, verify
from service.agent import agent_folder, build_lease
from service.app import create_app
from service.cli import app
from service.doctor import examine, examine_home
from service.errors import BadSettings
from service.jobs import export_fence_copies
from service.keyplaces import key_places
from service.runtime import Runtime, initialise, open_runtime
from service.settings import load_settings
from tests.keys.people import provision, seal, shred
from tests.keys.servers import schema_of
from tests.keys.test_agent import ROOT, start_agent
from tests.world import PAID, VIEWS, compact_all, erase, paid, publish, send

ANN, BOB = "person-ann", "person-bob"


def settings(vault: Vault, postgres: Postgres, home: Path, role: str = "purge") -> dict[str, object]:
    """What an operator writes into shredlake.toml."""
    prefix, where = schema_of(home), vault.address()
    roles = vault.folder / prefix / "roles" / role
    set_up(vault.client(), vault.folder / prefix, prefix)
    return {
        "projections": {"files": [str(VIEWS)]},
        "keys": {
            "page_store": postgres.address()["POSTGRES_DSN"],
            "page_schema": schema_of(home),
            "vault": {
                "address": where["VAULT_ADDR"],
                "ca_file": where["VAULT_CACERT"],
                "prefix": prefix,
                "role_id_file": str(roles / "role_id"),
                "secret_id_file": str(roles / "secret_id"),
                "snapshot_horizon_days": 30,
            },
        },
    }


@pytest.fixture
def home(vault: Vault, postgres: Postgres, tmp_path: Path) -> Path:
    """A lake's folder with such settings."""
    home = tmp_path / "lake"
    home.mkdir()
    (home / "shredlake.toml").write_text(tomli_w.dumps(settings(vault, postgres, home)))
    initialise(home)
    return home


@pytest.fixture
def world(home: Path) -> Runtime:
    """Opened, with a type."""
    runtime = open_runtime(home)
    runtime.lake.types.register(PAID)
    return runtime


def named_in(postgres: Postgres, schema: str, said: str) -> set[str]:
    """Tables of the key pages whose rows name somebody, in any spelling that the scanner knows."""
    needles, found = Needles(SubjectId(said)), set[str]()
    with psycopg.connect(postgres.address()["POSTGRES_DSN"]) as db:
        sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = %s"
        tables = [row[0] for row in db.execute(sql, (schema,)).fetchall()]
        assert tables
        for table in tables:
            for row in db.execute(SQL("SELECT * FROM {}").format(Identifier(schema, table))):
                cells = [one if isinstance(one, bytes) else str(one).encode() for one in row]
                if any(needles.in_bytes(one) or needles.names(one) for one in cells):
                    found.add(table)
    return found


def test_no_row_of_the_key_pages_names_anybody(home: Path, world: Runtime, postgres: Postgres) -> None:
    """Why `erase scan` says so of pages on a server; a row that does is found the same way."""
    send(world, [paid(ANN, event_id="1"), paid(BOB, event_id="2")])
    world.purge.hold(SubjectId(BOB), "court")
    schema = world.settings.keys.page_schema
    assert named_in(postgres, schema, ANN) == named_in(postgres, schema, BOB) == set()
    erase(world, ANN)
    assert named_in(postgres, schema, ANN) == set()
    with psycopg.connect(postgres.address()["POSTGRES_DSN"]) as db:
        table = Identifier(schema, "planted")
        db.execute(SQL("CREATE TABLE {} (said bytea)").format(table))
        db.execute(SQL("INSERT INTO {} VALUES (%s)").format(table), (b"x" + ANN.encode(),))
    assert named_in(postgres, schema, ANN) == {"planted"}


def test_an_erasure_on_servers_is_one(home: Path, world: Runtime) -> None:
    """Events in, views out, a person gone from everything, and a receipt that names the horizon."""
    send(
        world,
        [paid(p, 100 * n, event_id=f"{p}{n}", note=f"secret of {p}") for p in (ANN, BOB) for n in (1, 2)],
    )
    compact_all(world)
    publish(world, *world.views.registry.names())
    receipt_id = erase(world, ANN)
    receipt = world.purge.journal.get(receipt_id).receipt
    assert receipt is not None
    level = payload_of(receipt)["predicate"]["level"]
    assert level["E2"]["due"] > level["E1"]["since"]
    assert "30 days" in level["E2"]["evidence"]
    replay = world.lake.replay()
    head = replay.resolve(None)
    assert head is not None
    frame = replay.events(replay.files(head.snapshot_id), EventRead("Paid", ("cents", "subject"))).frame
    assert sorted(frame["subject"].drop_nulls().unique()) == [BOB]
    places = key_places(home, world.settings.keys)
    gone = scan(home, SubjectId(ANN), places=places)
    assert gone.findings == ()
    assert gone.opened_values > 0
    assert scan(home, SubjectId(BOB), places=places).findings
    world.close()


def test_receipts_verify_across_a_rotation_of_the_signing_key(
    vault: Vault, home: Path, world: Runtime, tmp_path: Path
) -> None:
    """All keys are handed out, one a line; each receipt verifies with its own and with none else."""
    send(world, [paid(who, event_id=who) for who in (ANN, BOB)])
    runner, receipts, told = CliRunner(), [], []
    for who in (ANN, BOB):
        receipt = world.purge.journal.get(erase(world, who)).receipt
        assert receipt is not None
        receipts.append(receipt)
        told.append(runner.invoke(app, ["--home", str(home), "receipt", "key"]).stdout)
        vault.client().adapter.post(f"/v1/transit/keys/{schema_of(home)}-sign/rotate")
    with TestClient(create_app(world), headers={"Authorization": f"Bearer {world.token}"}) as client:
        everything = client.get("/v1/log/key").text
    assert len(everything.split()) == len(told[1].split()) + 1 == len(told[0].split()) + 2
    for receipt in receipts:
        verify(receipt, everything)
        name = tmp_path / "receipt.json"
        name.write_bytes(receipt)
        (tmp_path / "keys").write_text(everything)
        done = runner.invoke(app, ["receipt", "verify", str(name), "--key", str(tmp_path / "keys")])
        assert done.exit_code == 0, done.output
        good = [key for key in everything.split() if _verifies(receipt, key)]
        assert len(good) == 1
    verify(receipts[0], told[0])
    with pytest.raises(Refused, match="another key"):
        verify(receipts[1], told[0])
    world.close()


def _verifies(receipt: bytes, key: str) -> bool:
    try:
        verify(receipt, key)
    except Refused:
        return False
    return True


def test_what_waits_over_http_is_sealed_by_keys_of_the_servers(home: Path, world: Runtime) -> None:
    """And gone with them when the person is erased."""
    send(world, [paid(ANN, event_id="1")])
    events = [paid(ANN, event_id="2"), paid(BOB, event_id="3")]
    batch, _ = world.lake.intake.put(json.dumps(events).encode(), 2, "a key")
    assert world.lake.intake.put(json.dumps(events).encode(), 2, "a key") == (batch, False)
    places = key_places(home, world.settings.keys)
    assert scan(home, SubjectId(ANN), places=places).findings
    erase(world, ANN)
    assert scan(home, SubjectId(ANN), places=places).findings == ()
    outcome = world.lake.intake.get(batch.batch_id).outcome
    assert outcome is not None
    assert (outcome.accepted, outcome.suppressed) == (1, 1)
    world.close()


def test_the_folder_holds_neither_root_nor_pages(home: Path, world: Runtime) -> None:
    """They are on the servers; the leases are this host's own."""
    send(world, [paid("ann", event_id="1")])
    world.close()
    assert sorted(p.name for p in (home / "keys").iterdir() if "leases" not in p.name) == []


def test_a_second_host_sees_what_the_first_did(home: Path, world: Runtime, tmp_path: Path) -> None:
    """A process with the same settings, no cache."""
    send(world, [paid("ann", event_id="1"), paid("bob", event_id="2")])
    ref = world.keyring.ref_of(SubjectId("ann"))
    assert ref is not None
    with open_runtime(home) as other:
        assert other.keyring.ref_of(SubjectId("ann")) == ref
        erase(other, "ann")
    assert world.keyring.ref_of(SubjectId("ann")) is None
    world.keyring.catch_up()
    assert isinstance(world.keyring.resident.deks([ref], "service")[ref], Shredded)
    world.close()


def test_the_doctor_looks_at_the_real_root(vault: Vault, home: Path, world: Runtime) -> None:
    """As far as the log-in may: the purge role sees the key and not the audit devices."""
    found = {(f.check, f.level): f.text for f in examine(world)}
    assert "may not read sys/audit" in found["transit engine", "warning"]
    (server,) = [text for (check, _), text in found.items() if check == "transit server"]
    assert vault.client().adapter.get("/v1/sys/health")["version"] in server
    assert ("transit engine", "error") not in found
    assert not [f for f in examine(world) if f.level == "error"]
    world.close()


@pytest.mark.parametrize("forgotten", ["vault", "page_store", "page_schema"])
def test_settings_that_forget_a_server_make_no_second_keys(
    home: Path, world: Runtime, forgotten: str
) -> None:
    """As a shell does without the lake's environment: what it sealed, no erasure would reach."""
    send(world, [paid(ANN, event_id="a")])
    world.close()
    path = home / "shredlake.toml"
    whole = path.read_text()
    document = tomllib.loads(whole)
    for name in {"vault": ("vault", "page_store")}.get(forgotten, (forgotten,)):
        del document["keys"][name]
    path.write_text(tomli_w.dumps(document))
    expected = CustodianUnavailable if forgotten == "vault" else KeysElsewhere
    for _ in range(2):
        with pytest.raises(expected) as raised:
            open_runtime(home)
        assert f"keys.{forgotten}" in raised.value.next_step
    assert not (home / "keys" / "root.key").exists()
    path.write_text(whole)
    with open_runtime(home) as again:
        assert again.keyring.ref_of(SubjectId(ANN)) is not None


def test_passwords_are_not_shown(home: Path, world: Runtime, postgres: Postgres) -> None:
    """Neither by `config show` nor in a repr."""
    from service.settings import describe, load_settings

    shown = load_settings(home)
    assert postgres.address()["POSTGRES_DSN"] not in json.dumps(describe(shown)) + repr(shown)
    world.close()


def test_a_second_lake_does_not_join_the_first_one_s_keys(
    vault: Vault, postgres: Postgres, home: Path, world: Runtime, tmp_path: Path
) -> None:
    """Its own fence log would know nothing of the first one's erasures."""
    send(world, [paid("ann", event_id="1")])
    other = tmp_path / "other"
    other.mkdir()
    (other / "shredlake.toml").write_text((home / "shredlake.toml").read_text())
    with pytest.raises(BadSettings, match="another lake"):
        initialise(other)
    third = settings(vault, postgres, home)
    third["keys"]["page_schema"] = schema_of(tmp_path / "third")  # type: ignore[index]
    (other / "shredlake.toml").write_text(tomli_w.dumps(third))
    with pytest.raises(RootShared):
        initialise(other)
    world.close()


def log_in(vault: Vault, home: Path, role: str) -> dict[str, str]:
    """A role's AppRole, as settings say it."""
    folder = vault.folder / schema_of(home) / "roles" / role
    return {"role_id_file": str(folder / "role_id"), "secret_id_file": str(folder / "secret_id")}


def change(home: Path, copies: Sequence[Path] = (), **vault_settings: object) -> None:
    """Writes other log-ins and places of copies into the lake's settings."""
    path = home / "shredlake.toml"
    document = tomllib.loads(path.read_text())
    document["keys"]["vault"].update(vault_settings)
    document["keys"]["fence_copies"] = [str(one) for one in copies]
    path.write_text(tomli_w.dumps(document))


def ingested(home: Path, number: int, *options: str) -> int:
    """How many events the command ingests of one event's file."""
    path = home.parent / f"{number}.jsonl"
    path.write_text(json.dumps(paid("ann", number, event_id=f"e{number}")))
    return int(shredlake(home, "--output", "json", "ingest", str(path), *options)["events"])


def shredlake(home: Path, *arguments: str) -> Any:
    """What a command prints as JSON."""
    command = [sys.executable, "-c", "from service.cli import main; main()", "--home", str(home)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_agent_s_policy_is_enough_for_the_agent_and_for_ingest(
    vault: Vault, home: Path, world: Runtime
) -> None:
    """Where all else logs in as somebody who may do nothing at all. The gate's signed copy is read too."""
    send(world, [paid(BOB, event_id="b")])
    erase(world, BOB)
    world.close()
    copies = [home.parent / "fences.jsonl"]
    change(home, copies)
    with open_runtime(home) as runtime:
        export_fence_copies(runtime)
    change(home, copies, **log_in(vault, home, "console"), agent=log_in(vault, home, "agent"))
    with pytest.raises(CustodianDenied):
        open_runtime(home)
    assert ingested(home, 1) == 1
    agent = start_agent(home)
    try:
        assert ingested(home, 2, "--agent") == 1
    finally:
        agent.terminate()
        counts, _ = agent.communicate(timeout=30)
    assert "ingest: sealing items" in counts
    change(home, copies, **log_in(vault, home, "purge"))
    with open_runtime(home) as runtime:
        assert verify_lake(runtime.lake, deep=True).events == 3
        assert runtime.keyring.close_epoch().old_wrap_refused


class Worker:
    """A real process that builds by a lease alone; see `tests.keys.build_worker`."""

    def __init__(self, home: Path, lease: bytes) -> None:
        socket = agent_folder(home, load_settings(home).keys).socket("build")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.keys.build_worker", str(socket)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        self._say(lease.hex())

    def ask(self, ref: bytes, sealed: bytes) -> str:
        """What comes of opening something."""
        self._say(f"{ref.hex()} {sealed.hex()}")
        return self.answer()

    def stop_with_the_key_of(self, ref: bytes, sealed: bytes) -> None:
        """Returns once it stands still with the key in its hand."""
        self._say(f"{ref.hex()} {sealed.hex()} stop")
        _, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def answer(self) -> str:
        """What came of the opening that it was stopped in."""
        assert self.process.stdout is not None
        return str(self.process.stdout.readline()).strip()

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kills it after the block."""
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def test_a_build_worker_that_was_stopped_with_a_key_in_its_hand_refuses_when_it_wakes(
    vault: Vault, home: Path, world: Runtime
) -> None:
    """Agent and worker are processes of their own; the erasure waits for the worker's lease, no longer."""
    ann, bob = (provision(world.keyring, SubjectId(one)).ref for one in (ANN, BOB))
    anns, bobs = (seal(world.keyring, ref) for ref in (ann, bob))
    change(home, **log_in(vault, home, "purge"), agent=log_in(vault, home, "agent"))
    with ended(start_agent(home)):
        with build_lease(home) as lease, ended((worker := Worker(home, lease)).process):
            assert worker.ask(ann, anns) == "opened"
            worker.stop_with_the_key_of(ann, anns)
            epoch = shred(world.keyring, SubjectId(ANN), ann)
            assert world.keyring.wait_until_unreadable(epoch) > 0, "somebody held the key"
            worker.process.send_signal(signal.SIGCONT)
            assert worker.answer() == "LeaseExpired", "its key was good until the erasure was done"
            assert worker.ask(bob, bobs) == "LeaseExpired", "what it was given died with the epoch"
        with build_lease(home) as lease, ended((worker := Worker(home, lease)).process):
            assert worker.ask(ann, anns) == "shredded"
            assert worker.ask(bob, bobs) == "opened"
    world.close()


def test_the_doctor_looks_as_the_auditor_before_it_opens_anything(
    vault: Vault, home: Path, world: Runtime
) -> None:
    """Alone, it sees the keys and opens nothing; beside the purge role's log-in nothing stays unseen."""
    world.close()
    change(home, **log_in(vault, home, "auditor"))
    alone = {f.check: f for f in examine_home(home)}
    assert alone["transit engine"].level == "ok"
    assert alone["lake"].level == "warning"
    assert "restore gate" not in alone
    change(home, **log_in(vault, home, "purge"), auditor=log_in(vault, home, "auditor"))
    both = {f.check: f for f in examine_home(home)}
    assert both["transit engine"].level == both["restore gate"].level == "ok"
