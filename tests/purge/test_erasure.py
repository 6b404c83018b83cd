"""An erasure from request to receipt, and how it must not be untrue."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import purge.verifier
from keys import (
    Effects,
    FenceLog,
    KeyRecordMissing,
    KeysError,
    LeaseBook,
    PageStoreUnavailable,
    Shredded,
    SqlitePageStore,
    SubjectId,
)
from keys.caches import Dek
from keys.embedded import EmbeddedCustodian
from keys.keyring import Keyring
from lake import EventRead, dead_letters
from lake import verify as verify_lake
from projections import StateDamaged, StateStore
from purge import (
    STAGES,
    IdempotencyConflict,
    NotCancellable,
    Status,
    UnderHold,
    UnknownPurpose,
    UnknownSubject,
    VerificationFailed,
    payload_of,
    scan,
    verifier_key,
)
from purge.verifier import Refused, verify
from service.runtime import Runtime, open_runtime
from tests.world import erase, make_world, paid, publish, send, shred

ANN = SubjectId("customer-ann-0001")


def fill(runtime: Runtime) -> None:
    """Two people, published."""
    send(
        runtime, [paid("customer-ann-0001", 5, event_id="1", note="my secret"), paid("bob", 7, event_id="2")]
    )
    publish(runtime)
    runtime.purge.log_publications()


def vkey(runtime: Runtime) -> str:
    """The key receipts verify with."""
    (public,) = runtime.keyring.custodian.public_keys().values()
    return verifier_key(public)


def test_every_stage_runs_in_order_and_a_receipt_comes_out(world: Runtime) -> None:
    """The receipt verifies, names the person only by commitment, and its level is E1."""
    fill(world)
    submitted = world.purge.submit(ANN)
    seen: list[str] = []
    done = world.purge.run(submitted.request.request_id, lambda stage, seconds, detail: seen.append(stage))
    assert tuple(seen) == STAGES[1:]
    assert done.status is Status.COMPLETED
    assert done.receipt is not None
    statement = verify(done.receipt, vkey(world), ANN.reveal(), submitted.salt)
    assert statement["predicate"]["level"]["name"] == "E1"
    assert ANN.reveal() not in json.dumps(statement)
    with pytest.raises(Refused, match="somebody else"):
        verify(done.receipt, vkey(world), "bob", submitted.salt)


def test_the_plan_says_what_is_then_touched_and_changes_nothing(world: Runtime) -> None:
    """Blocks, events, views; and reading it leaves the person readable."""
    fill(world)
    plan = world.purge.plan(ANN)
    assert (plan.blocks, plan.events, set(plan.views)) == (1, 1, {"people_per_day", "balance", "bands"})
    assert world.keyring.epoch() == 0
    receipt = payload_of(world.purge.run(world.purge.submit(ANN).request.request_id).receipt or b"")
    assert receipt["predicate"]["touched"]["severed_blocks"] == plan.blocks


def test_any_changed_byte_of_a_receipt_is_refused(world: Runtime) -> None:
    """Every byte, one after the other."""
    fill(world)
    receipt = world.purge.journal.get(erase(world, ANN.reveal())).receipt
    assert receipt is not None
    key = vkey(world)
    verify(receipt, key)
    for at in range(len(receipt)):
        flipped = bytearray(receipt)
        flipped[at] ^= 1
        with pytest.raises(Refused):
            verify(bytes(flipped), key)


def test_the_verifier_is_one_file_that_runs_alone(world: Runtime, tmp_path: Path) -> None:
    """Copied elsewhere it needs nothing of ours; its exit code is the verdict."""
    fill(world)
    receipt = world.purge.journal.get(erase(world, ANN.reveal())).receipt
    assert receipt is not None
    script = tmp_path / "verifier.py"
    shutil.copy(purge.verifier.__file__, script)
    (tmp_path / "r.json").write_bytes(receipt)
    (tmp_path / "k.vkey").write_text(vkey(world))
    command = [sys.executable, "-I", str(script), str(tmp_path / "r.json"), str(tmp_path / "k.vkey")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "VERIFIED")
    (tmp_path / "r.json").write_bytes(receipt.replace(b"E1", b"E2") + b" ")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.split(":")[0]) == (1, "REFUSED")


def test_a_receipt_of_another_lake_s_key_is_refused(world: Runtime, tmp_path: Path) -> None:
    """The auditor's key decides, not the receipt's."""
    fill(world)
    receipt = world.purge.journal.get(erase(world, ANN.reveal())).receipt or b""
    other = EmbeddedCustodian.create(tmp_path / "other.key")
    (public,) = other.public_keys().values()
    with pytest.raises(Refused, match="another key"):
        verify(receipt, verifier_key(public))


def test_the_scan_finds_nobody_afterwards_and_finds_them_in_a_copy_from_before(
    world: Runtime, tmp_path: Path
) -> None:
    """The same scan, so it can find."""
    fill(world)
    before = tmp_path / "before"
    shutil.copytree(world.home, before)
    erase(world, ANN.reveal())
    assert scan(world.home, ANN).findings == ()
    found = scan(before, ANN)
    assert {f.how for f in found.findings} == {"opened"}


def test_an_erasure_whose_destruction_is_skipped_is_found_out(world: Runtime) -> None:
    """The falsified run: fenced, but the key still there; verification refuses and the scan finds."""
    fill(world)
    world.keyring.destroy = lambda refs, fences: 1  # type: ignore[method-assign]
    with pytest.raises(VerificationFailed, match="fence log and key pages agree"):
        erase(world, ANN.reveal())
    (request,) = world.purge.journal.all()
    assert request.status is Status.INCOMPLETE
    assert request.receipt is None
    assert scan(world.home, ANN).findings


def test_a_copy_from_before_and_today_s_root_open_nothing_of_the_person(
    world: Runtime, tmp_path: Path
) -> None:
    """Key pages from the copy, root of today: the erased stay shut, everyone else opens."""
    fill(world)
    others = [paid(f"p{n}", n, event_id=f"o{n}") for n in range(20)]
    send(world, others)
    ref = world.keyring.ref_of(ANN)
    assert ref is not None
    before = tmp_path / "before"
    shutil.copytree(world.home / "keys", before / "keys")
    blocks = [
        pl.read_parquet(p, hive_partitioning=False)
        for p in (world.home / "lake/warehouse/lake").rglob("*.parquet")
    ]
    erase(world, ANN.reveal())
    shutil.copy(world.home / "keys" / "root.key", before / "keys" / "root.key")
    custodian = EmbeddedCustodian(before / "keys" / "root.key")
    with pytest.raises(KeysError):  # the copy's very node keys are of a retired root version
        Keyring(
            custodian,
            SqlitePageStore(before / "keys" / "pages.db"),
            FenceLog(before / "fences.db", custodian.secret("fence"), world.lake.clock),
            LeaseBook(before / "leases.db"),
        )
    replay = world.lake.replay()
    head = replay.resolve(None)
    assert head is not None
    rows = replay.events(replay.files(head.snapshot_id), EventRead("Paid", ("subject",))).frame
    assert set(rows["subject"].drop_nulls()) == {"bob", *(f"p{n}" for n in range(20))}
    assert any(ref in frame["subject_ref"].to_list() for frame in blocks), "the old rows were there to open"


def test_unattributed_dead_letters_that_name_the_person_are_taken_out(world: Runtime) -> None:
    """A broken line has no subject; it is found by its bytes, and the others stay."""
    from lake import HttpBatch

    fill(world)
    lines = [b'{"broken": "customer-ann-0001"', b'{"broken": "somebody else"']
    world.lake.ingestor().run(HttpBatch(lines, "k", world.lake.types))
    old = world.lake.events.history()[0].snapshot_id
    erase(world, ANN.reveal())
    assert [letter.raw for letter in dead_letters(world.lake)] == [lines[1]]
    assert scan(world.home, ANN).findings == ()
    rows = pl.concat(
        [
            pl.read_parquet(f.file_path.removeprefix("file://"), hive_partitioning=False)
            for f in world.lake.replay().files(old)
        ]
    )
    refs = rows.filter(pl.col("event_type") == "shredlake.dead_letter")["subject_ref"].to_list()
    with pytest.raises(KeysError):
        world.keyring.resident.deks(refs, "service")


def test_a_redaction_rewrites_the_files_that_hold_the_letters_alone(world: Runtime) -> None:
    """The day may be large, and others of it may be sorted already."""
    from lake import HttpBatch, LetterRedaction

    fill(world)
    others = {file.file_path for file in world.lake.events.files()}
    lines = [b'{"broken": "customer-ann-0001"', b'{"broken": "somebody else"']
    world.lake.ingestor().run(HttpBatch(lines, "k", world.lake.types))
    assert LetterRedaction(world.lake).run(lambda raw: b"ann" in raw) == 1
    assert others < {file.file_path for file in world.lake.events.files()}
    assert [letter.raw for letter in dead_letters(world.lake)] == [lines[1]]
    assert verify_lake(world.lake, deep=True).problems == ()


def test_the_same_person_twice_is_one_request_and_one_receipt(world: Runtime) -> None:
    """Before, during and after."""
    fill(world)
    first, second = world.purge.submit(ANN), world.purge.submit(ANN)
    assert first.request.request_id == second.request.request_id
    assert second.salt is None
    world.purge.run(first.request.request_id)
    again = world.purge.submit(ANN)
    assert again.request.receipt == world.purge.run(again.request.request_id).receipt


def _run(home: str, start: object, said: object) -> None:
    with open_runtime(Path(home)) as runtime:
        start.wait()  # type: ignore[attr-defined]
        request = runtime.purge.submit(ANN).request
        said.put(runtime.purge.run(request.request_id).receipt)  # type: ignore[attr-defined]


def test_two_erasures_of_one_person_at_once_give_one_receipt(world: Runtime) -> None:
    """Two processes; the other one answers with the same receipt."""
    fill(world)
    context = multiprocessing.get_context("spawn")
    start, said = context.Event(), context.Queue()
    workers = [context.Process(target=_run, args=(str(world.home), start, said)) for _ in range(2)]
    for worker in workers:
        worker.start()
    start.set()
    receipts = {said.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(receipts) == 1
    assert (
        world.purge.log.size()
        == len({p.build_id for v in world.views.registry.names() for p in world.views.ledger.history(v)}) + 1
    )


def test_an_idempotency_key_belongs_to_one_request(world: Runtime) -> None:
    """The same key for somebody else is a mistake, not a second request."""
    fill(world)
    world.purge.submit(ANN, idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        world.purge.submit(SubjectId("bob"), idempotency_key="k")


def test_nobody_is_guessed(world: Runtime) -> None:
    """An id that was never stored is an answer of its own."""
    fill(world)
    with pytest.raises(UnknownSubject):
        world.purge.submit(SubjectId("customer-ann-0002"))


def test_a_legal_hold_stops_the_erasure_and_its_release_lets_it_go_on(world: Runtime) -> None:
    """Held: not destroyed, readable by no view; released: done."""
    fill(world)
    world.purge.hold(ANN, "court")
    request = world.purge.submit(SubjectId("bob")).request
    world.purge.run(request.request_id)
    publish(world, rebuild=True)
    assert world.views.as_reported("balance").rows.height == 0
    world.purge.release(ANN)
    publish(world, rebuild=True)
    assert world.views.as_reported("balance").rows["cents"].to_list() == [5]
    request = world.purge.submit(ANN).request
    world.purge.hold(ANN, "court")
    with pytest.raises(UnderHold):
        world.purge.run(request.request_id)
    assert world.purge.journal.get(request.request_id).status is Status.HELD
    waiting = world.purge.release(ANN)
    assert waiting is not None
    assert world.purge.run(waiting.request_id).status is Status.COMPLETED


def test_a_request_can_be_taken_back_until_the_fence(world: Runtime) -> None:
    """Then never."""
    fill(world)
    request = world.purge.submit(ANN).request
    assert world.purge.journal.cancel(request.request_id).status is Status.CANCELLED
    assert world.purge.run(request.request_id).stage == "received"
    done = world.purge.run(world.purge.submit(ANN).request.request_id)
    with pytest.raises(NotCancellable):
        world.purge.journal.cancel(done.request_id)


def test_an_unregistered_file_makes_completed_impossible(world: Runtime) -> None:
    """A store nobody declared could hold anything."""
    fill(world)
    stray = world.home / "export.csv"
    stray.write_text("who knows")
    with pytest.raises(VerificationFailed, match="unregistered"):
        erase(world, ANN.reveal())
    stray.unlink()
    (request,) = world.purge.resume_all()
    assert request.status is Status.COMPLETED


def test_withdrawn_consent_shreds_one_purpose_and_leaves_the_other(world: Runtime) -> None:
    """Only that purpose's key dies."""
    from lake import Facet

    world.lake.types.register(
        {
            "name": "Click",
            "type": "object",
            "properties": {"page": {"type": "string"}, "ad": {"type": "string", "purpose": "marketing"}},
        }
    )
    send(world, [paid(ANN.reveal(), event_id="1") | {"type": "Click", "data": {"page": "p", "ad": "a"}}])
    request = world.purge.submit(ANN, purpose="marketing").request
    assert world.purge.run(request.request_id).status is Status.COMPLETED
    replay = world.lake.replay()
    head = replay.resolve(None)
    assert head is not None
    files = replay.files(head.snapshot_id)
    page = replay.events(files, EventRead("Click", ("page", "event_id"))).frame
    assert page["page"].to_list() == ["p"]
    ad = replay.events(files, EventRead("Click", ("ad", "event_id"), Facet("subject", "marketing"))).frame
    assert ad["ad"].to_list() == [None]
    send(world, [paid(ANN.reveal(), event_id="2") | {"type": "Click", "data": {"page": "q"}}])


def test_a_person_who_comes_back_lawfully_is_a_new_handle(world: Runtime) -> None:
    """And can be erased again, with a receipt of its own."""
    fill(world)
    first = erase(world, ANN.reveal())
    world.keyring.authorize_return(ANN)
    assert send(world, [paid(ANN.reveal(), event_id="back")]).events == 1
    assert world.views.ledger.current() is not None
    second = erase(world, ANN.reveal())
    assert first != second
    assert world.keyring.erased(ANN) == Shredded(second, 2)


def test_states_of_every_version_lose_the_person(world: Runtime, tmp_path: Path) -> None:
    """Also of versions that are not published any more: their buckets are forgotten."""
    fill(world)
    builder = world.views.builder
    version = builder._state_version(builder.version_of(world.views.registry.get("balance")))
    states = builder._states
    old = states.known(version)
    ref = world.keyring.ref_of(ANN)
    assert ref is not None
    bucket = ref[0]
    copy = tmp_path / "states"
    copy.mkdir()
    states._db.flush_deleted()
    shutil.copy(world.home / "views" / "states.db", copy / "states.db")
    erase(world, ANN.reveal())
    before = StateStore(copy / "states.db", world.keyring, Effects())
    with pytest.raises(StateDamaged, match="key pages"):
        before.load(version, [bucket])
    assert before.load(version, old.keys() - {bucket}).rows.height <= 1


def test_another_process_opens_no_old_state_after_the_receipt(world: Runtime) -> None:
    """It loaded the state's key between fence and drop, where no fence leaves it out."""
    fill(world)
    with sqlite3.connect(world.home / "views" / "states.db") as db:
        refs = [row[0] for row in db.execute("SELECT ref FROM states")]
    with open_runtime(world.home) as server:

        def server_reads(stage: str, seconds: float, detail: object) -> None:
            if stage == "unreadable":
                assert all(isinstance(one, Dek) for one in resident.deks(refs, "system").values())

        resident = server.keyring.resident
        request = world.purge.submit(ANN).request
        done = world.purge.run(request.request_id, server_reads)
        gone = [ref for ref in refs if not list(world.keyring.tree.records_of([ref]))]
        assert gone, "the state of the person's bucket has lost its key"
        for ref in gone:
            with pytest.raises(KeyRecordMissing):
                resident.deks([ref], "system")
    assert done.receipt is not None
    since = {stage.stage: stage.finished_at for stage in done.stages}["states_unreadable"]
    assert payload_of(done.receipt)["predicate"]["level"]["E0"]["since"] == since


def test_an_erasure_whose_record_stays_in_the_pages_is_found_out(world: Runtime) -> None:
    """The fence alone does not verify: the pages themselves are looked at."""
    fill(world)
    world.keyring.tree.remove = lambda *_: 0  # type: ignore[method-assign]
    with pytest.raises(VerificationFailed, match="no key record is left"):
        erase(world, ANN.reveal())


def test_a_misspelt_purpose_is_refused(world: Runtime) -> None:
    """Nothing is fenced, nothing is claimed."""
    fill(world)
    with pytest.raises(UnknownPurpose):
        world.purge.submit(ANN, purpose="marketting")
    assert world.keyring.epoch() == 0


def test_keys_of_forgotten_states_die_though_the_process_was_killed_in_between(
    world: Runtime, tmp_path: Path
) -> None:
    """Which keys to destroy is written in the transaction that lets go of them."""
    fill(world)
    builder = world.views.builder
    version = builder._state_version(builder.version_of(world.views.registry.get("balance")))
    ref = world.keyring.ref_of(ANN)
    assert ref is not None
    builder._states._db.flush_deleted()
    (tmp_path / "copy").mkdir()
    shutil.copy(world.home / "views" / "states.db", tmp_path / "copy" / "states.db")
    builder._states.drop_doomed = lambda: None  # type: ignore[method-assign] # killed right here
    world.views.forget_people([ref])
    StateStore(world.home / "views" / "states.db", world.keyring, Effects())  # the next process
    before = StateStore(tmp_path / "copy" / "states.db", world.keyring, Effects())
    with pytest.raises(StateDamaged, match="key pages"):
        before.load(version, [ref[0]])


def test_keys_of_forgotten_states_die_at_the_second_try_of_the_same_process(
    world: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no state of that version is left that would remind it."""
    fill(world)
    states, ref = world.views.builder._states, world.keyring.ref_of(ANN)
    assert ref is not None
    balance = world.views.builder.version_of(world.views.registry.get("balance"))
    (mine,) = (version for version in states.versions() if version.startswith(balance))
    for version in states.versions():
        states.forget(version, [bucket for bucket in range(256) if bucket != ref[0]])
    states._db.flush_deleted()
    (tmp_path / "copy").mkdir()
    shutil.copy(world.home / "views" / "states.db", tmp_path / "copy" / "states.db")

    def gone(refs: object) -> int:
        raise PageStoreUnavailable("the page store gave up")

    with monkeypatch.context() as outage:
        outage.setattr(world.keyring, "drop", gone)
        for _ in range(len(states.versions())):
            with pytest.raises(PageStoreUnavailable):
                world.views.forget_people([ref])
            if not states.versions():
                break
    world.views.forget_people([ref])
    before = StateStore(tmp_path / "copy" / "states.db", world.keyring, Effects())
    with pytest.raises(StateDamaged, match="key pages"):
        before.load(mine, [ref[0]])


def test_a_state_from_before_an_erasure_is_not_saved_after_it(world: Runtime) -> None:
    """A build that was under way keeps nothing of the person, also when it dies then."""
    fill(world)
    builder = world.views.builder
    view = world.views.registry.get("balance")
    version = builder._state_version(builder.version_of(view))
    whole = builder._states.load(version, range(256))
    head = world.lake.events.snapshot()
    assert head is not None
    erase(world, ANN.reveal())
    records = world.keyring.stats()["records"]
    assert not builder._states.save(version, whole, range(256), head.snapshot_id, 0)
    assert world.keyring.stats()["records"] == records, "the keys minted for it are gone again"
    rows = builder._states.load(version, range(256)).rows
    assert rows["cents__low"].to_list() == [7]


def test_a_redaction_killed_before_its_key_died_is_finished_by_its_repetition(world: Runtime) -> None:
    """The key of the replaced letters is found from the kept snapshots."""
    from lake import HttpBatch, LetterRedaction

    fill(world)
    lines = [b'{"broken": "customer-ann-0001"', b'{"broken": "somebody else"']
    world.lake.ingestor().run(HttpBatch(lines, "k", world.lake.types))
    killed = LetterRedaction(world.lake)
    killed._replaced_keys = list  # type: ignore[method-assign,assignment] # right here
    assert killed.run(lambda raw: b"ann" in raw) == 1
    assert scan(world.home, ANN).findings
    assert LetterRedaction(world.lake).run(lambda raw: b"ann" in raw) == 0
    erase(world, ANN.reveal())
    assert scan(world.home, ANN).findings == ()
    assert [letter.raw for letter in dead_letters(world.lake)] == [lines[1]]


def test_letters_of_an_ingest_that_was_killed_before_its_commit_are_reached(tmp_path: Path) -> None:
    """Its data file belongs to no snapshot, and its letters' key would live on."""
    from keys import Effects
    from lake import HttpBatch

    class Killed(BaseException):
        pass

    armed: list[bool] = []

    def observe(when: str, name: str) -> None:
        if armed and when == "before" and name.startswith("commit:lake"):
            armed.clear()
            raise Killed

    broken = b'{"broken": "customer-ann-0001"'
    with make_world(tmp_path / "lake", effects=Effects(observe)) as world:
        fill(world)
        armed.append(True)
        with pytest.raises(Killed):
            world.lake.ingestor().run(HttpBatch([broken], "k", world.lake.types))
    with open_runtime(tmp_path / "lake") as world:
        assert scan(world.home, ANN).findings
        erase(world, ANN.reveal())
        assert scan(world.home, ANN).findings == ()


def test_letters_that_are_about_to_be_committed_are_not_lost_to_an_erasure(world: Runtime) -> None:
    """An erasure of anybody makes the batch be sealed anew, under a key that nobody takes for abandoned."""
    from lake import HttpBatch, LetterRedaction

    fill(world)
    ingestor = world.lake.ingestor()
    prepare, raced = ingestor._prepare, []

    def overtaken(parts: Any) -> Any:
        prepared = prepare(parts)
        if not raced:
            raced.append(True)
            shred(world, "bob")
            LetterRedaction(world.lake, sleep=lambda seconds: None).run(lambda raw: False)
        return prepared

    ingestor._prepare = overtaken  # type: ignore[method-assign]
    ingestor.run(HttpBatch([b"{broken"], "k", world.lake.types))
    assert [letter.raw for letter in dead_letters(world.lake)][-1] == b"{broken"


def test_a_view_whose_code_is_gone_is_withdrawn(world: Runtime) -> None:
    """It cannot be derived anew, so it does not go on counting the person."""
    fill(world)
    del world.views.registry._views["people_per_day"]
    erase(world, ANN.reveal())
    release = world.views.ledger.current()
    assert release is not None
    assert set(release.entries) == {"cents_per_day", "balance", "bands"}


def test_fewer_buckets_hide_nobody(world: Runtime) -> None:
    """States of another number of buckets are forgotten by their own number."""
    fill(world)
    builder = world.views.builder
    version = builder._state_version(builder.version_of(world.views.registry.get("balance")))
    ref = world.keyring.ref_of(ANN)
    assert ref is not None
    builder._bits = 2
    erase(world, ANN.reveal())
    assert ref[0] not in builder._states.known(version)
