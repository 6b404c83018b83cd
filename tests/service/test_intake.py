"""Events over HTTP: durable before they are answered, committed once, whatever dies when."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from keys import SubjectId
from lake import EventRead, dead_letters, verify
from purge import scan
from purge.containers import opened_database
from purge.sealedvalues import LivingKeys, OpenedValues, SealedFiles
from service.app import create_app
from service.batches import LONGEST_WAIT_SECONDS, wait_of
from service.doctor import examine
from service.runtime import Runtime, open_runtime
from tests.world import VIEWS, make_world, paid, send

ANN = "customer-ann-0001"
WAIT = {"Prefer": "wait=30"}


def configure(home: Path, **ingest: object) -> None:
    """Writes [ingest] into a lake's settings."""
    lines = [f"{name} = {value}" for name, value in ingest.items()]
    text = f'[projections]\nfiles = ["{VIEWS}"]\n[ingest]\n' + "\n".join(lines) + "\n"
    (home / "shredlake.toml").write_text(text)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A lake's folder with the type `Paid`; commits are soon due."""
    make_world(tmp_path / "lake").close()
    configure(tmp_path / "lake", commit_seconds=0.2)
    return tmp_path / "lake"


@contextmanager
def client_of(runtime: Runtime) -> Iterator[TestClient]:
    """A client of a server in this process."""
    headers = {"Authorization": f"Bearer {runtime.token}"}
    with TestClient(create_app(runtime), headers=headers, raise_server_exceptions=False) as found:
        yield found


class Server:
    """`shredlake serve` in a process of its own."""

    def __init__(self, home: Path) -> None:
        command = [sys.executable, "-c", "from service.cli import main; main()", "--home", str(home)]
        self.process = subprocess.Popen(
            [*command, "--output", "json", "serve", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        said = ""
        while "}" not in said:
            said += self.process.stdout.readline()
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{json.loads(said)['port']}",
            headers={"Authorization": f"Bearer {(home / 'token').read_text().strip()}"},
            timeout=30,
        )
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                self.client.get("/v1/health/live")
                return
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM."""
        self.process.terminate()
        self.process.wait(30)


def stored(runtime: Runtime) -> list[str]:
    """Ids of all events of the head, in order."""
    head = runtime.lake.replay().resolve(None) if runtime.lake.events.snapshot() else None
    if head is None:
        return []
    replay = runtime.lake.replay()
    frame = replay.events(replay.files(head.snapshot_id), EventRead("Paid", ("event_id",))).frame
    return sorted(frame.filter(~frame["shredded"])["event_id"].to_list())


def committed(client: Any, location: str) -> dict[str, Any]:
    """Polls a batch until it is committed."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        body: dict[str, Any] = client.get(location).json()
        if body["state"] == "committed":
            return body
        time.sleep(0.02)
    raise AssertionError("never committed")


def spool_bytes(home: Path) -> bytes:
    """Everything of the spool's file, its log and its shared memory."""
    return b"".join(p.read_bytes() for p in sorted((home / "lake").glob("intake.db*")))


def test_a_batch_is_answered_before_it_is_committed_and_told_afterwards(home: Path) -> None:
    """202 with its place; there first that it waits, then what became of each event."""
    configure(home, commit_seconds=1.0)
    with open_runtime(home) as runtime, client_of(runtime) as client:
        answer = client.post("/v1/events", json=[paid(ANN, event_id="1"), {"id": "2"}])
        assert (answer.status_code, answer.json()["state"]) == (202, "waiting")
        assert client.get("/v1/health/ready").json()["intake"]["events"] == 2
        done = committed(client, answer.headers["location"])
        assert [r["status"] for r in done["results"]] == ["accepted", "rejected"]
        assert (done["accepted"], done["rejected"], done["suppressed"]) == (1, 1, 0)
        assert client.get("/v1/health/ready").json()["intake"]["events"] == 0
        assert client.get("/v1/batches/none").status_code == 404
        assert stored(runtime) == ["1"]
        assert len(dead_letters(runtime.lake)) == 1


def test_killed_right_after_the_answer_every_event_is_in_the_lake_once(home: Path) -> None:
    """SIGKILL between 202 and the commit; the next server goes on by itself."""
    configure(home, commit_seconds=60)
    server = Server(home)
    for n in range(20):
        headers = {"Idempotency-Key": f"k{n}"}
        answer = server.client.post("/v1/events", json=[paid(f"p{n}", event_id=f"{n:02}")], headers=headers)
        assert answer.status_code == 202
    server.kill()
    configure(home, commit_seconds=0.1)
    server = Server(home)
    again = server.client.post(
        "/v1/events", json=[paid("p3", event_id="03")], headers={"Idempotency-Key": "k3"} | WAIT
    )
    assert (again.json()["state"], again.headers["idempotency-replayed"]) == ("committed", "true")
    server.stop()
    with open_runtime(home) as runtime:
        assert stored(runtime) == [f"{n:02}" for n in range(20)]
        assert verify(runtime.lake, deep=True).problems == ()
        assert runtime.lake.intake.queue().batches == 0


def test_a_server_erases_a_person_whose_batch_waits_in_it(home: Path) -> None:
    """The receipt comes only when the batch is committed without the person."""
    configure(home, commit_seconds=60)
    with open_runtime(home) as runtime:
        send(runtime, [paid(ANN, event_id="1"), paid("bob", event_id="2")])
    server = Server(home)
    waits = server.client.post("/v1/events", json=[paid(ANN, event_id="3"), paid("bob", event_id="4")])
    assert waits.json()["state"] == "waiting"
    asked = server.client.post("/v1/erasure-requests", json={"subject": ANN}).headers["location"]
    end = time.monotonic() + 60
    while server.client.get(asked).json()["status"] != "completed":
        assert time.monotonic() < end
        time.sleep(0.1)
    results = committed(server.client, waits.headers["location"])["results"]
    assert [r["status"] for r in results] == ["suppressed", "accepted"]
    server.kill()
    with open_runtime(home) as runtime:
        assert stored(runtime) == ["2", "4"]
        assert scan(home, SubjectId(ANN)).findings == ()


def test_many_requests_are_one_commit(home: Path) -> None:
    """And one entry in the table's offsets, however many there were."""
    with open_runtime(home) as runtime:
        for n in range(30):
            runtime.lake.intake.put(json.dumps(paid(f"p{n}", event_id=f"{n:02}")).encode(), 1)
        done = runtime.lake.intake.commit()
        assert done is not None
        assert (done.batches, done.events, len(runtime.lake.events.history())) == (30, 30, 1)
        for n in range(5):
            runtime.lake.intake.put(json.dumps(paid("p", event_id=f"x{n}")).encode(), 1)
            runtime.lake.intake.commit()
        assert len(runtime.lake.ingestor().offsets()) == 1
        assert len(stored(runtime)) == 35


def test_an_idempotency_key_is_one_batch_with_one_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it waits, when it is committed, when its snapshot is expired; and not with another body."""
    events = [paid(ANN, event_id="1"), paid(ANN, event_id="2") | {"data": {}}]
    key = {"Idempotency-Key": "abc"}
    with open_runtime(home) as runtime, client_of(runtime) as client:
        first = client.post("/v1/events", json=events, headers=key | WAIT)
        second = client.post("/v1/events", json=events, headers=key)
        assert second.json() == first.json()
        assert "idempotency-replayed" not in first.headers
        for n in range(5):
            send(runtime, [paid("bob", event_id=f"b{n}")])
        runtime.lake.events.expire(lambda metadata: [s.snapshot_id for s in metadata.snapshots[:-1]])
        assert client.post("/v1/events", json=events, headers=key | WAIT).json() == first.json()
        other = client.post("/v1/events", json=events[:1], headers=key)
        assert (other.status_code, other.json()["title"]) == (409, "KeyReused")
        assert other.headers["content-type"] == "application/problem+json"
        assert stored(runtime) == ["1", *(f"b{n}" for n in range(5))]
    later = time.time() + 25 * 3600
    with open_runtime(home) as runtime:
        runtime.lake.intake._clock = lambda: later
        runtime.lake.intake.tidy()
        with client_of(runtime) as client:
            assert client.get(first.headers["location"]).status_code == 404


@pytest.mark.parametrize("limit", [{"queue_events": 3}, {"queue_bytes": 1024}])
def test_a_full_queue_is_429_until_it_is_committed(home: Path, limit: dict[str, int]) -> None:
    """Nothing is written then; a repeated key is answered all the same."""
    configure(home, commit_seconds=60, **limit)
    with open_runtime(home) as runtime, client_of(runtime) as client:
        key = {"Idempotency-Key": "first"}
        batch = [paid(ANN, event_id=f"{n}", note="x" * 300) for n in range(4)]
        assert client.post("/v1/events", json=batch, headers=key).status_code == 202
        before = runtime.lake.intake.queue()
        full = client.post("/v1/events", json=[paid(ANN, event_id="9")])
        assert (full.status_code, full.headers["retry-after"]) == (429, "5")
        assert (full.json()["title"], full.json()["retry_helps"]) == ("IntakeFull", True)
        assert runtime.lake.intake.queue() == before
        assert client.post("/v1/events", json=batch, headers=key).status_code == 202
        runtime.lake.intake.commit()
        assert client.post("/v1/events", json=[paid(ANN, event_id="9")]).status_code == 202


def test_two_servers_on_one_home_commit_everything_once(home: Path) -> None:
    """One of them is killed in the middle; each answers for what the other took."""
    servers = [Server(home), Server(home)]
    locations = []
    for n in range(40):
        if n == 30:
            servers[0].kill()
        server = servers[n % 2 if n < 30 else 1]
        answer = server.client.post("/v1/events", json=[paid(f"p{n}", event_id=f"{n:02}")])
        assert answer.status_code == 202
        locations.append(answer.headers["location"])
    for location in locations:
        assert committed(servers[1].client, location)["accepted"] == 1
    servers[1].stop()
    with open_runtime(home) as runtime:
        assert stored(runtime) == [f"{n:02}" for n in range(40)]
        assert verify(runtime.lake, deep=True).problems == ()


def test_while_the_catalog_is_away_events_are_taken_and_committed_when_it_is_back(home: Path) -> None:
    """Its file is locked by somebody else; the queue's length and age are told meanwhile."""
    configure(home, commit_seconds=0.05)
    with open_runtime(home) as runtime, client_of(runtime) as client:
        assert client.post("/v1/events", json=[paid("p", event_id="00")], headers=WAIT).status_code == 202
        elsewhere = sqlite3.connect(home / "lake" / "catalog.db", isolation_level=None)
        elsewhere.execute("BEGIN EXCLUSIVE")
        locations = []
        for n in range(1, 10):
            answer = client.post("/v1/events", json=[paid(f"p{n}", event_id=f"{n:02}")])
            assert answer.status_code == 202
            locations.append(answer.headers["location"])
        late = client.post("/v1/events", json=[paid("p10", event_id="10")], headers={"Prefer": "wait=1"})
        assert (late.status_code, late.json()["state"]) == (202, "waiting")
        ready = client.get("/v1/health/ready")
        assert (ready.status_code, ready.json()["intake"]["events"]) == (503, 10)  # nothing can be read
        assert ready.json()["intake"]["oldest_seconds"] >= 1
        time.sleep(6)  # longer than the catalog's own patience: a commit has failed
        elsewhere.execute("ROLLBACK")
        elsewhere.close()
        for location in [*locations, late.headers["location"]]:
            assert committed(client, location)["accepted"] == 1
        assert stored(runtime) == [f"{n:02}" for n in range(11)]


def bodies_in(path: Path, runtime: Runtime) -> list[OpenedValues]:
    """What waits in a copy of the spool, as far as the keys of a lake open it."""
    files = SealedFiles(LivingKeys(runtime.keyring), runtime.home, {ANN: None}, numbers=True)
    with opened_database(path) as db:
        return list(files.in_database(path.name, db))


def test_nothing_of_a_person_is_in_clear_in_the_spool(home: Path) -> None:
    """Neither while it waits nor afterwards, and afterwards no key opens it, whoever kept a copy."""
    import shutil

    secret = "the quick brown secret"
    with open_runtime(home) as runtime:
        runtime.lake.intake.put(
            json.dumps([paid(ANN, event_id="1", note=secret)]).encode(), 1, f"key of {ANN}"
        )
        raw = spool_bytes(home)
        assert ANN.encode() not in raw
        assert secret.encode() not in raw
        copy = home.parent / "copy"
        copy.mkdir()
        for path in (home / "lake").glob("intake.db*"):
            shutil.copy(path, copy / path.name)
        assert [ANN.encode() in one.raw for one in bodies_in(copy / "intake.db", runtime)] == [True]
        sealed = sqlite3.connect(copy / "intake.db").execute("SELECT sealed FROM waiting").fetchone()[0]
        assert sealed in spool_bytes(home)
        runtime.lake.intake.drain()
        assert sealed not in spool_bytes(home)
        assert [one.count for one in bodies_in(copy / "intake.db", runtime)] == [0]


def test_a_sealing_key_is_replaced_when_it_is_old_and_destroyed_when_it_is_done(home: Path) -> None:
    """Each key of nobody leaves the pages once everything under it is committed."""
    configure(home, key_seconds=0.05)
    with open_runtime(home) as runtime:
        intake, records = runtime.lake.intake, runtime.keyring.stats()["records"]
        for n in range(3):
            intake.put(json.dumps(paid("p", event_id=str(n))).encode(), 1)
            time.sleep(0.06)
        assert runtime.keyring.stats()["records"] == int(records) + 3
        intake.tidy()
        assert runtime.keyring.stats()["records"] == int(records) + 3, "what waits can be opened"
        intake.commit()
        intake.tidy()
        assert runtime.keyring.stats()["records"] == int(records) + 1, "one person"


def test_doctor_and_command_line_show_and_drain_the_queue(home: Path) -> None:
    """For when no server runs."""
    with open_runtime(home) as runtime:
        runtime.lake.intake.put(json.dumps(paid("p", event_id="1")).encode(), 1)
        runtime.lake.intake._spool._clock = lambda: time.time() - 3600
        runtime.lake.intake.put(json.dumps(paid("p", event_id="2")).encode(), 1)
        (found,) = [f for f in examine(runtime) if f.check == "intake"]
        assert "2 events of 2 batch(es) wait" in found.text
    command = [sys.executable, "-c", "from service.cli import main; main()", "--home", str(home)]
    done = subprocess.run(
        [*command, "--output", "json", "ingest", "intake"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"batches": 2, "events": 2, "waiting": 0}
    with open_runtime(home) as runtime:
        assert stored(runtime) == ["1", "2"]
        (found,) = [f for f in examine(runtime) if f.check == "intake"]
        assert (found.level, found.text) == ("ok", "nothing waits to be committed")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("wait=5", 5),
        ("respond-async, wait=10", 10),
        ("respond-async; wait=10", 10),
        ("Wait = 7", 7),
        ('wait="3"', 3),
        ("wait=99999", LONGEST_WAIT_SECONDS),
        ("await=5", 0),
        ("wait=-1", 0),
        ("wait=x", 0),
    ],
)
def test_a_preference_is_read_as_its_standard_says(header: str | None, seconds: float) -> None:
    """RFC 7240; what is not understood is ignored."""
    assert wait_of(header) == seconds
