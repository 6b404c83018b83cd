"""Requests that wait are carried on together: each stage is done once, and a receipt comes out for each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from keys import CustodianUnavailable, Effects, Shredded, SubjectId
from purge import STAGES, Status, UnderHold, payload_of
from purge.verifier import verify
from service.runtime import Runtime, open_runtime
from tests.purge.test_erasure import vkey
from tests.world import make_world, paid, publish, send

PEOPLE = [f"person-{n:04}" for n in range(12)]


def fill(runtime: Runtime) -> None:
    """Twelve people in two commits, published, and a broken line that names two of them."""
    from lake import HttpBatch

    send(runtime, [paid(one, 5, event_id=one, note="n") for one in PEOPLE])
    send(runtime, [paid(one, 7, event_id=f"{one}-b") for one in PEOPLE[:6]])
    broken = b'{"broken": "person-0001 and person-0002"'
    runtime.lake.ingestor().run(HttpBatch([broken], "k", runtime.lake.types))
    publish(runtime)


def submit_all(runtime: Runtime, people: list[str]) -> dict[str, str]:
    """Request id → person."""
    return {runtime.purge.submit(SubjectId(one)).request.request_id: one for one in people}


def test_each_stage_runs_once_for_all_that_wait_and_each_has_a_receipt_of_its_own(tmp_path: Path) -> None:
    """One fence round, destruction, close of the epoch and rewrite; counts are of each person alone."""
    passed: Counter[str] = Counter()

    def count(when: str, name: str) -> None:
        passed[name] += when == "after"

    with make_world(tmp_path / "lake", effects=Effects(count)) as runtime:
        fill(runtime)
        requests = submit_all(runtime, PEOPLE[:10])
        passed.clear()
        seen: list[str] = []
        done = runtime.purge.resume_all(lambda stage, seconds, detail: seen.append(stage))
        assert [one.status for one in done] == [Status.COMPLETED] * 10
        assert tuple(seen) == STAGES[1:]
        assert {name: passed[name] for name in ("keys.fence", "keys.destroy", "keys.evict")} == {
            "keys.fence": 1,
            "keys.destroy": 1,
            "keys.evict": 1,
        }
        assert passed["release"] == 2  # one publication, one look at what was set aside
        receipts = [payload_of(one.receipt or b"")["predicate"] for one in done]
        by_person = dict(zip([requests[one.request_id] for one in done], receipts, strict=True))
        assert len({one["epoch"] for one in receipts}) == 10
        assert by_person["person-0001"]["touched"]["blocks"] == 2
        assert by_person["person-0008"]["touched"]["blocks"] == 1
        severed = {person: one["touched"]["severed_blocks"] for person, one in by_person.items()}
        assert severed == {person: 2 if person in PEOPLE[:6] else 1 for person in PEOPLE[:10]}
        letters = {person for person, one in by_person.items() if one["touched"]["dead_letters"]}
        assert letters == {"person-0001", "person-0002"}
        for one in done:
            verify(one.receipt or b"", vkey(runtime))
            erased = runtime.keyring.erased(SubjectId(requests[one.request_id]))
            assert isinstance(erased, Shredded)
            assert erased.receipt_id == one.request_id
        assert runtime.views.as_reported("people_per_day").rows["people"].sum() == 2


def test_requests_at_different_stages_join_and_go_on_together(world: Runtime) -> None:
    """Those further on wait for the others."""
    fill(world)
    requests = list(submit_all(world, PEOPLE[:4]))
    real = world.purge._steps._views_rederived

    def away(batch: Any) -> Any:
        raise CustodianUnavailable("away")

    world.purge._steps._views_rederived = away  # type: ignore[method-assign]
    world.purge.run_together(requests[:2])
    world.purge._steps._views_rederived = real  # type: ignore[method-assign]
    assert {world.purge.journal.get(one).stage for one in requests[:2]} == {"unreadable"}
    seen: list[str] = []
    done = world.purge.run_together(requests, lambda stage, seconds, detail: seen.append(stage))
    assert tuple(seen) == STAGES[1:]
    assert {one.status for one in done} == {Status.COMPLETED}


@pytest.mark.parametrize("at", [one for one in STAGES if one not in ("received", "hold_checked")])
def test_one_request_that_cannot_go_on_stops_no_other(world: Runtime, at: str) -> None:
    """Whatever stage it fails at, and whatever error that no retry helps; then it goes on alone."""
    fill(world)
    requests = list(submit_all(world, PEOPLE[:5]))
    bad = requests[3]
    real = world.purge._steps.run

    def run(stage: str, batch: Any) -> Any:
        if stage == at and any(one.request_id == bad for one in batch):
            raise ValueError("this one cannot")
        return real(stage, batch)

    failures: dict[str, Exception] = {}
    world.purge._steps.run = run  # type: ignore[method-assign]
    done = world.purge.run_together(requests, on_failure=failures.__setitem__)
    world.purge._steps.run = real  # type: ignore[method-assign]
    assert list(failures) == [bad]
    assert [one.status for one in done] == [
        Status.INCOMPLETE if one == bad else Status.COMPLETED for one in requests
    ]
    assert [one.status for one in world.purge.resume_all()] == [Status.COMPLETED]


def test_a_held_person_waits_and_the_others_are_erased(world: Runtime) -> None:
    """Before the fence."""
    fill(world)
    requests = list(submit_all(world, PEOPLE[:3]))
    world.purge.hold(SubjectId(PEOPLE[1]), "court")
    failures: dict[str, Exception] = {}
    done = world.purge.run_together(requests, on_failure=failures.__setitem__)
    assert [one.status for one in done] == [Status.COMPLETED, Status.HELD, Status.COMPLETED]
    assert isinstance(failures[requests[1]], UnderHold)


def test_a_request_that_was_cancelled_is_left_alone_by_the_batch(world: Runtime) -> None:
    """Its person stays."""
    fill(world)
    requests = list(submit_all(world, PEOPLE[:2]))
    world.purge.journal.cancel(requests[0])
    done = world.purge.run_together(requests)
    assert [one.status for one in done] == [Status.CANCELLED, Status.COMPLETED]
    assert world.keyring.erased(SubjectId(PEOPLE[0])) is None


def test_pending_requests_of_an_earlier_process_are_resumed_too(tmp_path: Path) -> None:
    """Asked for and never begun is waiting as well."""
    with make_world(tmp_path / "lake") as runtime:
        fill(runtime)
        submit_all(runtime, PEOPLE[:3])
    with open_runtime(tmp_path / "lake") as again:
        assert [one.status for one in again.purge.resume_all()] == [Status.COMPLETED] * 3
        assert again.purge.resume_all() == []
