"""The requester's salt is not lost before it was received, and nothing else of a request stays."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from keys import Effects, SubjectId
from purge import IdempotencyConflict
from purge.saga import SALT_DAYS
from service.app import create_app
from service.runtime import Runtime, open_runtime
from tests.world import Clock, make_world, paid, send

ANN = SubjectId("customer-ann-0001")
REFERENCE = "ticket of customer-ann-0001"


def fill(runtime: Runtime) -> None:
    """Two people."""
    send(runtime, [paid(ANN.reveal(), event_id="1"), paid("bob", event_id="2")])


class Killed(BaseException):
    """Stands for kill -9."""


def test_the_salt_can_be_fetched_whenever_the_process_was_killed_after_the_request(tmp_path: Path) -> None:
    """At every effect from the journal's entry to the receipt; it fits the receipt's commitment."""
    at, count = [10**9], [0]

    def kill(when: str, name: str) -> None:
        count[0] += 1
        if count[0] == at[0]:
            raise Killed

    with make_world(tmp_path / "lake", effects=Effects(kill)) as runtime:
        send(runtime, [paid(f"p{n}", event_id=str(n)) for n in range(12)])
        for person, ahead in enumerate((4, 6, 9, 13, 18, 25, 33, 42)):
            at[0] = count[0] + ahead
            subject = SubjectId(f"p{person}")
            with contextlib.suppress(Killed):
                runtime.purge.run(runtime.purge.submit(subject).request.request_id)
            at[0] = 10**9
            request = runtime.purge.submit(subject).request
            runtime.purge.run(request.request_id)
            salt = runtime.purge.salt(request.request_id)
            assert salt is not None, ahead
            digest = hashlib.sha256(bytes.fromhex(salt) + subject.reveal().encode()).hexdigest()
            assert digest == request.commitment


def test_a_salt_is_destroyed_once_it_was_received_and_after_a_while(tmp_path: Path) -> None:
    """Its key goes; asking again finds nothing."""
    clock = Clock()
    with make_world(tmp_path / "lake", clock=clock) as runtime:
        fill(runtime)
        first, second = (runtime.purge.submit(SubjectId(one)) for one in (ANN.reveal(), "bob"))
        assert runtime.purge.salt(first.request.request_id) == first.salt
        runtime.purge.salt_received(first.request.request_id)
        runtime.purge.salt_received(first.request.request_id)
        assert runtime.purge.salt(first.request.request_id) is None
        runtime.purge.forget_old_salts()
        assert runtime.purge.salt(second.request.request_id) == second.salt
        clock.forward(days=SALT_DAYS + 1)
        runtime.purge.forget_old_salts()
        assert runtime.purge.salt(second.request.request_id) is None


def test_over_http_the_salt_is_told_again_until_it_was_confirmed(world: Runtime) -> None:
    """A lost answer loses nothing."""
    fill(world)
    headers = {"Authorization": f"Bearer {world.token}"}
    with TestClient(create_app(world), headers=headers) as client:
        asked = client.post("/v1/erasure-requests", json={"subject": ANN.reveal()}).json()
        place = f"/v1/erasure-requests/{asked['request_id']}/salt"
        assert client.get(place).json()["salt"] == asked["salt"]
        assert client.delete(place).status_code == 204
        assert client.get(place).status_code == 404


def journal_bytes(home: Path) -> bytes:
    """The journal's file and its log."""
    return b"".join(path.read_bytes() for path in (home / "purge").glob("journal.db*"))


def test_no_idempotency_key_of_a_request_lies_in_the_journal(world: Runtime) -> None:
    """It is kept as a keyed digest, and still belongs to one request."""
    fill(world)
    first = world.purge.submit(ANN, idempotency_key=REFERENCE)
    assert world.purge.submit(ANN, idempotency_key=REFERENCE).request == first.request
    with pytest.raises(IdempotencyConflict):
        world.purge.submit(SubjectId("bob"), idempotency_key=REFERENCE)
    stored = journal_bytes(world.home)
    assert REFERENCE.encode() not in stored
    assert hashlib.sha256(REFERENCE.encode()).digest() not in stored
    assert hashlib.sha256(REFERENCE.encode()).hexdigest().encode() not in stored


def test_a_journal_of_an_earlier_release_loses_the_keys_that_it_kept_as_they_came(tmp_path: Path) -> None:
    """Replaced at the next opening, in every page; the same key still finds its request."""
    home = tmp_path / "lake"
    with make_world(home) as runtime:
        send(runtime, [paid(f"p{n}", event_id=str(n)) for n in range(60)])
        requests = [runtime.purge.submit(SubjectId(f"p{n}")).request for n in range(60)]
    with sqlite3.connect(home / "purge" / "journal.db") as db:
        for n, request in enumerate(requests):
            reference = f"{REFERENCE} {n} {'x' * 80}"
            sql = "UPDATE requests SET idempotency_key = ? WHERE request_id = ?"
            db.execute(sql, (reference, request.request_id))
        db.execute("PRAGMA user_version = 0")
    db.close()
    assert REFERENCE.encode() in journal_bytes(home)
    with open_runtime(home) as runtime:
        assert REFERENCE.encode() not in journal_bytes(home)
        again = runtime.purge.submit(SubjectId("p7"), idempotency_key=f"{REFERENCE} 7 {'x' * 80}")
        assert again.request == requests[7]
        with pytest.raises(IdempotencyConflict):
            runtime.purge.submit(SubjectId("p8"), idempotency_key=f"{REFERENCE} 7 {'x' * 80}")
