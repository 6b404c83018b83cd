"""The page store on PostgreSQL when the server or the way to it fails in the middle of something."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from attrs import frozen
from psycopg import sql

import keys.postgresstore
import keys.retry
from infra.postgres import Postgres
from keys import (
    KeyPlaces,
    Keyring,
    PageStoreFull,
    PageStoreUnavailable,
    Provisioned,
    Shredded,
    SubjectId,
    embedded_places,
    open_keys,
)
from keys.postgresstore import PostgresPageStore
from tests.keys.people import ANN, BOB, WORD, provision, seal, shred, unseal
from tests.keys.relay import Loss, Relay
from tests.keys.servers import schema_of
from tests.servers import running
from tests.smalldisk import mounted

SERVER_DISK_MIB = 160


@frozen
class Place:
    """Where the pages of one test lie."""

    dsn: str
    schema: str
    home: Path

    def open(self, dsn: str | None = None) -> Keyring:
        """A keyring over them, by another way where one is named."""
        places = KeyPlaces(
            embedded_places(self.home).custodian, lambda: PostgresPageStore(dsn or self.dsn, self.schema)
        )
        return open_keys(places, self.home)


@pytest.fixture
def place(postgres: Postgres, tmp_path: Path) -> Place:
    """A schema of its own."""
    return Place(postgres.address()["POSTGRES_DSN"], schema_of(tmp_path), tmp_path / "keys")


@pytest.fixture
def relay(place: Place) -> Iterator[Relay]:
    """The way that loses connections."""
    found = Relay(place.dsn)
    yield found
    found.close()


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that the server's own user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@frozen
class Work:
    """Something that writes, on the n-th time with the n-th person.

    Attributes:
        prepare: done before the connection is lost; what it returns is handed on.
        check: what must be true afterwards, whatever was lost.
    """

    run: Callable[[Keyring, SubjectId, Any], Any]
    check: Callable[[Keyring, SubjectId, Any, Any], None]
    prepare: Callable[[Keyring, SubjectId], Any] = lambda keyring, who: None


def _records(keyring: Keyring) -> int:
    return int(keyring.stats()["records"])


def _provisioned(keyring: Keyring, who: SubjectId, before: Any, made: Any) -> None:
    assert keyring.ref_of(who) == made.ref
    assert [one.ref for one in keyring.tree.records_of([made.ref])] == [made.ref]
    assert unseal(keyring, made.ref, seal(keyring, made.ref)) == WORD


def _two_keys(keyring: Keyring, who: SubjectId) -> tuple[bytes, bytes]:
    ref = provision(keyring, who).ref
    assert provision(keyring, who, "marketing").ref == ref
    return ref, seal(keyring, ref)


def _destroyed(keyring: Keyring, who: SubjectId, before: Any, epoch: Any) -> None:
    ref, sealed = before
    assert unseal(keyring, ref, sealed) == Shredded(f"r{epoch}", epoch)
    assert keyring.ref_of(who) is None
    assert list(keyring.tree.records_of([ref])) == []
    assert keyring.gate().is_open


def _closed(keyring: Keyring, who: SubjectId, before: Any, closed: Any) -> None:
    assert closed.old_wrap_refused
    stats = keyring.stats()
    assert stats["root_version"] == stats["oldest_root_version"] == closed.root_version
    assert unseal(keyring, *before) == WORD


def _rekeyed(keyring: Keyring, who: SubjectId, before: Any, done: Any) -> None:
    bodies, version = before
    assert all(page.body != bodies[page.page_id] for page in keyring._store.pages(list(bodies)))
    assert int(keyring._store.meta("index_version") or 1) == version + 2, "replaced once: begun and finished"


def _bodies(keyring: Keyring, who: SubjectId) -> tuple[dict[int, bytes], int]:
    store = keyring._store
    pages = store.pages(store.page_ids())
    return {page.page_id: page.body for page in pages}, int(store.meta("index_version") or 1)


def _sealed(keyring: Keyring, who: SubjectId) -> tuple[bytes, bytes]:
    ref = provision(keyring, who).ref
    return ref, seal(keyring, ref)


def _close_until_done(keyring: Keyring, who: SubjectId, before: Any) -> Any:
    """Rotating a root is not repeated unasked; whoever closes does it again, as the error says."""
    try:
        return keyring.close_epoch()
    except PageStoreUnavailable:
        return keyring.close_epoch()


WORKS = {
    "provision": Work(lambda keyring, who, _: provision(keyring, who), _provisioned),
    "mint": Work(
        lambda keyring, who, _: keyring.mint(3),
        lambda keyring, who, before, made: _is(_records(keyring), before + 3),
        lambda keyring, who: _records(keyring),
    ),
    "destroy": Work(lambda keyring, who, before: shred(keyring, who, before[0]), _destroyed, _two_keys),
    "close an epoch": Work(_close_until_done, _closed, _sealed),
    "re-key": Work(lambda keyring, who, _: keyring.rekey(), _rekeyed, _bodies),
}


def _is(found: int, wanted: int) -> None:
    assert found == wanted


@pytest.mark.parametrize("what", WORKS)
@pytest.mark.parametrize("loss", Loss)
def test_a_connection_lost_at_any_statement_leaves_the_work_done_once(
    place: Place, relay: Relay, what: str, loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COMMIT is one of them: whether it landed is looked up, or the work is safe to repeat."""
    monkeypatch.setattr(keys.retry, "_FIRST_PAUSE_SECONDS", 0.01)
    work, keyring = WORKS[what], place.open(relay.dsn)
    provision(keyring, ANN)
    for statement in range(1, 200):
        who = SubjectId(f"person-{statement}")
        before = work.prepare(keyring, who)
        relay.lose_at(statement, loss)
        outcome = work.run(keyring, who, before)
        _, was_lost = relay.counted()
        relay.lose_at(0, loss)
        work.check(keyring, who, before, outcome)
        if not was_lost:
            break
    assert statement > 5, "there were fewer statements than any such work needs"
    assert not was_lost
    assert keyring.check().problems == ()
    other = place.open()  # what the next process sees
    assert other.check().problems == ()
    for one in (keyring, other):
        one.close()


def test_the_victim_of_a_deadlock_is_repeated_and_nothing_is_lost(place: Place) -> None:
    """Somebody else's transaction holds the pages and wants the schema's lock, which ours holds."""
    with psycopg.connect(place.dsn, autocommit=True) as admin:
        # The victim is whoever looks first: ours after 3 s, the other one never.
        admin.execute("ALTER ROLE CURRENT_USER SET deadlock_timeout = '3s'")
        try:
            keyring = place.open()
        finally:
            admin.execute("ALTER ROLE CURRENT_USER RESET deadlock_timeout")
        first = provision(keyring, ANN)
        before = _deadlocks(admin)
        with psycopg.connect(place.dsn) as other, ThreadPoolExecutor(1) as pool:
            other.execute("SET LOCAL deadlock_timeout = '1h'")
            pages = sql.Identifier(place.schema, "pages")
            other.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(pages))
            working = pool.submit(provision, keyring, BOB)
            until(lambda: _waits_for_pages(admin, place.schema))
            other.execute("SELECT pg_advisory_xact_lock(%s)", (keyring._store._lock_number,))  # type: ignore[attr-defined]
            other.commit()
            second = working.result(timeout=60)
        until(lambda: _deadlocks(admin) == before + 1)
    assert {one.ref for one in keyring.tree.records_of([first.ref, second.ref])} == {first.ref, second.ref}
    assert keyring.check().problems == ()
    keyring.close()


def _deadlocks(admin: psycopg.Connection[Any]) -> int:
    rows = admin.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return int((rows.fetchone() or (0,))[0])


def _waits_for_pages(admin: psycopg.Connection[Any], schema: str) -> bool:
    rows = admin.execute(
        "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = %s::regclass", (f"{schema}.pages",)
    )
    return rows.fetchone() is not None


def until(true: Callable[[], bool]) -> None:
    """Asks until it is so; the test's own time limit ends it."""
    while not true():
        time.sleep(0.01)


def test_a_transaction_that_the_server_ended_for_its_idleness_is_unavailable(place: Place) -> None:
    """As where a custodian takes long to answer and the server's settings do not wait for it."""
    with psycopg.connect(place.dsn, autocommit=True) as admin:
        admin.execute("ALTER ROLE CURRENT_USER SET idle_in_transaction_session_timeout = '50ms'")
        try:
            store = PostgresPageStore(place.dsn, place.schema)
        finally:
            admin.execute("ALTER ROLE CURRENT_USER RESET idle_in_transaction_session_timeout")
        with pytest.raises(PageStoreUnavailable, match="IdleInTransaction") as raised:
            _write_once(store, lambda: until(lambda: _sessions_in_transaction(admin) == 0))
    assert raised.value.retry_helps
    with store.transaction() as writer:
        writer.set_meta("a", "2")
    assert store.meta("a") == "2"
    store.close()


def _write_once(store: PostgresPageStore, first: Callable[[], None]) -> None:
    with store.transaction() as writer:
        first()
        writer.set_meta("a", "1")


def _sessions_in_transaction(admin: psycopg.Connection[Any]) -> int:
    rows = admin.execute("SELECT COUNT(*) FROM pg_stat_activity WHERE state = 'idle in transaction'")
    return int((rows.fetchone() or (0,))[0])


def test_while_the_server_is_down_a_call_ends_after_its_last_try(
    postgres: Postgres, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked within it: tries inside of tries do not multiply."""
    monkeypatch.setattr(keys.postgresstore, "POOL_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(keys.retry, "LAST_TRY_SECONDS", 2.0)
    keyring = place.open()
    made = provision(keyring)
    postgres.stop()
    try:
        for ask in (
            lambda: provision(keyring, BOB),
            lambda: keyring.mint(1),
            lambda: list(keyring.tree.records_of([made.ref])),
        ):
            before = _waits_in_vain(keyring)
            with pytest.raises(PageStoreUnavailable):
                ask()
            assert _waits_in_vain(keyring) - before <= 3
    finally:
        postgres.start()
    assert provision(keyring, BOB).created
    keyring.close()


def test_a_call_that_meets_a_restart_waits_for_it(postgres: Postgres, place: Place) -> None:
    """With the waits of every day, half a minute at the most."""
    assert keys.postgresstore.POOL_TIMEOUT_SECONDS + keys.retry.LAST_TRY_SECONDS <= 30
    keyring = place.open()
    postgres.stop()
    try:
        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(provision, keyring, ANN)
            until(lambda: working.done() or _pool_stats(keyring).get("requests_waiting", 0) > 0)
            postgres.start()
            assert working.result(timeout=120).created
    finally:
        if postgres.process.pid is None:
            postgres.start()
    keyring.close()


def test_a_host_that_has_gone_without_a_word_is_noticed_while_an_answer_is_waited_for(place: Place) -> None:
    """By the system, see tcp(7): probes from the first idle seconds on, until the user timeout is over."""
    keyring = place.open()
    with keyring._store._pool.connection() as db:  # type: ignore[attr-defined]
        line = socket.socket(fileno=os.dup(db.fileno()))
    with line:
        assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, give_up_ms = (
            line.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
        )
    # Looked at with each probe: the first one after the user timeout ends the connection.
    assert max(idle + interval, give_up_ms / 1000) + interval <= keys.retry.LAST_TRY_SECONDS
    keyring.close()


def _waits_in_vain(keyring: Keyring) -> int:
    return _pool_stats(keyring).get("requests_errors", 0)


def _pool_stats(keyring: Keyring) -> dict[str, int]:
    return keyring._store._pool.get_stats()  # type: ignore[attr-defined,no-any-return]


def test_a_full_disk_of_the_server_loses_nothing_and_is_left_by_itself(
    reachable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the pages find no room; then the server dies of a log that it cannot write."""
    monkeypatch.setattr(keys.postgresstore, "POOL_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(keys.retry, "_FIRST_PAUSE_SECONDS", 0.01)
    with (
        mounted(reachable / "disk", SERVER_DISK_MIB) as disk,
        running(Postgres, "postgres", at=disk.folder) as server,
    ):
        place = Place(server.address()["POSTGRES_DSN"], "small", tmp_path / "keys")
        keyring = place.open()
        made = provision(keyring)
        sealed = seal(keyring, made.ref)
        disk.fill()
        people = [SubjectId(f"person-{n}") for n in range(20_000)]
        with pytest.raises(PageStoreFull) as raised:
            keyring.provision(people)
        assert "Make room" in raised.value.next_step
        assert unseal(keyring, made.ref, sealed) == WORD, "what is there can be read meanwhile"
        disk.make_room()
        assert all(one.created for one in keyring.provision(people) if isinstance(one, Provisioned))

        disk.fill()
        _write_until_the_server_dies(place.dsn)
        with pytest.raises(PageStoreUnavailable) as gone:
            provision(keyring, BOB)
        assert "server" in gone.value.next_step
        disk.make_room()
        server.process.stop()
        server.start()  # as its supervisor does
        assert provision(keyring, BOB).created
        assert unseal(keyring, made.ref, sealed) == WORD
        assert keyring.stats()["records"] == len(people) + 2
        assert keyring.check().problems == ()
        keyring.close()


def _write_until_the_server_dies(dsn: str) -> None:
    with contextlib.suppress(psycopg.OperationalError), psycopg.connect(dsn, autocommit=True) as admin:
        while True:
            admin.execute("SELECT pg_switch_wal(), pg_logical_emit_message(false, 'a', 'b')")
