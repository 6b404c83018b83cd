"""Suite `keys`: the key tree alone, beside the two designs people try first.

Naive peer 1 is one transit key per person on the same server, naive peer 2 one wrapped DEK per database
row that is unwrapped for every event. Figures of servers that cannot be had here are left out, with a
line that says so. BENCH_PEOPLE (default 1,000,000) is the size of the large tree.
"""

from __future__ import annotations

import base64
import itertools
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measure import Figure, at_least, at_most, median_seconds, seconds
from infra.errors import InfraError
from infra.postgres import Postgres
from infra.vault import Vault
from infra.vault.setup import make_keys
from keys import (
    FieldContext,
    KeyPlaces,
    Keyring,
    PageStore,
    SqlitePageStore,
    SubjectId,
    embedded_places,
    open_embedded,
    open_keys,
)
from keys.agentclient import AgentLink, IngestKeys
from keys.postgresstore import PostgresPageStore
from keys.transit import TransitCustodian
from keys.vaultsession import TokenFile, VaultServer, VaultSession
from lake import MappedFile
from service.feed import open_feed
from tests.keys.people import context

PEOPLE = int(os.environ.get("BENCH_PEOPLE", "1000000"))
CONTEXT = FieldContext(b"\0" * 16, 16, "personal", "service", "Bench", 1)
VALUES = 20_000
NAIVE = 300
READERS = 8
ERASED = 104
AT_ONCE = 16


def run() -> list[Figure]:
    """Every figure of the suite."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        home = Path(folder)
        home.chmod(0o755)
        figures = [*_codec(home / "codec"), *_look_ups(home / "look")]
        figures += _people("SQLite", embedded_places(home / "sqlite"), home / "sqlite", 100_000, 6)
        with _server(Postgres, home) as postgres:
            if postgres is not None:
                dsn = postgres.address()["POSTGRES_DSN"]
                places = KeyPlaces(embedded_places(home / "pg").custodian, lambda: PostgresPageStore(dsn))
                figures += _people("PostgreSQL", places, home / "pg", 50_000, 10)
        figures += _agent(home / "agent")
        figures += _barrier(home / "barrier")
        figures += _close_under_load(home / "load")
        figures += _large(home / "large", None)
        with _server(Vault, home) as vault:
            if vault is not None:
                figures += _large(home / "transit", vault)
                figures += _naive(home / "naive", vault)
    return figures


@contextmanager
def _server(kind: type[Any], home: Path) -> Iterator[Any]:
    server = kind(home)
    try:
        server.start()
    except InfraError as missing:
        print(f"left out: {missing}", file=sys.stderr)
        yield None
        return
    try:
        yield server
    finally:
        server.stop()


def _provision(keyring: Keyring, count: int, batch: int = 1000) -> list[bytes]:
    refs: list[bytes] = []
    for at in range(0, count, batch):
        refs += [
            m.ref for m in keyring.provision([SubjectId(f"p{n}") for n in range(at, min(at + batch, count))])
        ]  # type: ignore[union-attr]
    return refs


def _refs_of(keyring: Keyring, subjects: list[SubjectId]) -> list[bytes | None]:
    index = keyring.tree.index
    return index.find(index.digests("subject", [one.reveal() for one in subjects]))


def _codec(home: Path) -> list[Figure]:
    """200 B values: a warm subkey, a new subkey each, blocks of 20 events."""
    keyring = open_embedded(home)
    refs = _provision(keyring, VALUES)
    figures = []
    for name, people, body, events, goal in (
        ("warm subkey", refs[:1] * VALUES, os.urandom(200), 1, 450_000),
        ("a new subkey each", refs, os.urandom(200), 1, 200_000),
        ("blocks of 20", refs, os.urandom(40) * 100, 20, 2_500_000),
    ):
        ids = [os.urandom(16) for _ in people]
        bodies = [body] * len(people)

        def seal_anew(
            people: list[bytes] = people, ids: list[bytes] = ids, bodies: list[bytes] = bodies
        ) -> Any:
            return keyring.session().seal(CONTEXT, people, ids, bodies)

        sealed = seal_anew()
        opener = keyring.opener()
        took = median_seconds(seal_anew)
        figures.append(at_least(f"seal 200 B, {name}", len(people) * events / took, "events/s", goal))
        took = median_seconds(lambda: opener.open(CONTEXT, people, ids, sealed))
        figures.append(at_least(f"open 200 B, {name}", len(people) * events / took, "events/s", goal))
    keyring.close()
    return figures


def _look_ups(home: Path) -> list[Figure]:
    keyring = open_embedded(home)
    refs = _provision(keyring, 100_000)
    keyring.resident.deks(refs, "service")
    ordered = _as_read(refs)
    warm = median_seconds(lambda: keyring.resident.deks(ordered, "service"))
    anywhere = median_seconds(lambda: keyring.resident.deks(refs, "service"))
    page = keyring._store.page_ids()[3]
    row = keyring._store.pages([page])[0]
    cold = median_seconds(lambda: [keyring.tree._open_page(row) for _ in range(200)]) / 200
    keyring.close()
    return [
        at_least("resident key look-up, by handles", len(refs) / warm, "keys/s", 2_000_000),
        Figure("resident key look-up, in any order", len(refs) / anywhere, "keys/s"),
        at_most("open a cold page of 1,024 keys", cold * 1e6, "µs", 50),
    ]


def _as_read(refs: list[bytes]) -> list[bytes]:
    """The same as blocks bring them: in the order of the handles, in which keys lie in memory too."""
    return [bytes(bytearray(ref)) for ref in sorted(refs)]


def _people(name: str, places: KeyPlaces, home: Path, goal: float, destroy_goal: float) -> list[Figure]:
    """Create 100,000 people in batches of 1,000, destroy 10,000 of them, count bytes."""
    keyring = open_keys(places, home)
    count = 100_000
    took = seconds(lambda: _provision(keyring, count))
    subjects = [SubjectId(f"p{n}") for n in range(10_000)]
    refs = [ref for ref in _refs_of(keyring, subjects) if ref is not None]
    keyring._store.flush_deleted()
    size = keyring._store.size()

    def destroy() -> None:
        fences = keyring.fence(list(zip(subjects, refs, strict=True)), "bench")
        keyring.destroy(refs, fences)

    destroyed = seconds(destroy)
    keyring.close()
    return [
        at_least(f"{name}: create people in batches of 1,000", count / took, "people/s", goal),
        at_most(f"{name}: destroy 10,000 people", destroyed, "s", destroy_goal),
        at_most(f"{name}: sealed pages per person", size.page_bytes / count, "B", 64),
        Figure(f"{name}: indexes and overhead per person", (size.total_bytes - size.page_bytes) / count, "B"),
    ]


def _agent(home: Path) -> list[Figure]:
    """Subkeys through the key agent, which is a process of its own; ingest with it and without."""
    from bench.path import _open, _purchase_mapping, _purchases

    figures = []
    with _open(home, "cdnow") as runtime:
        refs = _as_read(_provision(runtime.keyring, 100_000))
    agent = subprocess.Popen(
        [sys.executable, "-c", "from service.cli import main; main()", "--home", str(home), "keys", "agent"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert agent.stderr is not None
    agent.stderr.readline()
    try:
        folder = home / "agent" / "ingest"
        keys = IngestKeys(AgentLink(folder / "socket", {"token": (folder / "token").read_text()}))
        keys.tag_keys(refs[:1])

        def subkeys() -> None:
            keys.sealing(keys.begin_session(), CONTEXT, refs)

        subkeys()
        took = median_seconds(subkeys) * 1000
        figures.append(at_most("key agent: 100,000 subkeys in one batch", took, "ms", 300))
        raw = home.parent / "agent.csv"
        rates: dict[str, list[float]] = {"agent": [], "own": []}
        for turn in range(6):
            _purchases(raw, 100_000, 5000, f"2026-02-{turn + 1:02}")
            with open_feed(home, agent=bool(turn % 2)) as feed:
                source = MappedFile(raw, _purchase_mapping(feed.types))
                took = seconds(lambda i=feed.ingestor, s=source: i.run(s))  # type: ignore[misc]
                rates["agent" if turn % 2 else "own"].append(took)
        share = statistics.median(rates["own"]) / statistics.median(rates["agent"])
        figures.append(
            at_least("key agent: ingest with it / with own keys, 20 events a person", share, "×", 0.9)
        )
    finally:
        agent.terminate()
        agent.wait()
    return figures


def _barrier(home: Path) -> list[Figure]:
    """From the destruction of a key to the moment when no process can open it, while others read."""
    keyring = open_embedded(home)
    people = [SubjectId(f"p{n}") for n in range(1 + ERASED)]
    refs = [m.ref for m in keyring.provision(people)]  # type: ignore[union-attr]
    (sealed,) = keyring.session().seal(context(), refs[:1], [b"b" * 16], [b"word"])
    values = home.with_name("values")
    values.write_text(f"{refs[0].hex()} {sealed.hex()}\n")  # type: ignore[union-attr]
    command = [sys.executable, "-m", "tests.keys.barrier_reader", home, values, os.devnull]
    readers = [subprocess.Popen(command) for _ in range(READERS)]

    def erase(who: SubjectId, ref: bytes) -> float:
        fences = keyring.fence([(who, ref)], "bench")
        began = time.perf_counter()
        keyring.destroy([ref], fences)
        keyring.wait_until_unreadable(fences[0].epoch)
        return time.perf_counter() - began

    try:
        time.sleep(5)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            waits = list(pool.map(erase, people[1:], refs[1:]))
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    keyring.close()
    label = f"unreadable after a destruction, {READERS} reading processes, {ERASED} erasures"
    return [
        Figure(f"{label}: median", statistics.median(waits), "s"),
        at_most(f"{label}: p99", statistics.quantiles(waits, n=100)[98], "s", 5),
    ]


def _close_under_load(home: Path) -> list[Figure]:
    """What closing epochs costs a process that provisions, seals and opens all the time."""
    keyring, closing = open_embedded(home), open_embedded(home)
    _provision(keyring, 20_000)
    counter = itertools.count()

    def turn() -> float:
        began = time.perf_counter()
        (made,) = keyring.provision([SubjectId(f"load-{next(counter)}")])
        ref = made.ref  # type: ignore[union-attr]
        (sealed,) = keyring.session().seal(CONTEXT, [ref], [b"b" * 16], [b"word"])
        assert keyring.opener().open(CONTEXT, [ref], [b"b" * 16], [sealed]) == [b"word"]  # type: ignore[list-item]
        return time.perf_counter() - began

    quiet = [turn() for _ in range(300)]
    stop = threading.Event()
    closes = 0

    def close() -> None:
        nonlocal closes
        while not stop.wait(0.2):
            closing.close_epoch()
            closes += 1

    thread = threading.Thread(target=close)
    thread.start()
    try:
        busy = []
        while closes < 15:  # an error would end the suite
            busy.append(turn())
    finally:
        stop.set()
        thread.join()
    added = (statistics.median(busy) - statistics.median(quiet)) * 1000
    keyring.close()
    return [
        Figure("provision, seal and open while an epoch closes 5 times a second: added latency", added, "ms")
    ]


def _session(vault: Vault) -> VaultSession:
    path = vault.folder / "admin-token"
    path.touch(mode=0o600)
    path.write_text(vault.client().token)
    where = vault.address()
    return VaultSession(VaultServer(where["VAULT_ADDR"], Path(where["VAULT_CACERT"])), TokenFile(path))


def _large(home: Path, vault: Vault | None) -> list[Figure]:
    """An epoch close over a large tree: seconds and calls of the custodian."""
    home.mkdir()
    store: PageStore = SqlitePageStore(home / "pages.db")
    calls: list[str] = []
    if vault is None:
        keyring = open_keys(KeyPlaces(embedded_places(home).custodian, lambda: store), home)
        name = "embedded"
    else:
        make_keys(vault.client(), "bench")
        session = _session(vault)
        original = session.call
        session.call = lambda *a, **k: (calls.append(a[1]), original(*a, **k))[1]  # type: ignore[method-assign]
        keyring = open_keys(KeyPlaces(lambda: TransitCustodian(session, prefix="bench"), lambda: store), home)
        name = "real transit"
    _provision(keyring, PEOPLE, 50_000)
    keyring.close_epoch()
    calls.clear()
    took = [seconds(keyring.close_epoch) for _ in range(3)]
    label = f"close an epoch over {PEOPLE / 1e6:g} M people, {name}"
    figures = [at_most(label, statistics.median(took), "s", 2)]
    if vault is not None:
        figures.append(at_most(f"{label}: calls", len(calls) / 3, "calls", 10))
    else:
        rekeyed = seconds(keyring.rekey)
        figures.append(Figure(f"re-key the pages and names of {PEOPLE / 1e6:g} M people", rekeyed, "s"))
    keyring.close()
    return figures


def _naive(home: Path, vault: Vault) -> list[Figure]:
    """What the two obvious designs cost on the same server, for the same work."""
    home.mkdir()
    client = vault.client()
    pid = vault.process.pid
    before = _rss_bytes(pid)

    def create_keys() -> None:
        for n in range(NAIVE):
            client.adapter.post(f"/v1/transit/keys/naive-{n}", json={"type": "aes256-gcm96"})
            client.adapter.post(f"/v1/transit/keys/naive-{n}/config", json={"deletion_allowed": True})

    created = seconds(create_keys)
    memory = (_rss_bytes(pid) - before) / NAIVE
    deleted = seconds(lambda: [client.adapter.delete(f"/v1/transit/keys/naive-{n}") for n in range(NAIVE)])

    session = _session(vault)
    make_keys(client, "peers")
    keyring = open_keys(
        KeyPlaces(lambda: TransitCustodian(session, prefix="peers"), lambda: SqlitePageStore(home / "p.db")),
        home,
    )
    ours_created = seconds(lambda: _provision(keyring, 10_000)) / 10_000
    subjects = [SubjectId(f"p{n}") for n in range(5000)]
    refs = _refs_of(keyring, subjects)

    def destroy() -> None:
        fences = keyring.fence([(s, r) for s, r in zip(subjects, refs, strict=True) if r], "bench")
        keyring.destroy([r for r in refs if r], fences)

    ours_deleted = seconds(destroy) / 5000
    ours_open, naive_open = _open_per_event(home, keyring, client)
    keyring.close()
    return [
        at_least("create a person, ours against a transit key each", created / NAIVE / ours_created, "×", 50),
        at_least(
            "destroy a person, ours against a transit key each", deleted / NAIVE / ours_deleted, "×", 50
        ),
        Figure("server memory per person with a transit key each (ours: none)", memory, "B"),
        at_least("open an event, ours against a wrapped DEK per row", naive_open / ours_open, "×", 50),
        Figure("open an event through a round trip to the server", 1 / naive_open, "events/s"),
        Figure("open an event, ours", 1 / ours_open, "events/s"),
    ]


def _open_per_event(home: Path, keyring: Keyring, client: Any) -> tuple[float, float]:
    """Seconds per event: our opener; a row's wrapped DEK unwrapped by the server, then opened."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    people = [SubjectId(f"p{n}") for n in range(6000, 8000)]
    refs = [m.ref for m in keyring.provision(people)]  # type: ignore[union-attr]
    ids = [os.urandom(16) for _ in refs]
    sealed = keyring.session().seal(CONTEXT, refs, ids, [os.urandom(200)] * len(refs))
    opener = keyring.opener()
    ours = median_seconds(lambda: opener.open(CONTEXT, refs, ids, sealed)) / len(refs)  # type: ignore[arg-type]
    db = sqlite3.connect(home / "rows.db")
    db.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, wrapped TEXT, nonce BLOB, body BLOB)")
    for n in range(NAIVE):
        dek, nonce = os.urandom(32), os.urandom(12)
        plaintext = base64.b64encode(dek).decode()
        body = {"plaintext": plaintext, "context": "Yw=="}
        wrapped = client.adapter.post("/v1/transit/encrypt/bench-root", json=body)["data"]["ciphertext"]
        db.execute(
            "INSERT INTO rows VALUES (?, ?, ?, ?)",
            (n, wrapped, nonce, AESGCM(dek).encrypt(nonce, os.urandom(200), None)),
        )

    def naive() -> None:
        for wrapped, nonce, body in db.execute("SELECT wrapped, nonce, body FROM rows"):
            asked = {"ciphertext": wrapped, "context": "Yw=="}
            answer = client.adapter.post("/v1/transit/decrypt/bench-root", json=asked)["data"]["plaintext"]
            AESGCM(base64.b64decode(answer)).decrypt(nonce, body, None)

    return ours, seconds(naive) / NAIVE


def _rss_bytes(pid: int | None) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(one for one in status.splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
