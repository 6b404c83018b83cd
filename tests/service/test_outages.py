"""What is told while a server is away: which one, what to do, within seconds, and by readiness."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psycopg
import pytest
import tomli_w
from fastapi.testclient import TestClient

from infra.postgres import Postgres
from infra.s3 import BUCKET, S3
from infra.vault import Vault
from keys import CustodianUnavailable, PageStoreUnavailable, ShredlakeError
from keys.vaulterrors import error_of
from lake import StorageFailed, StorageUnavailable, StorageUnsuitable
from lake.objects import storage_failed
from service import firstlook
from service.agent import waiting_for_keys
from service.app import create_app
from service.firstlook import look_first
from service.kafka import waiting_text
from service.readiness import NotAnswering, Readiness
from service.runtime import Runtime, initialise, open_runtime, shredded_text
from service.settings import Settings
from tests.command import command
from tests.servers import running
from tests.service.test_servers import settings
from tests.world import PAID, VIEWS, erase, paid, publish, send

TOLD_SECONDS = 15  # 5 on an idle machine; a loaded one takes longer to look


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """One that a test may stop."""
    with running(Postgres, "postgres") as server:
        yield server


@pytest.fixture
def own_vault() -> Iterator[Vault]:
    """One that a test may stop."""
    with running(Vault, "vault") as server:
        yield server


@contextmanager
def told_soon() -> Iterator[None]:
    """Nobody waits for what is away as long as its client would."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < TOLD_SECONDS


def test_servers_that_are_away_are_named_by_readiness_and_hold_nobody(
    own_vault: Vault, own_postgres: Postgres, tmp_path: Path
) -> None:
    """PostgreSQL and Vault, each stopped: 503 with a sentence of its own; local answers go on; then 200 again."""
    home = tmp_path / "lake"
    home.mkdir()
    (home / "shredlake.toml").write_text(tomli_w.dumps(settings(own_vault, own_postgres, home)))
    initialise(home)
    runtime = open_runtime(home)
    runtime.lake.types.register(PAID)
    send(runtime, [paid("ann", event_id="1")])
    publish(runtime)
    dsn = own_postgres.address()["POSTGRES_DSN"]
    headers = {"Authorization": f"Bearer {runtime.token}"}
    with TestClient(create_app(runtime), headers=headers) as client:
        assert client.get("/v1/health/ready").status_code == 200
        own_postgres.stop()
        time.sleep(1.1)  # a look at the gate is good for a second
        with told_soon():
            answer = client.get("/v1/health/ready")
        assert answer.status_code == 503
        assert "key pages" in str(answer.json()["needs"])
        with told_soon():
            assert client.get("/v1/views/cents_per_day").status_code == 503
        listed = command(home, "erase", "list")
        assert (listed.returncode, "erasure requests: none" in listed.stderr) == (0, True)
        own_postgres.start()
        _until_ready(client)
        own_vault.stop()
        with told_soon():
            answer = client.get("/v1/health/ready")
        assert answer.status_code == 503
        assert "custodian" in str(answer.json()["needs"])
        for text in (answer.text, listed.stderr):
            assert dsn not in text
            assert own_vault.address()["VAULT_ADDR"] not in text
    runtime.close()


def _until_ready(client: TestClient) -> None:
    until = time.monotonic() + 60
    while client.get("/v1/health/ready").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_page_store_without_connections_left_is_told_from_one_that_is_away(
    own_postgres: Postgres,
) -> None:
    """The first answers: the next step is its limit, not its address."""
    from keys.postgresstore import PostgresPageStore, _no_connection

    dsn = own_postgres.address()["POSTGRES_DSN"]
    store = PostgresPageStore(dsn, "outage")
    held = []
    try:
        while len(held) < 500:
            held.append(psycopg.connect(dsn, connect_timeout=5))
    except psycopg.OperationalError as error:
        found = _no_connection(error)
        assert "no connection left" in found.message
        assert "max_connections" in found.next_step
    assert len(held) < 500
    for one in held:
        one.close()
    own_postgres.stop()
    messages = []
    with told_soon():
        for _ in range(2):  # the first finds the connection that it had lost
            with pytest.raises(PageStoreUnavailable) as gone, store._connection() as db:
                db.execute("SELECT 1")
            messages.append(gone.value.message)
    assert "cannot be reached" in messages[-1]
    store.close()


# -- without a server ------------------------------------------------------------------------------


def test_a_need_that_hangs_is_told_in_time_and_asked_once() -> None:
    """However often it is asked meanwhile."""
    asked = []

    def hangs() -> None:
        asked.append(1)
        time.sleep(1)

    probe = Readiness({"the store": hangs, "the catalog": lambda: None}, 0.05)
    for _ in range(3):
        found = probe.failures()
        assert list(found) == ["the store"]
        assert isinstance(found["the store"], NotAnswering)
    assert asked == [1]


def _hanging() -> Iterator[int]:
    """A port that takes connections and never says a word: a process that was stopped, a host half gone."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield listener.getsockname()[1]


hanging = pytest.fixture(_hanging)


@pytest.mark.parametrize(
    ("who", "section"),
    [
        ("the page store", {"keys": {"page_store": "postgresql://u:secret@127.0.0.1:PORT/d"}}),
        ("the custodian", {"keys": {"vault": {"address": "http://127.0.0.1:PORT"}}}),
        ("the catalog", {"lake": {"uri": "postgresql://u:secret@127.0.0.1:PORT/d"}}),
        ("the catalog", {"lake": {"catalog": "rest", "uri": "http://127.0.0.1:PORT"}}),
        (
            "the object store",
            {"lake": {"warehouse": "s3://b/p", "properties": {"s3.endpoint": "http://127.0.0.1:PORT"}}},
        ),
    ],
)
def test_a_server_that_takes_connections_and_says_nothing_is_named_by_every_command_within_seconds(
    hanging: int, tmp_path: Path, who: str, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client's own patience is waited for; its address and log-in stay unsaid."""
    assert firstlook.FIRST_LOOK_SECONDS <= 3
    monkeypatch.setattr(firstlook, "FIRST_LOOK_SECONDS", 0.4)
    home = tmp_path / "lake"
    home.mkdir()
    (home / "token").write_text("t")
    (home / "shredlake.toml").write_text(tomli_w.dumps(section).replace("PORT", str(hanging)))
    for name in (["doctor"], ["lake", "snapshots"], ["ingest", "file", __file__]):
        with told_soon():
            done = command(home, *name)
        assert done.returncode == 1
        assert f"{who} has not answered within 0.4 s" in done.stderr
        assert "Check its address and health" in done.stderr
        assert "secret" not in done.stderr
        assert str(hanging) not in done.stderr


def test_a_server_that_refuses_or_is_gone_is_left_to_its_own_client() -> None:
    """Whose words tell a log-in from an address: the first look is over at once, and says nothing."""
    gone = "http://127.0.0.1:1"
    look_first(
        Settings.model_validate(
            {
                "keys": {"page_store": "postgresql://u@127.0.0.1:1/d", "vault": {"address": gone}},
                "lake": {"catalog": "rest", "uri": gone, "properties": {"s3.endpoint": gone}},
            }
        )
    )


def test_what_a_need_raises_is_its_reason_and_a_foreign_text_is_not() -> None:
    """An address with its password stands in the client's own words."""

    def foreign() -> None:
        raise RuntimeError("cannot connect to postgres://bob:secret@db")

    def ours() -> None:
        raise CustodianUnavailable("the custodian cannot be reached")

    found = Readiness({"a": foreign, "b": ours}).failures()
    assert "secret" not in found["a"].message
    assert found["b"].message == "the custodian cannot be reached"


def test_an_agent_that_starts_during_an_outage_waits_and_says_for_what() -> None:
    """Once for each reason; what no waiting helps against ends it."""
    reasons: list[ShredlakeError] = [CustodianUnavailable("away"), CustodianUnavailable("away")]
    told: list[str] = []

    def open_keys() -> Any:
        if reasons:
            raise reasons.pop()
        return nullcontext("keys")

    with waiting_for_keys(open_keys, told.append, lambda _: None) as keys:
        assert str(keys) == "keys"
    assert [one.split(":")[0] for one in told] == ["the key agent waits", "the key agent goes on"]
    reasons.append(StorageUnsuitable("never"))
    with pytest.raises(StorageUnsuitable), waiting_for_keys(open_keys, told.append):
        pass


def test_an_object_store_that_is_away_is_not_a_full_disk() -> None:
    """Its errors have no number; each of a disk's has a next step of its own."""
    away = storage_failed(
        OSError("AWS Error NETWORK_CONNECTION during HeadObject: curl http://10.0.0.1:9000")
    )
    assert isinstance(away, StorageUnavailable)
    assert "Free space" not in away.next_step
    assert "10.0.0.1" not in away.message
    steps = {storage_failed(OSError(number, "text", "/lake/x")).next_step for number in (28, 30, 13, 122)}
    assert len(steps) == 4


def test_consumers_that_wait_are_told_in_a_sentence_off_a_terminal_too() -> None:
    """By the name of the error: what it means and what to do."""
    text = waiting_text("CatalogUnavailable")
    assert "The catalog does not answer" in text
    assert "Check the catalog's address" in text


def test_a_raised_minimum_of_the_transit_key_is_named() -> None:
    """It is no outage, and nothing of an erasure."""
    found = error_of(400, ["no such key version"])
    assert isinstance(found, CustodianUnavailable)
    assert "min_decryption_version" in found.message
    assert "min_decryption_version" in found.next_step
    assert "10.0.0.1" not in error_of(400, ["dial tcp 10.0.0.1:5432: refused"]).message


def test_a_receipt_is_not_named_as_if_it_were_there_before_it_is(world: Runtime) -> None:
    """The key is gone at once, the receipt comes at the end."""
    from keys import SubjectId

    send(world, [paid("ann", event_id="1"), paid("bob", event_id="2")])
    submitted = world.purge.submit(SubjectId("ann")).request.request_id
    assert "not issued yet" in shredded_text(world.purge.journal, submitted)
    done = erase(world, "bob")
    assert shredded_text(world.purge.journal, done) == f"shredded, receipt {done}"


def test_a_lake_at_another_path_is_refused_by_every_command_and_works_again_by_its_old_path(
    world: Runtime,
) -> None:
    """Not as two lakes that share a catalog; nothing is written meanwhile."""
    send(world, [paid("ann", event_id="1")])
    publish(world)
    home = world.home
    world.close()
    moved = home.rename(home.with_name("elsewhere"))
    before = _tables(moved)
    for words in (
        ("lake", "snapshots"),
        ("lake", "verify"),
        ("ingest", "intake"),
        ("views", "publish", "cents_per_day"),
        ("erase", "plan", "ann"),
        ("erase", "apply", "ann", "--yes"),
        ("doctor",),
    ):
        done = command(moved, *words)
        assert done.returncode == 1
        assert "does not move" in done.stderr
        assert "Put the folder back" in done.stderr
    assert _tables(moved) == before
    assert not home.exists()
    moved.rename(home)
    assert command(home, "lake", "verify", "--deep").returncode == 0
    assert command(home, "erase", "apply", "ann", "--yes").returncode == 0


def _tables(home: Path) -> dict[str, int]:
    return {
        str(one.relative_to(home)): one.stat().st_size for one in (home / "lake" / "warehouse").rglob("*")
    }


def test_an_older_warehouse_beside_a_newer_catalog_says_which_store_to_bring(world: Runtime) -> None:
    """The lake's folders alone came back from a backup."""
    send(world, [paid("ann", event_id="1")])
    older = world.home.with_name("older")
    shutil.copytree(world.home / "lake" / "warehouse", older)
    send(world, [paid("ann", event_id="2")])
    newer = (world.home / "lake" / "warehouse").rename(world.home.with_name("newer"))
    older.rename(world.home / "lake" / "warehouse")
    done = command(world.home, "lake", "snapshots")
    shutil.rmtree(world.home / "lake" / "warehouse")
    newer.rename(world.home / "lake" / "warehouse")
    assert done.returncode == 1
    assert "not of one moment" in done.stderr
    assert "from the same backup" in done.stderr


def test_an_object_store_that_is_stopped_is_named_by_readiness_and_by_a_read(tmp_path: Path) -> None:
    """Not as a full disk, and without its address."""
    with running(S3, "s3") as server:
        where = server.address()
        home = tmp_path / "lake"
        home.mkdir()
        properties = {
            "s3.endpoint": where["S3_ENDPOINT"],
            "s3.access-key-id": where["AWS_ACCESS_KEY_ID"],
            "s3.secret-access-key": where["AWS_SECRET_ACCESS_KEY"],
            "s3.region": where["AWS_REGION"],
        }
        lake = {"warehouse": f"s3://{BUCKET}/outage", "properties": properties}
        written = {"lake": lake, "projections": {"files": [str(VIEWS)]}}
        (home / "shredlake.toml").write_text(tomli_w.dumps(written))
        initialise(home)
        runtime = open_runtime(home)
        runtime.lake.types.register(PAID)
        send(runtime, [paid("ann", event_id="1")])
        with TestClient(create_app(runtime)) as client:
            assert client.get("/v1/health/ready").status_code == 200
            server.stop()
            with told_soon():
                answer = client.get("/v1/health/ready")
        assert (answer.status_code, list(answer.json()["needs"])) == (503, ["the store"])
        with pytest.raises(StorageFailed) as failed:
            runtime.lake.events.files()
        assert isinstance(failed.value, StorageUnavailable)
        assert "Free space" not in failed.value.next_step
        assert where["S3_ENDPOINT"] not in answer.text + failed.value.message
        runtime.close()
