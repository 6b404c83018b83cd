"""Inputs of publications: what is recomputed later is what was recomputed from the very snapshot, at no bytes."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyiceberg.table.snapshots import Operation, Snapshot, Summary

from keys import SubjectId
from lake import Housekeeping, Maintenance, SnapshotGone, Upkeep, UpkeepPolicy
from lake.inputs import input_places
from lake.moments import NEVER_MS, is_rewrite, remembered_of
from lake.offsets import REDACTION, UPKEEP, upkeep_summary
from lake.table import summary_of
from projections import Publication
from service.runtime import Runtime
from tests.world import START, Clock, compact_all, erase, make_world, paid, publish, send, shred

PEOPLE = ("ann", "bob", "cid")
NOTHING_STAYS = UpkeepPolicy(keep_snapshots=1, keep_seconds=0, grace_seconds=0)
event = st.tuples(st.sampled_from(PEOPLE), st.integers(-9, 40), st.integers(0, 4), st.integers(0, 1))
step = st.one_of(
    st.tuples(st.just("send"), st.lists(event, min_size=1, max_size=4)),
    st.tuples(st.sampled_from(("publish", "publish", "compact", "merge", "upkeep")), st.none()),
    st.tuples(st.sampled_from(("erase", "shred")), st.sampled_from(PEOPLE)),
    st.tuples(st.just("sleep"), st.just(1)),
)


def play(runtime: Runtime, clock: Clock, steps: list[tuple[str, object]]) -> None:
    """Runs a history; what each publication was made of keeps a tag of the test's own."""
    for number, (verb, detail) in enumerate(steps):
        if verb == "send":
            batch = [
                paid(who, cents, event_id=f"{who}-{n}", revision=rev, at=START + timedelta(days=n))
                for who, cents, n, rev in detail  # type: ignore[attr-defined]
            ]
            send(runtime, batch, key=f"step {number}")
        elif verb == "publish" and runtime.lake.events.snapshot() is not None:
            publish(runtime)
            head = runtime.lake.events.snapshot()
            assert head is not None
            runtime.lake.events.set_tags({f"audit-{head.snapshot_id}": head.snapshot_id})
        elif verb == "compact":
            compact_all(runtime)
        elif verb == "merge":
            for day in Upkeep(runtime.lake).days():
                Upkeep(runtime.lake).merge(day, at_least=2)
        elif verb == "upkeep" and runtime.lake.events.snapshot() is not None:
            Maintenance(runtime.lake, NOTHING_STAYS).run(clock())
        elif verb == "sleep":
            clock.forward(days=1)
        elif verb in ("erase", "shred") and runtime.keyring.ref_of(SubjectId(str(detail))) is not None:
            (erase if verb == "erase" else shred)(runtime, str(detail))


def recomputed(runtime: Runtime, name: str, publication: Publication) -> pl.DataFrame:
    """A publication's input with today's keys."""
    rows = runtime.views.builder.recompute_guarded(runtime.views.registry.get(name), publication).rows
    rows = rows.drop("subject_ref", strict=False)
    return rows.sort(rows.columns)


def publications(runtime: Runtime) -> list[tuple[str, Publication]]:
    """Everything that was ever published."""
    return [(n, one) for n in runtime.views.registry.names() for one in runtime.views.ledger.history(n)]


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(step, min_size=3, max_size=9), st.lists(event, min_size=1, max_size=3))
def test_what_is_recomputed_from_a_later_snapshot_is_what_the_input_s_own_gives(
    steps: list[tuple[str, object]], last: list[tuple[str, int, int, int]]
) -> None:
    """Whatever was ingested, published, erased, merged, sorted and expired in between; and never refused."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        runtime = make_world(Path(folder) / "lake", clock=clock)
        play(runtime, clock, [("send", last), ("publish", None), *steps])
        own = [recomputed(runtime, *one) for one in publications(runtime)]
        reported = [runtime.views._tables.read_aggregate(p.table, p.snapshot_id)
                    for _, p in publications(runtime) if p.grain == "aggregate"]  # fmt: skip
        names = [name for name in runtime.lake.events.metadata().refs if name.startswith("audit-")]
        runtime.lake.events.set_tags({}, names)
        for _ in range(2):
            Maintenance(runtime.lake, NOTHING_STAYS).run(clock())
        later = [recomputed(runtime, *one) for one in publications(runtime)]
        for (name, _), one, other in zip(publications(runtime), own, later, strict=True):
            assert one.equals(other), name
        assert all(
            one.equals(runtime.views._tables.read_aggregate(p.table, p.snapshot_id))
            for one, p in zip(
                reported, [p for _, p in publications(runtime) if p.grain == "aggregate"], strict=True
            )
        )
        runtime.close()


def test_erasures_leave_neither_snapshots_nor_tags_nor_bytes_behind(world: Runtime) -> None:
    """However many: kept are what was ingested, and the head; a sweep leaves what a lake without them has."""
    send(world, [paid(f"p{n}", event_id=str(n), note="n" * 50) for n in range(300)])
    publish(world)
    before = set(world.lake.events.metadata().refs)
    for n in range(6):
        erase(world, f"p{n}")
    metadata = world.lake.events.metadata()
    assert set(metadata.refs) == before
    assert len(metadata.snapshots) == 2
    Housekeeping(world.lake).expire(keep=1)
    Housekeeping(world.lake).sweep(grace_seconds=0)
    files = list((world.home / "lake/warehouse/lake/events/data").rglob("*.parquet"))
    assert len(files) == len(world.lake.events.files())
    assert all(world.views.as_recomputed(name).rows.height for name in world.views.registry.names())


def test_as_of_a_moment_between_erasures_the_state_before_them_is_the_answer(world: Runtime) -> None:
    """Their snapshots are forgotten, and show nothing that the one before does not; no moment is refused."""
    send(world, [paid(f"p{n}", event_id=str(n)) for n in range(5)])
    (first,) = world.lake.events.history()
    moments = []
    for n in range(3):
        erase(world, f"p{n}")
        moments.append(datetime.now(UTC))
    send(world, [paid("late", event_id="late")])
    metadata = world.lake.events.metadata()
    assert remembered_of(metadata)[first.sequence_number or 0].earliest_ms == NEVER_MS
    for moment in moments:
        found = world.lake.replay().as_of(moment)
        assert found.is_exact
        assert found.commit.snapshot_id in {one.snapshot_id for one in metadata.snapshots}
        files = world.lake.replay().files(found.commit.snapshot_id)
        assert sum(file.record_count for file in files) == 5
    Housekeeping(world.lake).expire(keep=1)
    with pytest.raises(SnapshotGone):
        world.lake.replay().as_of(moments[0])


def test_a_snapshot_whose_files_are_old_is_not_forgotten_by_an_erasure(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may be reading it, and a sweep would take its files at once."""
    send(world, [paid(f"p{n}", event_id=str(n)) for n in range(5)])
    erase(world, "p0")
    kept = len(world.lake.events.metadata().snapshots)
    monkeypatch.setattr("lake.housekeeping._YOUNG_SECONDS", -1)
    erase(world, "p1")
    assert len(world.lake.events.metadata().snapshots) == kept + 1
    monkeypatch.undo()
    erase(world, "p2")
    assert len(world.lake.events.metadata().snapshots) == kept


def test_tags_that_older_lakes_named_after_snapshots_are_taken_over(world: Runtime) -> None:
    """One tag stands for inputs between which nothing came in; what is recomputed stays the same."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2")])
    publish(world)
    head = world.lake.events.snapshot()
    assert head is not None
    new = [name for name in world.lake.events.metadata().refs if name.startswith("input-")]
    world.lake.events.set_tags({f"input-{head.snapshot_id}": head.snapshot_id}, new)
    (place,) = input_places(world.lake.events.metadata()).values()
    assert place == head.sequence_number
    send(world, [paid("ann", 1, event_id="3")])
    rows = world.views.as_recomputed("balance").rows
    Maintenance(world.lake, NOTHING_STAYS).run(datetime.now(UTC))
    refs = world.lake.events.metadata().refs
    assert f"input-{place}" in refs
    assert f"input-{head.snapshot_id}" not in refs
    assert world.lake.events.metadata().snapshot_by_id(head.snapshot_id) is None
    assert world.views.as_recomputed("balance").rows.sort("cents").equals(rows.sort("cents"))


def test_an_input_that_nothing_tells_any_more_is_refused_by_name(world: Runtime) -> None:
    """Somebody took the tag away, and upkeep mixed its events with later ones; reported it still is."""
    send(world, [paid("ann", 5, event_id="1")])
    publish(world)
    send(world, [paid("ann", 6, event_id="2")])
    tags = [name for name in world.lake.events.metadata().refs if name.startswith("input-")]
    world.lake.events.set_tags({}, tags)
    compact_all(world)
    Housekeeping(world.lake).expire(keep=1)
    with pytest.raises(SnapshotGone, match="put later events into the same files") as refused:
        world.views.as_recomputed("balance")
    assert "reported" in (refused.value.next_step or "")
    assert world.views.as_reported("balance").rows["cents"].to_list() == [5]


def test_a_commit_that_sealed_letters_anew_is_no_mere_rewrite() -> None:
    """It alone shows them, since in the one before their key is destroyed; so it is not forgotten."""
    before = _snapshot(1, upkeep_summary({}, epoch=1))
    account = summary_of(before)
    for kind, is_same in ((UPKEEP, True), (REDACTION, False)):
        assert is_rewrite(_snapshot(2, upkeep_summary(account, epoch=1, kind=kind)), before) is is_same
    assert not is_rewrite(_snapshot(2, upkeep_summary(account, epoch=1, superseded=1)), before)


def _snapshot(number: int, summary: dict[str, str]) -> Snapshot:
    return Snapshot(
        snapshot_id=number,
        sequence_number=number,
        timestamp_ms=number,
        manifest_list="file:///list",
        summary=Summary(Operation.OVERWRITE, **summary),
    )
