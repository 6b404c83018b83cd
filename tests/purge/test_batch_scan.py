"""With the scan of a batch on, each receipt says what the scanner still finds when the keys are gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keys import KeyRecordMissing, SubjectId
from purge import Status, payload_of, scan, scan_for, scanner
from purge.journal import Request
from purge.requestseal import PLAN_PLACE, SUBJECT_CONTEXT
from service.runtime import Runtime, initialise, open_runtime
from tests.world import PAID, VIEWS, paid, publish, send

ANN, BOB, CID, SHORT = (
    SubjectId(one) for one in ("customer-ann-0001", "customer-bob-0001", "customer-cid-1", "7b")
)
PEOPLE = (ANN, BOB, CID, SHORT)


@pytest.fixture
def scanning(tmp_path: Path) -> Iterator[Runtime]:
    """A lake with the setting on; Bob says something of Ann, and nobody anything of Bob."""
    initialise(tmp_path / "lake", [VIEWS])
    config = tmp_path / "lake" / "shredlake.toml"
    config.write_text(config.read_text() + "\n[erasure]\nscan = true\n")
    with open_runtime(tmp_path / "lake") as runtime:
        runtime.lake.types.register(PAID)
        about = paid(CID.reveal(), event_id="4", note=f"sent by {ANN.reveal()}")
        send(runtime, [paid(one.reveal(), event_id=str(n)) for n, one in enumerate(PEOPLE)] + [about])
        publish(runtime)
        yield runtime


def told(request: Request) -> dict[str, Any]:
    """What a receipt states."""
    assert request.status is Status.COMPLETED
    found: dict[str, Any] = payload_of(request.receipt or b"")["predicate"]
    return found


def test_the_receipt_counts_what_others_say_and_the_lake_is_read_once_for_a_batch(
    scanning: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By store; no id and no value; of the one whom nobody names there is nothing, not even the request."""
    opened = []
    inner = scanner.open_forensic
    monkeypatch.setattr(scanner, "open_forensic", lambda *places: opened.append(1) or inner(*places))
    requests = [scanning.purge.submit(one).request.request_id for one in (ANN, BOB)]
    ann, bob = map(told, scanning.purge.run_together(requests))
    assert opened == [1]
    assert (ann["scan"]["apart"], bob["scan"]["apart"]) == ({"events table": 1}, {})
    assert ann["scan"]["left"] == bob["scan"]["left"] == {}
    assert ann["scan"]["opened_values"] > 0
    assert ann["scan"]["not_opened"] == 0
    assert "base32" in " ".join(ann["scan"]["not_searched"])
    assert ANN.reveal() not in str(ann) + str(bob)


def test_what_stands_in_clear_is_named_as_not_addressed_and_holds_nothing_up(scanning: Runtime) -> None:
    """Somebody wrote an id into a registered file, where nobody may."""
    with (scanning.home / "shredlake.toml").open("a") as file:
        file.write(f"# {BOB.reveal()} complained\n")
    bob = told(scanning.purge.run(scanning.purge.submit(BOB).request.request_id))
    (store,) = bob["scan"]["left"]
    assert bob["scan"]["left"][store] == 1
    assert any(store in line and "1 file(s)" in line for line in bob["not_addressed"])


def test_without_the_setting_nothing_is_scanned_and_nothing_said(world: Runtime) -> None:
    """It costs the time of reading the whole lake."""
    send(world, [paid(ANN.reveal(), event_id="1")])
    assert "scan" not in told(world.purge.run(world.purge.submit(ANN).request.request_id))


def test_together_each_is_found_as_alone(scanning: Runtime) -> None:
    """Short and long ids, somebody unknown, and one named twice."""
    scanning.purge.submit(ANN)
    people = [*PEOPLE, SubjectId("nobody-knows-0001"), ANN]
    for one, found in zip(people, scan_for(scanning.home, people), strict=True):
        alone = scan(scanning.home, one)
        assert set(found.findings) == set(alone.findings)
        assert set(found.apart) == set(alone.apart)
        assert (found.failures, found.not_searched) == (alone.failures, alone.not_searched)


def opened(world: Runtime, ref: bytes, sealed: bytes) -> object:
    """What a request's seal opens to with the keys that the lake has now."""
    (found,) = world.keyring.opener().open(SUBJECT_CONTEXT, [ref], [PLAN_PLACE], [sealed])
    return found


@pytest.mark.parametrize("stage", ["fenced", "letters_redacted", "destroyed", "views_rederived"])
def test_a_copy_of_the_journal_of_any_stage_opens_no_id_once_the_request_is_done(
    world: Runtime, stage: str, tmp_path: Path
) -> None:
    """With all keys of today: the one under which the request knew the id is gone before the epoch closes."""
    send(world, [paid(ANN.reveal(), event_id="1")])
    publish(world)
    seen: list[tuple[bytes, bytes]] = []

    def look(done: str, seconds: float, detail: object) -> None:
        if done == stage:
            (row,) = world.purge.journal.all()
            assert row.sealed_ref is not None
            assert row.sealed_subject is not None
            assert opened(world, row.sealed_ref, row.sealed_subject) == ANN.reveal().encode(), (
                "it does until then"
            )
            seen.append((row.sealed_ref, row.sealed_subject))

    request_id = world.purge.submit(ANN).request.request_id
    told(world.purge.run(request_id, look))
    ((ref, sealed),) = seen
    assert list(world.keyring.tree.records_of([ref])) == []
    with pytest.raises(KeyRecordMissing):
        opened(world, ref, sealed)
