"""Re-keying the whole store and its index while everything goes on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.postgres import Postgres
from keys import (
    Effects,
    KeyPlaces,
    Keyring,
    PageStore,
    Provisioned,
    Shredded,
    SqlitePageStore,
    SubjectId,
    embedded_places,
    open_embedded,
    open_keys,
    tree,
)
from keys.postgresstore import PostgresPageStore
from tests.keys.people import BLOCK, context, provision, seal, shred, unseal
from tests.keys.servers import schema_of

PEOPLE = [SubjectId(f"person-{n}") for n in range(40)]


def filled(keyring: Keyring) -> dict[SubjectId, tuple[bytes, bytes]]:
    """People with something sealed, over several pages."""
    found = {}
    for at, who in enumerate(PEOPLE):
        ref = provision(keyring, who).ref
        found[who] = ref, seal(keyring, ref)
        if at % 8 == 0:
            keyring.mint(tree.PAGE_RECORDS // 2)
    return found


def everything_is_there(keyring: Keyring, people: dict[SubjectId, tuple[bytes, bytes]]) -> None:
    """By name and by handle."""
    for who, (ref, sealed) in people.items():
        assert keyring.ref_of(who) == ref
        assert unseal(keyring, ref, sealed) == b"word"
    assert keyring.check().problems == ()


def test_every_page_node_and_name_has_a_fresh_key(tmp_path: Path) -> None:
    """And everybody is found, in this process and in those that ran before."""
    keyring, running = open_embedded(tmp_path / "keys"), open_embedded(tmp_path / "keys")
    people = filled(keyring)
    everything_is_there(running, people)
    store = keyring._store
    before = (store.pages(store.page_ids()), store.nodes(), list(store.all_names()))
    steps: list[tuple[str, int, int]] = []
    done = keyring.rekey(progress=lambda *step: steps.append(step))
    after = (store.pages(store.page_ids()), store.nodes(), list(store.all_names()))
    assert (done.pages, done.names) == (len(before[0]), len(PEOPLE))
    assert [len(part) for part in before] == [len(part) for part in after]
    assert {row.blind for row in before[2]}.isdisjoint(row.blind for row in after[2])
    assert {row.body for row in before[0]}.isdisjoint(row.body for row in after[0])
    assert {row.wrapped for row in before[1]}.isdisjoint(row.wrapped for row in after[1])
    assert steps[-1] == ("names", len(PEOPLE), len(PEOPLE))
    for process in (keyring, running, open_embedded(tmp_path / "keys")):
        everything_is_there(process, people)


def test_an_old_copy_of_the_index_says_nothing_with_todays_keys(tmp_path: Path) -> None:
    """Whoever has the copy, today's page store and the root cannot ask it for a name."""
    keyring = open_embedded(tmp_path / "keys")
    filled(keyring)
    keyring._store.flush_deleted()
    shutil.copy(tmp_path / "keys" / "pages.db", tmp_path / "copy.db")
    keyring.rekey()
    keyring.close_epoch()
    index = keyring.tree.index
    old = SqlitePageStore(tmp_path / "copy.db")
    index._store = old
    index.version = old.meta("index_version") or "1"  # keeps today's ciphers
    digests = index.digests("subject", [who.reveal() for who in PEOPLE])
    assert (
        old.find_blind(
            [row.blind for row in index.rows(digests, [b"r" * 16] * len(digests), [0] * len(digests))]
        )
        == {}
    )


@pytest.mark.parametrize("shape", ["sqlite", "postgres"])
def test_people_come_and_go_while_everything_is_re_keyed(
    tmp_path: Path, shape: str, request: pytest.FixtureRequest
) -> None:
    """Nobody is lost, nobody found twice, the erased stay erased."""
    make: Callable[[], PageStore] = lambda: SqlitePageStore(tmp_path / "pages.db")  # noqa: E731
    if shape == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        make = lambda: PostgresPageStore(server.address()["POSTGRES_DSN"], schema_of(tmp_path))  # noqa: E731
    places = KeyPlaces(embedded_places(tmp_path / "keys").custodian, make)
    keyring, other = open_keys(places, tmp_path / "keys"), open_keys(places, tmp_path / "keys")
    people = filled(keyring)
    stop, failures = threading.Event(), []
    come: dict[SubjectId, tuple[bytes, bytes]] = {}
    gone: list[tuple[bytes, bytes]] = []

    def live() -> None:
        try:
            for n in range(10_000):
                if stop.is_set():
                    return
                who = SubjectId(f"new-{n}")
                (made,) = other.provision([who])
                assert isinstance(made, Provisioned)
                (sealed,) = other.session().seal(context(), [made.ref], [BLOCK], [b"word"])
                assert isinstance(sealed, bytes)
                come[who] = made.ref, sealed
                if n % 5 == 4:
                    shred(other, who, made.ref)
                    gone.append(come.pop(who))
        except BaseException as error:
            failures.append(error)

    living = threading.Thread(target=live)
    living.start()
    try:
        for round_number in range(200):
            keyring.rekey(pause_seconds=0.02)
            if round_number >= 2 and len(come) > 10:
                break
    finally:
        stop.set()
        living.join()
    assert failures == []
    assert len(come) > 10
    fresh = open_keys(places, tmp_path / "keys")
    everything_is_there(fresh, people | come)
    assert all(isinstance(unseal(fresh, ref, sealed), Shredded) for ref, sealed in gone)


class Killed(BaseException):
    """In place of SIGKILL: nothing catches it."""


class KillingEffects(Effects):
    """Dies before or after the n-th effect."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def __call__(self, name: str):  # type: ignore[no-untyped-def]
        self.left -= 1
        if self.left < 0 and name == "keys.rekey":
            raise Killed
        return super().__call__(name)


def test_a_run_killed_at_any_step_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From where it was; whatever is looked up in between is found."""
    monkeypatch.setattr("keys.rekey.PAGES_PER_STEP", 1)
    monkeypatch.setattr("keys.rekey.NAMES_PER_STEP", 7)
    home = tmp_path / "keys"
    people = filled(open_embedded(home))
    pages = len(open_embedded(home)._store.page_ids())
    runs = done_pages = done_names = 0
    while True:
        runs += 1
        keyring = open_embedded(home, effects=KillingEffects(2))
        try:
            done = keyring.rekey()
        except Killed:
            everything_is_there(open_embedded(home), people)
            continue
        done_pages, done_names = done.pages, done.names
        break
    assert runs > 4
    assert done_pages < pages
    assert done_names < len(PEOPLE)
    everything_is_there(open_embedded(home), people)
    assert not open_embedded(home).tree.index.being_replaced


def test_two_runs_at_once_are_one(tmp_path: Path) -> None:
    """Whoever finishes first; the other, and a third that begins meanwhile, lose nobody."""
    home = tmp_path / "keys"
    people = filled(open_embedded(home))
    runs = [open_embedded(home) for _ in range(3)]
    failures: list[BaseException] = []

    def run(keyring: Keyring) -> None:
        try:
            for _ in range(3):
                keyring.rekey()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(keyring,)) for keyring in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    everything_is_there(open_embedded(home), people)
    assert not open_embedded(home).tree.index.being_replaced


def test_a_row_that_moves_between_two_looks_is_found(tmp_path: Path) -> None:
    """Nobody who lives is unknown for a moment, or an erasure would be answered with "nothing stored"."""
    home = tmp_path / "keys"
    keyring, other = open_embedded(home), open_embedded(home)
    people = filled(keyring)
    store = keyring._store
    original = store.find_blind
    for who, (ref, _) in people.items():
        looked = []

        def then_it_moves(blinds: list[bytes]) -> object:
            found = original(blinds)
            if not looked:  # noqa: B023 - used within the turn
                looked.append(True)  # noqa: B023
                other.rekey()
            return found

        store.find_blind = then_it_moves  # type: ignore[method-assign,assignment]
        assert keyring.ref_of(who) == ref
        store.find_blind = original  # type: ignore[method-assign]
        if len(looked) and who == PEOPLE[5]:
            break


def test_a_name_keeps_its_owner_while_the_index_is_re_keyed(tmp_path: Path) -> None:
    """Two people with one e-mail address: the first stays."""
    from keys import Identity

    keyring = open_embedded(tmp_path / "keys")
    ann, bob = (provision(keyring, who).ref for who in PEOPLE[:2])
    mail = Identity("email", "shared@example.org")
    keyring.add_identities([(ann, mail)])
    with keyring._transaction() as writer:
        keyring.tree.add_index_cipher(writer)
        writer.set_meta("index_version", "2")
    keyring.add_identities([(bob, mail)])
    keyring.rekey()
    assert keyring.ref_of(mail) == ann
