"""The keyring: what opens, what is shredded, and what is an error."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keys import (
    ALL_PURPOSES,
    CustodianUnavailable,
    FieldContext,
    Held,
    Identity,
    InvalidName,
    InvalidTransition,
    KeyRecordMissing,
    Keyring,
    LeaseExpired,
    PageDamaged,
    PageMissing,
    Provisioned,
    RestoreGateClosed,
    RootMismatch,
    Shredded,
    SubjectErased,
    SubjectId,
    TamperedEnvelope,
    embedded_places,
    open_embedded,
    open_forensic,
)
from keys.leases import Lease, LeaseBook, Seen

ANN, BOB = SubjectId("ann"), SubjectId("bob")
CONTEXT = FieldContext(b"t" * 16, 16, "personal", "service", "T", 1)
BLOCK = b"b" * 16


@pytest.fixture
def keyring(tmp_path: Path) -> Iterator[Keyring]:
    """Keys of their own."""
    found = open_embedded(tmp_path / "keys")
    yield found
    found.close()


def ref(keyring: Keyring, subject: SubjectId = ANN, purpose: str = "service") -> bytes:
    """A provisioned handle."""
    (made,) = keyring.provision([subject], purpose)
    assert isinstance(made, Provisioned)
    return made.ref


def seal(keyring: Keyring, handle: bytes, context: FieldContext = CONTEXT) -> bytes:
    """A sealed word."""
    (sealed,) = keyring.session().seal(context, [handle], [BLOCK], [b"word"])
    assert isinstance(sealed, bytes)
    return sealed


def unseal(keyring: Keyring, handle: bytes, sealed: bytes, context: FieldContext = CONTEXT) -> Any:
    """What it opens to."""
    return keyring.opener().open(context, [handle], [BLOCK], [sealed])[0]


def shred(keyring: Keyring, subject: SubjectId, handle: bytes, purpose: str = ALL_PURPOSES) -> int:
    """Fence and destroy; the epoch."""
    fences = keyring.fence([(subject, handle)], f"r{keyring.epoch() + 1}", purpose)
    keyring.destroy([handle], fences)
    return fences[-1].epoch


def test_a_person_has_one_handle(keyring: Keyring) -> None:
    """Found again, also twice in a batch."""
    made = keyring.provision([ANN, BOB, ANN])
    assert [m.ref for m in made if isinstance(m, Provisioned)][0::2] == [ref(keyring)] * 2
    assert keyring.ref_of(ANN) != keyring.ref_of(BOB)


def test_the_erased_are_refused_one_by_one(keyring: Keyring) -> None:
    """The rest of the batch goes on."""
    shred(keyring, ANN, ref(keyring))
    refused, made = keyring.provision([ANN, BOB])
    assert isinstance(refused, SubjectErased)
    assert isinstance(made, Provisioned)


def test_the_value_shredded_and_errors_are_never_mixed(keyring: Keyring, tmp_path: Path) -> None:
    """One handle through all answers."""
    handle = ref(keyring)
    sealed = seal(keyring, handle)
    assert unseal(keyring, handle, sealed) == b"word"
    with pytest.raises(KeyRecordMissing):
        unseal(keyring, b"x" * 16, sealed)
    with pytest.raises(TamperedEnvelope):
        keyring.opener().open(CONTEXT, [handle], [b"c" * 16], [sealed])
    epoch = shred(keyring, ANN, handle)
    assert unseal(keyring, handle, sealed) == Shredded("r1", epoch)


def test_a_key_that_is_fenced_and_not_yet_destroyed_is_shredded(keyring: Keyring, tmp_path: Path) -> None:
    """Whoever loads it in between does not keep it past the destruction."""
    handle = ref(keyring)
    sealed = seal(keyring, handle)
    other = open_embedded(tmp_path / "keys")
    fences = keyring.fence([(ANN, handle)], "r")
    assert isinstance(unseal(other, handle, sealed), Shredded)
    keyring.destroy([handle], fences)
    assert isinstance(unseal(other, handle, sealed), Shredded)
    other.close()


def test_destroying_without_a_fence_is_refused(keyring: Keyring) -> None:
    """The key stays."""
    handle = ref(keyring)
    with pytest.raises(InvalidTransition):
        keyring.destroy([handle], [])
    assert keyring.ref_of(ANN) == handle


def _edit(path: Path, sql: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(sql)


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("DELETE FROM pages", PageMissing),
        ("UPDATE pages SET body = zeroblob(200)", PageDamaged),
        ("UPDATE nodes SET body = zeroblob(200) WHERE node_id = 0", PageDamaged),
        ("DELETE FROM nodes WHERE node_id = 0", KeyRecordMissing),
    ],
)
def test_a_damaged_page_store_is_an_error_and_never_an_erasure(
    keyring: Keyring, tmp_path: Path, sql: str, error: type[Exception]
) -> None:
    """Each damage has its own."""
    handle = ref(keyring)
    sealed = seal(keyring, handle)
    keyring.close()
    _edit(tmp_path / "keys" / "pages.db", sql)
    fresh = open_embedded(tmp_path / "keys")
    with pytest.raises(error):
        unseal(fresh, handle, sealed)
    fresh.close()


def test_a_damaged_page_affects_no_other(keyring: Keyring, tmp_path: Path) -> None:
    """Page 0 is broken, people of page 1 open."""
    people = [SubjectId(f"p{n}") for n in range(1500)]
    refs = [m.ref for m in keyring.provision(people) if isinstance(m, Provisioned)]
    first, last = seal(keyring, refs[0]), seal(keyring, refs[-1])
    keyring.close()
    _edit(tmp_path / "keys" / "pages.db", "UPDATE pages SET body = zeroblob(200) WHERE page_id = 0")
    fresh = open_embedded(tmp_path / "keys")
    assert unseal(fresh, refs[-1], last) == b"word"
    with pytest.raises(PageDamaged, match="page"):
        unseal(fresh, refs[0], first)
    fresh.close()


def test_an_absent_root_is_unavailable_and_never_an_erasure(keyring: Keyring, tmp_path: Path) -> None:
    """Put back, everything opens."""
    handle = ref(keyring)
    sealed = seal(keyring, handle)
    keyring.close()
    root = tmp_path / "keys" / "root.key"
    found = open_embedded(tmp_path / "keys")
    root.rename(tmp_path / "away")
    with pytest.raises(CustodianUnavailable) as raised:
        unseal(found, handle, sealed)
    assert raised.value.retry_helps
    (tmp_path / "away").rename(root)
    assert unseal(found, handle, sealed) == b"word"
    found.close()


def test_the_root_of_another_store_is_refused(keyring: Keyring, tmp_path: Path) -> None:
    """At once, before anything is read with it."""
    keyring.close()
    (tmp_path / "keys" / "root.key").unlink()
    with pytest.raises(RootMismatch):
        open_embedded(tmp_path / "keys")


def test_withdrawing_one_purpose_leaves_the_other(keyring: Keyring) -> None:
    """Only that key dies."""
    handle = ref(keyring)
    assert ref(keyring, ANN, "marketing") == handle
    marketing = FieldContext(b"t" * 16, 16, "personal", "marketing", "T", 1)
    word, ad = seal(keyring, handle), seal(keyring, handle, marketing)
    shred(keyring, ANN, handle, "marketing")
    assert unseal(keyring, handle, word) == b"word"
    assert isinstance(unseal(keyring, handle, ad, marketing), Shredded)


def test_a_lawful_return_is_a_new_handle_and_generation(keyring: Keyring) -> None:
    """What was sealed before stays shut."""
    handle = ref(keyring)
    sealed = seal(keyring, handle)
    with pytest.raises(InvalidTransition):
        keyring.authorize_return(ANN)
    shred(keyring, ANN, handle)
    keyring.authorize_return(ANN)
    (back,) = keyring.provision([ANN])
    assert isinstance(back, Provisioned)
    assert (back.ref != handle, back.generation) == (True, 2)
    assert isinstance(unseal(keyring, handle, sealed), Shredded)


def test_a_held_subject_is_kept_and_read_by_nobody(keyring: Keyring) -> None:
    """Until it is released."""
    handle = ref(keyring)
    sealed = seal(keyring, handle)
    keyring.hold(handle, True)
    assert unseal(keyring, handle, sealed) == Held()
    keyring.hold(handle, False)
    assert unseal(keyring, handle, sealed) == b"word"


def test_a_hold_placed_elsewhere_is_seen(keyring: Keyring, tmp_path: Path) -> None:
    """By a process that has the key in its cache, once its lease is renewed."""
    handle = ref(keyring)
    sealed = seal(keyring, handle)
    other = open_embedded(tmp_path / "keys")
    assert unseal(other, handle, sealed) == b"word"
    keyring.hold(handle, True)
    other.resident._lease._expires_at = 0.0
    assert unseal(other, handle, sealed) == Held()
    other.close()


def test_an_identity_of_a_destroyed_subject_is_not_indexed(keyring: Keyring) -> None:
    """Also when the event that names it was on its way."""
    handle = ref(keyring)
    shred(keyring, ANN, handle)
    keyring.add_identities([(handle, Identity("email", "ann@example.org"))])
    assert keyring.ref_of(Identity("email", "ann@example.org")) is None


def test_new_people_go_in_after_another_process_re_keyed_the_page(keyring: Keyring, tmp_path: Path) -> None:
    """A cached node record is read again."""
    handle = ref(keyring)
    other = open_embedded(tmp_path / "keys")
    assert isinstance(other.provision([BOB])[0], Provisioned)
    shred(keyring, ANN, handle)
    assert isinstance(other.provision([SubjectId("cid")])[0], Provisioned)
    other.close()


def test_identities_go_with_their_subject(keyring: Keyring) -> None:
    """Found while they live, then nowhere."""
    handle = ref(keyring)
    keyring.add_identities([(handle, Identity("email", "Ann@Example.org"))])
    assert keyring.ref_of(Identity("email", " ann@example.ORG ")) == handle
    shred(keyring, ANN, handle)
    assert keyring.ref_of(Identity("email", "ann@example.org")) is None
    assert keyring.ref_of(ANN) is None


def test_an_older_page_store_is_not_served_until_it_converged(keyring: Keyring, tmp_path: Path) -> None:
    """The fence log is replayed over it; then the gate is open and the person gone."""
    handle, other = ref(keyring), ref(keyring, BOB)
    sealed, theirs = seal(keyring, handle), seal(keyring, other)
    keyring._store.flush_deleted()
    shutil.copy(tmp_path / "keys" / "pages.db", tmp_path / "backup.db")
    shred(keyring, ANN, handle)
    keyring.close()
    for name in ("pages.db-wal", "pages.db-shm"):
        (tmp_path / "keys" / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.db", tmp_path / "keys" / "pages.db")
    restored = open_embedded(tmp_path / "keys")
    assert restored.gate().pending_epochs == (1,)
    assert isinstance(unseal(restored, handle, sealed), Shredded), "even before it converged"
    assert restored.converge() == 1
    assert restored.gate().is_open
    assert restored.ref_of(ANN) is None
    assert unseal(restored, other, theirs) == b"word"
    restored.close()


def test_an_older_fence_log_shuts_the_gate(keyring: Keyring, tmp_path: Path) -> None:
    """Nothing can be proven with it, and the error says which file to bring."""
    handle = ref(keyring)
    keyring.fences._db.flush_deleted()
    shutil.copy(tmp_path / "keys" / "fences.db", tmp_path / "backup.db")
    shred(keyring, ANN, handle)
    keyring.close()
    shutil.copy(tmp_path / "backup.db", tmp_path / "keys" / "fences.db")
    restored = open_embedded(tmp_path / "keys")
    assert restored.gate().fence_log_behind
    with pytest.raises(RestoreGateClosed) as raised:
        restored.converge()
    assert "newest copy of the fence log" in raised.value.next_step
    restored.close()


def test_an_edited_fence_log_is_detected(keyring: Keyring, tmp_path: Path) -> None:
    """Any row, by the chain."""
    for person in (ANN, BOB):
        shred(keyring, person, ref(keyring, person))
    assert keyring.fences.verify() == 2
    _edit(tmp_path / "keys" / "fences.db", "UPDATE fences SET request_id = 'x' WHERE epoch = 1")
    with pytest.raises(ValueError, match="epoch 1"):
        keyring.fences.verify()


def test_after_an_epoch_close_older_pages_open_nothing(keyring: Keyring, tmp_path: Path) -> None:
    """With today's root; and everything live goes on."""
    handle, other = ref(keyring), ref(keyring, BOB)
    theirs = seal(keyring, other)
    keyring._store.flush_deleted()
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "keys", old)
    shred(keyring, ANN, handle)
    reader = open_embedded(tmp_path / "keys")
    assert unseal(reader, other, theirs) == b"word"
    before = keyring.custodian.calls
    closed = keyring.close_epoch()
    assert closed.old_wrap_refused
    assert closed.custodian_calls == keyring.custodian.calls - before
    assert 5 <= closed.custodian_calls < 10
    shutil.copy(tmp_path / "keys" / "root.key", old / "root.key")
    with pytest.raises(Exception, match="retired"):
        open_embedded(old)
    assert unseal(reader, other, theirs) == b"word"
    reader.close()


@pytest.mark.parametrize("columns", [("pages", "body"), ("pages", "body", "nodes", "body")])
def test_old_records_do_not_open_with_what_is_live(
    keyring: Keyring, tmp_path: Path, columns: tuple[str, ...]
) -> None:
    """A destruction changes the page's key and the node's key, not only their contents.

    Old pages are put under today's node records, and old pages with old node records under today's
    wrapped node keys: what a thief of an older backup would try with a running lake.
    """
    handle, other = ref(keyring), ref(keyring, BOB)
    sealed = seal(keyring, handle)
    keyring._store.flush_deleted()
    shutil.copy(tmp_path / "keys" / "pages.db", tmp_path / "old.db")
    shred(keyring, ANN, handle)
    keyring.close_epoch()
    keyring._store.flush_deleted()
    keyring.close()
    with sqlite3.connect(tmp_path / "keys" / "pages.db") as db:
        db.execute("ATTACH ? AS old", (str(tmp_path / "old.db"),))
        for table, column in zip(columns[::2], columns[1::2], strict=True):
            key = {"pages": "page_id", "nodes": "node_id"}[table]
            db.execute(
                f"UPDATE main.{table} SET {column} = "
                f"(SELECT {column} FROM old.{table} AS o WHERE o.{key} = main.{table}.{key}) WHERE {key} >= 0"
            )
        db.execute("INSERT OR IGNORE INTO main.elsewhere SELECT * FROM old.elsewhere")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    thief = open_forensic(embedded_places(tmp_path / "keys", create=False), scratch)
    for one in (handle, other):
        with pytest.raises(PageDamaged):
            unseal(thief, one, sealed)
    thief.close()


def _provision(folder: str, start: Any, said: Any) -> None:
    keyring = open_embedded(Path(folder))
    people = [SubjectId(f"p{n}") for n in range(300)]
    start.wait()
    refs: list[bytes] = []
    for at in range(0, 300, 7):
        refs += [m.ref for m in keyring.provision(people[at : at + 7]) if isinstance(m, Provisioned)]
    said.put(refs)


def test_two_processes_give_a_person_one_key(keyring: Keyring, tmp_path: Path) -> None:
    """Nobody is lost, nobody has two."""
    context = multiprocessing.get_context("spawn")
    start, said = context.Event(), context.Queue()
    workers = [
        context.Process(target=_provision, args=(str(tmp_path / "keys"), start, said)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    start.set()
    first, second = said.get(timeout=60), said.get(timeout=60)
    for worker in workers:
        worker.join(30)
    assert first == second
    assert len(set(first)) == 300
    assert keyring.stats()["records"] == 300


def _read_on(folder: str, handle: bytes, sealed: bytes, said: Any, go: Any) -> None:
    keyring = open_embedded(Path(folder))
    assert unseal(keyring, handle, sealed) == b"word"
    said.put("ready")
    go.get()
    said.put(type(unseal(keyring, handle, sealed)).__name__)


def test_a_process_that_slept_through_an_erasure_refuses_when_it_wakes(
    keyring: Keyring, tmp_path: Path
) -> None:
    """Stopped with the key in its cache; its lease runs out; awake, it answers Shredded."""
    handle = ref(keyring)
    sealed = seal(keyring, handle)
    context = multiprocessing.get_context("spawn")
    said, go = context.SimpleQueue(), context.SimpleQueue()
    reader = context.Process(target=_read_on, args=(str(tmp_path / "keys"), handle, sealed, said, go))
    reader.start()
    assert said.get() == "ready"
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGSTOP)
    epoch = shred(keyring, ANN, handle)
    waited = keyring.wait_until_unreadable(epoch)
    assert waited <= 5
    os.kill(reader.pid, signal.SIGCONT)
    go.put("go")
    assert said.get() == "Shredded"
    reader.join(10)


def test_what_was_opened_past_the_lease_is_thrown_away(tmp_path: Path) -> None:
    """A pause between opening and handing out."""
    now = [100.0]
    book = LeaseBook(tmp_path / "leases.db", lambda: now[0])
    evicted: list[int] = []
    lease = Lease(book, lambda: Seen(7), evicted.append)
    assert lease.ensure() == 7
    now[0] += 2.9
    lease.check()
    now[0] += 0.2
    with pytest.raises(LeaseExpired):
        lease.check()
    assert book.behind(8) == 0, "an expired lease holds nobody up"
    lease.ensure()
    assert book.behind(8) == 1
    assert book.behind(7) == 0
    assert evicted == [7]


@pytest.mark.parametrize(
    "value", ["", "x" * 65_537, "x" * 20 + "\ud800"], ids=["empty", "too long", "half a pair"]
)
def test_an_id_that_cannot_be_one_is_refused(value: str) -> None:
    """Without being repeated in the error."""
    with pytest.raises(InvalidName) as raised:
        SubjectId(value)
    assert "x" * 20 not in str(raised.value)


def test_an_id_is_in_no_text(keyring: Keyring) -> None:
    """repr, str, formatting, pickles."""
    secret = SubjectId("very-secret-name")
    for text in (
        repr(secret),
        str(secret),
        f"{secret}",
        repr([secret]),
        repr(Identity("email", "very-secret-name")),
    ):
        assert "secret-name" not in text
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_no_key_file_holds_an_id(keyring: Keyring, tmp_path: Path) -> None:
    """Only keyed hashes and ciphertext."""
    secret = SubjectId("very-secret-name")
    handle = ref(keyring, secret)
    shred(keyring, secret, handle)
    for path in (tmp_path / "keys").iterdir():
        assert b"very-secret-name" not in path.read_bytes()


def test_a_batch_that_an_erasure_overtook_in_another_thread_is_opened_again(keyring: Keyring) -> None:
    """Threads share a lease: what was opened under the older epoch is not handed out."""
    handle = ref(keyring)
    sealed = seal(keyring, handle)
    original, overtaken = keyring.resident.check_lease, []

    def overtake() -> None:
        if not overtaken:
            overtaken.append(True)
            shred(keyring, ANN, handle)
        original()

    keyring.resident.check_lease = overtake  # type: ignore[method-assign]
    assert isinstance(unseal(keyring, handle, sealed), Shredded)
