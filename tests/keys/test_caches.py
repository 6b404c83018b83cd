"""What a process keeps in memory is bounded: in the keyring, in the key agent, and in its workers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keys import (
    AgentDenied,
    Held,
    OpeningKeys,
    Provisioned,
    Shredded,
    SubjectId,
    WritingKeys,
    agentserver,
    caches,
    open_embedded,
    tree,
)
from keys.agentserver import Connection
from keys.caches import Caches, Dek
from keys.envelope import Subkey
from keys.tree import locator
from tests.keys.people import BLOCK, context, shred
from tests.keys.test_agent import Host, sealed_by

KEYS, NAMES, SUBKEYS = 2500, 700, 300
PEOPLE = [SubjectId(f"person-{n}") for n in range(6000)]
BATCH = 250
BYTES = {"key": 300, "derived": 400, "name": 300}
"""As the docstring of `keys.caches` promises."""


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that a test can pass in a second; there are six pages of people."""
    monkeypatch.setattr(caches, "MAX_CACHED_KEYS", KEYS)
    monkeypatch.setattr(caches, "MAX_CACHED_NAMES", NAMES)
    monkeypatch.setattr(caches, "MAX_CACHED_SUBKEYS", SUBKEYS)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host with its agent."""
    found = Host(tmp_path)
    yield found
    found.close()


def check(held: Caches) -> None:
    """Nothing is over its bound, in entries and in bytes."""
    names = [one for some in held._names.values() for one in some.items()]
    derived = [one for some in held._sealing.values() for one in some.items()]
    assert len(held.deks) <= KEYS
    assert len(names) + len(held._names) <= NAMES
    assert len(derived) + len(held._sealing) <= SUBKEYS
    assert len(held._tag_keys) <= SUBKEYS
    assert size(held.deks, list(held.deks.items())) <= KEYS * BYTES["key"]
    assert size(held._tag_keys, list(held._tag_keys.items())) <= SUBKEYS * BYTES["derived"]
    assert (
        sum(size(some, []) for some in held._sealing.values()) + size({}, derived)
        <= SUBKEYS * BYTES["derived"]
    )
    ids = sum(len(name) for name, _ in names)
    assert (
        sum(size(some, []) for some in held._names.values()) + size({}, names) <= NAMES * BYTES["name"] + ids
    )


def size(table: dict[Any, Any], entries: list[tuple[Any, Any]]) -> int:
    """Bytes of a dict and of what it holds alone: small numbers are everybody's."""
    parts = (
        part for key, value in entries for part in (key, value, *(value if isinstance(value, tuple) else ()))
    )
    return sys.getsizeof(table) + sum(sys.getsizeof(part) for part in parts if not isinstance(part, int))


def work(writing: WritingKeys, opening: OpeningKeys, people: list[SubjectId]) -> list[bytes]:
    """Everybody is provisioned, sealed for by a session, tagged and opened; their handles."""
    refs = [one.ref for one in writing.provision(people) if isinstance(one, Provisioned)]
    blocks, bodies = [BLOCK] * len(refs), [ref[:4] for ref in refs]
    session = writing.session()
    sealed = [one for one in session.seal(context(), refs, blocks, bodies) if isinstance(one, bytes)]
    assert len(session.tag_keys(refs)) == len(people)
    assert opening.opener().open(context(), refs, blocks, sealed) == bodies
    return refs


def test_a_keyring_s_caches_stay_under_their_bounds(host: Host) -> None:
    """Whoever works with more people than there is room for, a batch at a time, all at once and scattered."""
    keyring = host.keyring
    refs = []
    for at in range(0, len(PEOPLE), BATCH):
        refs += work(keyring, keyring, PEOPLE[at : at + BATCH])
        check(keyring.resident._caches)
    for some in (PEOPLE, PEOPLE[: KEYS // 2], PEOPLE[::7]):
        work(keyring, keyring, some)
        check(keyring.resident._caches)
    assert len(keyring.resident._caches.deks) > tree.PAGE_RECORDS  # and it is still a cache
    shred(keyring, PEOPLE[0], refs[0])
    assert keyring.resident.active(refs[:2], "service")[0] is None
    check(keyring.resident._caches)


def test_opened_node_records_are_a_few_bytes_for_each_page(host: Host) -> None:
    """8 KiB for the quarter of a million people under a node; they go with the epoch."""
    work(host.keyring, host.keyring, PEOPLE)
    nodes = host.keyring.tree._nodes
    assert sum(len(body) for _, body in nodes.values()) < len(nodes) * tree.NODE_PAGES * tree.KEY_BYTES
    assert len(nodes) <= 2  # of six pages, and of the index
    host.keyring.close_epoch()
    assert nodes == {}


def test_the_agent_s_and_its_workers_caches_stay_under_their_bounds(host: Host) -> None:
    """The ingest worker keeps derived keys, the build worker nothing, the agent keys alone."""
    ingest, build = host.ingest(), host.build()
    for at in range(0, len(PEOPLE), BATCH):
        work(ingest, build, PEOPLE[at : at + BATCH])
        for held in (ingest._caches, host.keyring.resident._caches):
            check(held)
    work(ingest, build, PEOPLE)
    check(ingest._caches)
    check(host.keyring.resident._caches)
    assert not any(isinstance(value, dict) for value in vars(build).values())


def test_the_agent_remembers_so_many_writer_sessions_of_a_connection(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest is forgotten; whoever seals with it begins a new one without noticing."""
    monkeypatch.setattr(agentserver, "MAX_SESSIONS", 5)
    connection = Connection("ingest")
    salts = [host.agent.answer(connection, {"op": "begin_session"})["salt"] for _ in range(20)]
    assert list(connection.salts) == salts[-5:]
    ingest = host.ingest()
    (made,) = ingest.provision(PEOPLE[:1])
    assert isinstance(made, Provisioned)
    first = ingest.session()
    for _ in range(5):
        ingest.session()
    (sealed,) = first.seal(context(), [made.ref], [BLOCK], [b"word"])
    assert isinstance(sealed, bytes)
    assert host.build().opener().open(context(), [made.ref], [BLOCK], [sealed]) == [b"word"]
    assert sealed_by(ingest, made.ref)


def test_the_agent_gives_so_many_leases_to_a_connection(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest ends; another connection's stay."""
    monkeypatch.setattr(agentserver, "MAX_LEASES", 5)
    other = host.agent.answer(Connection("build"), {"op": "lease"})["lease"]
    connection = Connection("build")
    leases = [host.agent.answer(connection, {"op": "lease"})["lease"] for _ in range(20)]
    assert host.agent.leases() == 6
    for kept in (other, *leases[-5:]):
        assert host.agent.role_of({"lease": kept}) == "lease"
    with pytest.raises(AgentDenied):
        host.agent.role_of({"lease": leases[-6]})


def test_derived_keys_are_forgotten_with_a_key_and_stay_with_who_was_reading_them() -> None:
    held = Caches()
    gone, stays = b"g" * 16, b"s" * 16
    for ref in (gone, stays):
        for purpose in (1, 2):
            held.deks[locator(ref, purpose)] = Dek(bytes(32), 1, False)
        held.tag_keys(1)[ref] = bytes(32)
        for scope in (b"one", b"other"):
            held.sealing(scope, 1)[ref] = Subkey(bytes(32), bytes(32), 1, 1)
    being_read = held.tag_keys(0), held.sealing(b"one", 0)
    held.forget([gone, b"never there!"], [1, 2])
    assert set(held.deks) == {locator(stays, 1), locator(stays, 2)}
    assert held.tag_keys(0) == held.sealing(b"one", 0) == held.sealing(b"other", 0) == {}
    assert all(set(one) == {gone, stays} for one in being_read)


def test_a_destroyed_key_s_derived_ones_are_not_given_out_again(tmp_path: Path) -> None:
    """In the process that destroyed it, at once."""
    keyring = open_embedded(tmp_path / "keys")
    ann, bob = SubjectId("ann"), SubjectId("bob")
    refs = [one.ref for one in keyring.provision([ann, bob]) if isinstance(one, Provisioned)]
    session = keyring.session()
    assert set(session.tag_keys(refs)) == set(refs)
    assert all(isinstance(one, bytes) for one in session.seal(context(), refs, refs, [b"x", b"y"]))
    keyring.destroy(refs[:1], keyring.fence([(ann, refs[0])], "request"))
    assert set(session.tag_keys(refs)) == {refs[1]}
    shredded, sealed = session.seal(context(), refs, refs, [b"x", b"y"])
    assert isinstance(shredded, Shredded)
    assert isinstance(sealed, bytes)
    keyring.close()


def test_whoever_is_held_or_sealed_by_another_session_is_opened_with_care_among_others(
    tmp_path: Path,
) -> None:
    """Together they take the way of those that look all alike."""
    keyring = open_embedded(tmp_path / "keys")
    people = [SubjectId(f"person {n}") for n in range(5)]
    refs = [one.ref for one in keyring.provision(people) if isinstance(one, Provisioned)]
    bodies = [b"%d" % n for n in range(5)]
    first = keyring.session().seal(context(), refs, refs, bodies)
    second = keyring.session().seal(context(), refs, refs, bodies)
    mixed = [a if n % 2 else b for n, (a, b) in enumerate(zip(first, second, strict=True))]
    for envelopes in (first, mixed):
        sealed = [one for one in envelopes if isinstance(one, bytes)]
        assert keyring.opener().open(context(), refs, refs, sealed) == bodies
    sealed = [one for one in first if isinstance(one, bytes)]
    keyring.hold(refs[2], True)
    found = keyring.opener().open(context(), refs, refs, sealed)
    assert isinstance(found[2], Held)
    assert found[:2] + found[3:] == bodies[:2] + bodies[3:]
    keyring.close()
