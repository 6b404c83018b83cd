"""Ways in which "erased" could be untrue: races, failed transactions, restores, returns.

Races are made to happen by a collaborator that does its work and then, once, lets another process in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from keys import (
    CustodianUnavailable,
    EmbeddedCustodian,
    EnvelopeFault,
    FenceLog,
    GateStatus,
    InvalidTransition,
    KeyRecordMissing,
    Keyring,
    LeaseBook,
    Provisioned,
    RestoreGateClosed,
    Shredded,
    SqlitePageStore,
    SubjectErased,
    TamperedEnvelope,
    WrongKey,
    open_embedded,
    tree,
)
from keys.leases import RENEW_AFTER_SECONDS
from tests.keys.people import (
    ANN,
    BOB,
    WORD,
    assemble,
    backup,
    now,
    provision,
    restore,
    seal,
    shred,
    unseal,
)

Meanwhile = list[Callable[[], object]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of keys."""
    return tmp_path / "keys"


@pytest.fixture
def keyring(home: Path) -> Keyring:
    """One process's view of it."""
    return open_embedded(home)


class WatchedLog(FenceLog):
    """Reads the log; then, once, something else happens before the reader goes on."""

    meanwhile: Meanwhile

    def refresh(self) -> int:
        newest = super().refresh()
        if self.meanwhile:
            self.meanwhile.pop()()
        return newest


class WatchedStore(SqlitePageStore):
    """Something happens, once, before destroyed epochs are read."""

    meanwhile: Meanwhile

    def destroyed(self) -> dict[int, bytes]:
        if self.meanwhile:
            self.meanwhile.pop()()
        return super().destroyed()


def records(keyring: Keyring) -> list[tree.KeyRecord]:
    """Every key record there is, read past index, cache and fences."""
    pages = keyring.tree.open_pages(keyring._store.page_ids())
    return [tree.decode(record) for _, page in pages for record in tree.records(page)]


def let_the_lease_run_out(keyring: Keyring) -> None:
    """What a second of idleness does."""
    keyring.resident._lease._expires_at = 0.0


# -- leases: nobody reads after an erasure was told to be unreadable --------------------------------


def test_nobody_reads_what_the_barrier_did_not_wait_for(keyring: Keyring, home: Path) -> None:
    """A reader that idled with the key in its cache looks at the epoch; then the erasure runs."""
    ref = provision(keyring).ref
    sealed = seal(keyring, ref)
    clock = [1000.0]
    custodian = EmbeddedCustodian(home / "root.key")
    log = WatchedLog(home / "fences.db", custodian.secret("fence"), now)
    log.meanwhile = []
    reader = assemble(home, fences=log, leases=LeaseBook(home / "leases.db", lambda: clock[0]))
    eraser = assemble(home, leases=LeaseBook(home / "leases.db", lambda: clock[0]))
    assert unseal(reader, ref, sealed) == WORD
    clock[0] += 10
    waited_for: list[int] = []

    def erase() -> None:
        epoch = shred(eraser, ANN, ref)
        waited_for.append(eraser.leases.behind(epoch))

    log.meanwhile.append(erase)
    answer = unseal(reader, ref, sealed)
    assert waited_for == [1] or isinstance(answer, Shredded)
    clock[0] += 10
    assert isinstance(unseal(reader, ref, sealed), Shredded)


def test_a_dropped_key_is_dropped_by_everybody_who_is_made_to_let_go(keyring: Keyring, home: Path) -> None:
    """No fence says that it is gone; a reader with a lease of its own is waited for."""
    clock = [1000.0]
    (made,) = keyring.mint(1, "state")
    sealed = seal(keyring, made.ref, "state")
    reader, eraser = (
        assemble(home, leases=LeaseBook(home / "leases.db", lambda: clock[0])) for _ in range(2)
    )
    assert unseal(reader, made.ref, sealed, "state") == WORD
    eraser.drop([made.ref])
    assert unseal(reader, made.ref, sealed, "state") == WORD, "nothing has told it"
    waiting = threading.Thread(target=eraser.evict_everywhere)
    waiting.start()
    waiting.join(1)
    assert waiting.is_alive(), "the reader's lease runs on"
    clock[0] += RENEW_AFTER_SECONDS
    with pytest.raises(KeyRecordMissing):
        unseal(reader, made.ref, sealed, "state")
    waiting.join(60)
    assert not waiting.is_alive()


# -- purposes: a number means one purpose in every process ------------------------------------------


def test_a_purpose_whose_first_key_could_not_be_made_is_erased_like_any_other(
    keyring: Keyring, home: Path
) -> None:
    """The number that the failed transaction gave out is another purpose's by now."""
    provision(keyring)
    service = open_embedded(home)
    (home / "root.key").rename(home / "away")
    with pytest.raises(CustodianUnavailable):
        service.provision([BOB], "marketing")
    (home / "away").rename(home / "root.key")
    provision(keyring, ANN, "fraud")
    ref = provision(service, BOB, "marketing").ref
    sealed = seal(service, ref, "marketing")
    assert unseal(keyring, ref, sealed, "marketing") == WORD
    shred(keyring, BOB, ref, "marketing")
    let_the_lease_run_out(service)
    assert isinstance(unseal(service, ref, sealed, "marketing"), Shredded)
    assert not [record for record in records(keyring) if record.ref == ref]


def test_a_dropped_key_leaves_the_cache_also_for_purposes_made_elsewhere(
    keyring: Keyring, home: Path
) -> None:
    """A page is loaded whole, with purposes this process never asked for."""
    handle = provision(keyring).ref
    (minted,) = open_embedded(home).mint(1, "state")
    sealed = seal(open_embedded(home), minted.ref, "state")
    keyring.hold(handle, False)  # drops what is cached, so that the page is loaded again
    assert seal(keyring, handle)
    assert any(locator[:16] == minted.ref for locator in keyring.resident._caches.deks)
    keyring.drop([minted.ref])
    with pytest.raises(KeyRecordMissing):
        unseal(keyring, minted.ref, sealed, "state")


# -- generations: what came back is not what was erased ---------------------------------------------


def returned(keyring: Keyring, purpose: str = "marketing") -> Provisioned:
    """Ann withdrew a purpose and gave it again: the same handle, the second generation."""
    ref = provision(keyring).ref
    provision(keyring, ANN, purpose)
    shred(keyring, ANN, ref, purpose)
    keyring.authorize_return(ANN, purpose)
    back = provision(keyring, ANN, purpose)
    assert (back.ref, back.generation) == (ref, 2)
    return back


@pytest.mark.parametrize("generation", [0, 1, 3, 0xFFFF])
def test_a_changed_generation_is_tampering_and_never_an_erasure(keyring: Keyring, generation: int) -> None:
    """Also where the fence log knows an erasure of that generation."""
    ref = returned(keyring).ref
    sealed = seal(keyring, ref, "marketing")
    with pytest.raises(TamperedEnvelope) as refused:
        unseal(keyring, ref, sealed[:3] + generation.to_bytes(2, "big") + sealed[5:], "marketing")
    assert refused.value.fault is EnvelopeFault.GENERATION_CHANGED


def test_a_generation_that_the_person_never_had_is_another_key_and_never_an_erasure(keyring: Keyring) -> None:
    """With a commitment that is not the key's at hand either."""
    ref = returned(keyring).ref
    sealed = seal(keyring, ref, "marketing")
    with pytest.raises(WrongKey) as refused:
        unseal(keyring, ref, sealed[:3] + b"\0\3" + sealed[5:21] + bytes(32) + sealed[53:], "marketing")
    assert refused.value.fault is EnvelopeFault.GENERATION_UNKNOWN


def test_what_was_sealed_before_a_return_stays_shredded(keyring: Keyring) -> None:
    """And what was sealed after it opens, until that is erased as well."""
    ref = provision(keyring).ref
    provision(keyring, ANN, "marketing")
    old = seal(keyring, ref, "marketing")
    first = shred(keyring, ANN, ref, "marketing")
    keyring.authorize_return(ANN, "marketing")
    provision(keyring, ANN, "marketing")
    new = seal(keyring, ref, "marketing")
    assert unseal(keyring, ref, old, "marketing") == Shredded("r1", first)
    assert unseal(keyring, ref, new, "marketing") == WORD
    second = shred(keyring, ANN, ref, "marketing")
    assert unseal(keyring, ref, old, "marketing") == Shredded("r1", first)
    assert unseal(keyring, ref, new, "marketing") == Shredded("r2", second)


def test_a_lost_key_of_a_returned_purpose_is_missing_and_not_shredded(keyring: Keyring, home: Path) -> None:
    """The fence of its first generation says nothing of the second."""
    ref = returned(keyring).ref
    sealed = seal(keyring, ref, "marketing")
    keyring.drop([ref])  # without a fence
    with pytest.raises(KeyRecordMissing):
        unseal(open_embedded(home), ref, sealed, "marketing")


def test_nobody_returns_before_the_destruction_is_done(keyring: Keyring) -> None:
    """The new key would have the old handle and be destroyed with it."""
    ref = provision(keyring).ref
    fences = keyring.fence([(ANN, ref)], "r")
    with pytest.raises(InvalidTransition, match="not finished"):
        keyring.authorize_return(ANN)
    keyring.destroy([ref], fences)
    keyring.authorize_return(ANN)
    back = provision(keyring)
    assert back.ref != ref
    assert unseal(keyring, back.ref, seal(keyring, back.ref)) == WORD


def test_a_return_does_not_reach_past_an_erasure_that_comes_meanwhile(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is not destroyed yet when the return is written down."""
    shred(keyring, ANN, provision(keyring).ref)
    keyring.authorize_return(ANN)
    back = provision(keyring).ref
    look = keyring.gate

    def another_erases_after_the_look() -> GateStatus:
        status = look()
        keyring.fences.append([(*_tags(keyring, back), "*", 2)], "second")
        return status

    monkeypatch.setattr(keyring, "gate", another_erases_after_the_look)
    keyring.authorize_return(ANN)
    monkeypatch.undo()
    keyring.catch_up()
    assert isinstance(keyring.provision([ANN])[0], SubjectErased)
    assert keyring.converge() == 1
    assert isinstance(keyring.provision([ANN])[0], SubjectErased)


def _tags(keyring: Keyring, ref: bytes) -> tuple[bytes, bytes]:
    return keyring.fences.subject_tag(ANN), keyring.fences.ref_tag(ref)


def test_a_return_authorised_elsewhere_is_served(keyring: Keyring, home: Path) -> None:
    """By a process that had refused the person before."""
    service = open_embedded(home)
    shred(keyring, ANN, provision(keyring).ref)
    assert isinstance(service.provision([ANN])[0], SubjectErased)
    keyring.authorize_return(ANN)
    assert provision(service).generation == 2


def test_a_person_erased_twice_is_erased_twice(keyring: Keyring) -> None:
    """Each return needs its own authorisation, and gets its own generation and handle."""
    refs, sealed = [], []
    for generation in (1, 2, 3):
        made = provision(keyring)
        assert made.generation == generation
        refs.append(made.ref)
        sealed.append(seal(keyring, made.ref))
        assert unseal(keyring, made.ref, sealed[-1]) == WORD
        shred(keyring, ANN, made.ref)
        assert isinstance(keyring.provision([ANN])[0], SubjectErased)
        keyring.authorize_return(ANN)
    assert len(set(refs)) == 3
    answers = [unseal(keyring, ref, one) for ref, one in zip(refs, sealed, strict=True)]
    assert answers == [Shredded(f"r{n}", n) for n in (1, 2, 3)]


# -- the restore gate -------------------------------------------------------------------------------


def test_converging_once_destroys_everything_that_is_fenced(keyring: Keyring, home: Path) -> None:
    """Also several fences of one person: two purposes withdrawn, another person erased."""
    ann, bob = provision(keyring, ANN).ref, provision(keyring, BOB).ref
    for purpose in ("marketing", "fraud"):
        provision(keyring, ANN, purpose)
    backup(home / "pages.db", home / "backup")
    shred(keyring, ANN, ann, "marketing")
    shred(keyring, ANN, ann, "fraud")
    shred(keyring, BOB, bob)
    keyring.close()
    restore(home / "backup", home / "pages.db")
    restored = open_embedded(home)
    assert restored.gate().pending_epochs == (1, 2, 3)
    assert restored.converge() == 3
    assert restored.gate().is_open
    assert [(r.ref, r.purpose_code) for r in records(restored)] == [(ann, 1)]
    assert restored.converge() == 0


def test_nobody_is_fenced_with_an_older_fence_log(keyring: Keyring, home: Path) -> None:
    """The new fence would take a lost one's number, and the gate would open upon it."""
    ann, bob = provision(keyring, ANN).ref, provision(keyring, BOB).ref
    backup(home / "fences.db", home / "backup")
    shred(keyring, ANN, ann)
    keyring.close()
    restore(home / "backup", home / "fences.db")
    restored = open_embedded(home)
    with pytest.raises(RestoreGateClosed):
        restored.fence([(BOB, bob)], "r")
    with pytest.raises(RestoreGateClosed):
        restored.authorize_return(ANN)
    assert restored.gate().fence_log_behind
    assert restored.epoch() == 0


def test_an_erasure_under_way_does_not_look_like_an_older_fence_log(keyring: Keyring, home: Path) -> None:
    """Fence and destruction by another process, between the two looks of the gate."""
    ref = provision(keyring).ref
    store = WatchedStore(home / "pages.db")
    store.meanwhile = [lambda: shred(keyring, ANN, ref)]
    assert assemble(home, store=store).gate().is_open


def test_a_killed_erasure_is_finished_by_converging(keyring: Keyring, home: Path) -> None:
    """Fenced, not destroyed: the record is there, nobody reads it, and it goes."""
    ref = provision(keyring).ref
    sealed = seal(keyring, ref)
    keyring.fence([(ANN, ref)], "r")
    later = open_embedded(home)
    assert [record.ref for record in records(later)] == [ref]
    assert unseal(later, ref, sealed) == Shredded("r", 1)
    assert not later.gate().is_open
    assert later.converge() == 1
    assert records(later) == []
    assert later.gate().is_open


# -- destruction ------------------------------------------------------------------------------------


def test_destroying_again_is_success_and_changes_nothing(keyring: Keyring) -> None:
    """A resumed erasure may not know that it was done."""
    ann, bob = provision(keyring, ANN).ref, provision(keyring, BOB).ref
    fences = keyring.fence([(ANN, ann)], "r")
    assert [keyring.destroy([ann], fences) for _ in range(3)] == [1, 0, 0]
    assert [record.ref for record in records(keyring)] == [bob]


def test_a_person_in_several_pages_is_destroyed_in_all(keyring: Keyring) -> None:
    """A purpose given later lies in a later page; neighbours in both stay."""
    ref = provision(keyring).ref
    others = [made.ref for made in keyring.mint(tree.PAGE_RECORDS)]
    provision(keyring, ANN, "marketing")
    assert keyring.tree.pages_of([ref]) == [0, 1]
    shred(keyring, ANN, ref)
    assert [record.ref for record in records(keyring)] == others


def test_a_destruction_that_fails_leaves_the_person_fenced_and_is_repeated(
    keyring: Keyring, home: Path
) -> None:
    """The root is out of reach in the middle: nothing half done, nothing said to be done."""
    ref = provision(keyring).ref
    sealed = seal(keyring, ref)
    fences = keyring.fence([(ANN, ref)], "r")
    (home / "root.key").rename(home / "away")
    with pytest.raises(CustodianUnavailable):
        keyring.destroy([ref], fences)
    (home / "away").rename(home / "root.key")
    assert not keyring.gate().is_open
    assert isinstance(unseal(open_embedded(home), ref, sealed), Shredded)
    assert keyring.destroy([ref], fences) == 1
    assert keyring.gate().is_open


def test_closing_an_epoch_opens_nothing_and_shuts_nobody_out(keyring: Keyring, home: Path) -> None:
    """Twice, with processes that run on, and people who come in between."""
    running, refs, sealed = open_embedded(home), [], []
    for who in (ANN, BOB):
        refs.append(provision(running, who).ref)
        sealed.append(seal(running, refs[-1]))
        closed = keyring.close_epoch()
        assert closed.old_wrap_refused
    assert [unseal(running, ref, one) for ref, one in zip(refs, sealed, strict=True)] == [WORD, WORD]
    status = keyring.custodian.status()
    assert status.latest_version == status.minimum_version == 4


def test_a_destruction_repeated_after_a_lawful_return_spares_the_new_key(keyring: Keyring) -> None:
    """A crash may make an erasure repeat its step; the person has come back for that purpose meanwhile."""
    ref = provision(keyring).ref
    provision(keyring, ANN, "marketing")
    fences = keyring.fence([(ANN, ref)], "r", "marketing")
    assert keyring.destroy([ref], fences) == 1
    keyring.authorize_return(ANN, "marketing")
    provision(keyring, ANN, "marketing")
    sealed = seal(keyring, ref, "marketing")
    assert keyring.destroy([ref], fences) == 0
    assert unseal(keyring, ref, sealed, "marketing") == WORD


def test_a_withdrawn_purpose_leaves_no_row_behind_on_its_page(keyring: Keyring) -> None:
    """Its record lay on another page than the rest of the person."""
    ref = provision(keyring).ref
    keyring.mint(tree.PAGE_RECORDS)
    provision(keyring, ANN, "marketing")
    shred(keyring, ANN, ref, "marketing")
    assert keyring._store.elsewhere_of([ref]) == []
    assert keyring.tree.pages_of([ref]) == [0]
    assert keyring.check().problems == ()
