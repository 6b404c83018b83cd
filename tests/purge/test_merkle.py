"""RFC 6962 trees against the recursive definition, and the log that keeps their subtrees."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from keys import CustodianUnavailable, Effects, Signature
from purge.merkle import Nodes, completed_by, inclusion_proof, leaf_hash, root_of
from purge.tlog import Checkpoint, TransparencyLog
from purge.verifier import _root as root_of_proof
from service.app import create_app
from service.runtime import Runtime
from tests.world import paid, publish, send

leaves = st.lists(st.binary(max_size=8), min_size=1, max_size=70)


def definition(hashes: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word by word."""
    if len(hashes) == 1:
        return hashes[0]
    k = split(hashes)
    return hashlib.sha256(b"\x01" + definition(hashes[:k]) + definition(hashes[k:])).digest()


def split(hashes: list[bytes]) -> int:
    """The largest power of two below their number."""
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    return k


def path(index: int, hashes: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, section 2.1.1, word by word."""
    if len(hashes) == 1:
        return []
    k = split(hashes)
    if index < k:
        return [*path(index, hashes[:k]), definition(hashes[k:])]
    return [*path(index - k, hashes[k:]), definition(hashes[:k])]


def grown(hashes: list[bytes]) -> tuple[Nodes, list[int]]:
    """Subtrees as appending leaf by leaf keeps them, and how often one was asked for since."""
    kept: dict[tuple[int, int], bytes] = {}
    asked = [0]

    def node(level: int, at: int) -> bytes:
        asked[0] += 1
        return kept[level, at]

    for index, leaf in enumerate(hashes):
        kept[0, index] = leaf
        for level, at, found in completed_by(index, leaf, node):
            kept[level, at] = found
    asked[0] = 0
    return node, asked


@given(leaves, st.data())
def test_roots_and_proofs_of_every_size_are_those_of_the_definition(
    data: list[bytes], draw: st.DataObject
) -> None:
    """Out of kept subtrees, and a few of them: what is asked for grows with the logarithm."""
    hashes = [leaf_hash(d) for d in data]
    node, asked = grown(hashes)
    size = draw.draw(st.integers(1, len(data)))
    index = draw.draw(st.integers(0, size - 1))
    assert root_of(size, node) == definition(hashes[:size])
    assert inclusion_proof(index, size, node) == path(index, hashes[:size])
    assert asked[0] <= 4 * size.bit_length()


@given(leaves, st.data())
def test_every_leaf_is_proven_and_no_other_is(data: list[bytes], draw: st.DataObject) -> None:
    """A proof leads to the root from its own leaf and index only."""
    hashes = [leaf_hash(d) for d in data]
    node, _ = grown(hashes)
    index = draw.draw(st.integers(0, len(data) - 1))
    proof, root = inclusion_proof(index, len(data), node), root_of(len(data), node)
    assert root_of_proof(hashes[index], index, len(data), proof) == root
    assert root_of_proof(leaf_hash(b"a leaf that is not there"), index, len(data), proof) != root
    assert root_of_proof(hashes[index], len(data), len(data), proof) is None
    with pytest.raises(IndexError):
        inclusion_proof(len(data), len(data), node)


def test_the_empty_tree_has_the_hash_of_nothing() -> None:
    """As the RFC says."""
    assert root_of(0, grown([])[0]) == hashlib.sha256(b"").digest()


# -- the log ----------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path, world: Runtime) -> TransparencyLog:
    """An empty log."""
    return TransparencyLog(tmp_path / "tlog.db", world.keyring, Effects())


def filled(log: TransparencyLog, count: int) -> list[bytes]:
    """Appends leaves; their hashes."""
    start = log.size()
    for number in range(start, start + count):
        log.append(f"n{number}", b"%d" % number)
    return [leaf_hash(b"%d" % number) for number in range(start + count)]


def test_a_log_without_subtrees_gets_them_when_it_is_opened(
    log: TransparencyLog, tmp_path: Path, world: Runtime
) -> None:
    """An older version wrote it, wholly or at its end; and what was changed is found."""
    hashes = filled(log, 21)
    for lost in ("1", "at >= 4 OR level > 2"):
        with sqlite3.connect(tmp_path / "tlog.db") as db:
            db.execute(f"DELETE FROM nodes WHERE {lost}")
            db.execute("DELETE FROM signed")
        db.close()
        again = TransparencyLog(tmp_path / "tlog.db", world.keyring, Effects())
        assert again.checkpoint().root == definition(hashes)
        assert again.verify() == 21
        again.close()
    with sqlite3.connect(tmp_path / "tlog.db") as db:
        db.execute("UPDATE nodes SET hash = x'00' WHERE level = 2 AND at = 1")
    db.close()
    with pytest.raises(ValueError, match="was changed"):
        log.verify()


def test_no_read_of_a_log_grows_with_it(log: TransparencyLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in rows that are read: four times the leaves, hardly more rows."""
    read = [0]
    rows = log._db.read

    def counting(*given: object) -> list[tuple[object, ...]]:
        found = rows(*given)  # type: ignore[arg-type]
        read[0] += len(found)
        return found

    monkeypatch.setattr(log._db, "read", counting)

    def work() -> int:
        read[0] = 0
        log.proof(log.size() // 3)
        log.checkpoint()
        return read[0]

    filled(log, 300)
    small = work()
    filled(log, 900)
    assert work() <= small + 12


def away(monkeypatch: pytest.MonkeyPatch, world: Runtime) -> Callable[[], None]:
    """The custodian does not answer until what is returned is called."""

    def sign(payload: bytes) -> Signature:
        raise CustodianUnavailable("away")

    monkeypatch.setattr(world.keyring.custodian, "sign", sign)
    return monkeypatch.undo


def test_while_the_custodian_is_away_the_newest_signed_checkpoint_holds(
    log: TransparencyLog, world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it covers is proven; what came since is said to be unprovable now, and is proven later."""
    filled(log, 5)
    signed = log.checkpoint()
    back = away(monkeypatch, world)
    assert log.checkpoint() is not signed
    assert log.checkpoint() == signed
    filled(log, 1)
    assert log.checkpoint() == signed
    assert log.proof(4).endswith(signed.note)
    with pytest.raises(CustodianUnavailable):
        log.proof(5)
    with pytest.raises(IndexError):
        log.proof(6)
    back()
    now: Checkpoint = log.checkpoint()
    assert (now.size, log.proof(5).endswith(now.note)) == (6, True)


def test_a_published_aggregate_is_read_while_the_custodian_is_away(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its proof, which was signed when it was published."""
    send(world, [paid("ann", event_id="1")])
    publish(world)
    world.purge.log_publications()
    headers = {"Authorization": f"Bearer {world.token}"}
    with TestClient(create_app(world), headers=headers, raise_server_exceptions=False) as client:
        client.get("/v1/log/key")
        away(monkeypatch, world)
        monkeypatch.setattr(world.keyring.custodian, "public_keys", _never)
        root = world.home / "keys" / "root.key"
        root.rename(root.with_name("away"))
        world.keyring.tree.forget_cached()
        world.keyring.resident.forget_all()
        answer = client.get("/v1/views/cents_per_day")
        assert (answer.status_code, len(answer.json()["rows"])) == (200, 1), answer.text
        assert answer.json()["proof"].startswith("c2sp.org/tlog-proof@v1")
        assert client.get("/v1/log/checkpoint").status_code == 200
        assert "+" in client.get("/v1/log/key").text
        root.with_name("away").rename(root)


def _never(*_: object) -> NoReturn:
    raise AssertionError("the custodian was asked")


def test_what_is_public_is_read_without_asking_the_custodian_and_follows_it_by_itself(
    log: TransparencyLog, world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint, keys and proofs are those it gave when something was signed, or when the worker asked."""
    filled(log, 5)
    signed, custodian = log.checkpoint(), world.keyring.custodian
    keys = list(custodian.public_keys().values())
    filled(log, 1)
    with monkeypatch.context() as patched:
        patched.setattr(custodian, "sign", _never)
        patched.setattr(custodian, "public_keys", _never)
        assert log.published() == signed
        assert log.signers() == keys
        assert log.proof(4).endswith(signed.note)
    more = dict(custodian.public_keys()) | {"rotated": b"r" * 32}
    monkeypatch.setattr(custodian, "public_keys", lambda: more)
    log.catch_up()
    assert log.published().size == 6
    assert log.signers() == list(more.values())
