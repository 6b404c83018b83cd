"""What a dry run says is what the round then does."""

from __future__ import annotations

import os
import time
from pathlib import Path

from attrs import evolve

from lake import Housekeeping, Maintenance, Step, Upkeep, UpkeepPolicy, explain
from lake.objects import StoredObject
from service.runtime import Runtime
from tests.world import Clock, erase, paid, publish, send, shred

POLICY = UpkeepPolicy(merge_files=3, keep_snapshots=2, keep_seconds=0)


def commits(runtime: Runtime, count: int, name: str) -> None:
    """So many commits of an event of five people each."""
    for number in range(count):
        send(runtime, [paid(f"person-{n}", n, event_id=f"{name}-{number}-{n}", note="n") for n in range(5)])


def stored(runtime: Runtime) -> list[StoredObject]:
    """Everything below the tables."""
    objects = runtime.lake.warehouse.objects
    return list(objects.objects(objects.root))


def let_everything_be_old(runtime: Runtime) -> None:
    """As if it had been written two hours ago."""
    long_ago = time.time() - 7200
    for path in (runtime.home / "lake" / "warehouse").rglob("*"):
        os.utime(path, (long_ago, long_ago))


def comparable(steps: list[Step]) -> list[Step]:
    """Without what a file shrinks to when it is written anew, which nobody knows before."""
    return [evolve(one, bytes_after=0) for one in steps]


def lived_in(runtime: Runtime, clock: Clock) -> None:
    """A sorted day with dead bytes, a closed day with some as well, a day to merge, and litter."""
    commits(runtime, 4, "first")
    publish(runtime)
    clock.forward(days=1)
    Maintenance(runtime.lake, POLICY).run(clock())
    commits(runtime, 2, "second")
    shred(runtime, "person-1")
    clock.forward(days=1)
    commits(runtime, 5, "third")
    location = runtime.lake.events.load().location()
    for name in ("0" * 32 + ".parquet", "1" * 32 + ".parquet"):
        (Path(location.removeprefix("file://")) / "data" / name).write_bytes(b"left by a killed writer")


def test_a_dry_run_tells_every_step_and_changes_nothing(slow_world: Runtime, clock: Clock) -> None:
    """Tags, merges, days to sort and those with dead bytes, snapshots, files and bytes: to the last one."""
    lived_in(slow_world, clock)
    let_everything_be_old(slow_world)
    work = Maintenance(slow_world.lake, POLICY)
    before = stored(slow_world)
    told = work.plan(clock())
    assert stored(slow_world) == before
    done = work.run(clock())
    assert comparable(told) == comparable(done)
    assert {one.what for one in done} == {"tag", "merge", "compact", "expire", "sweep"}
    compacted = [one for one in done if one.what == "compact"]
    assert [(one.day.day, one.severed) for one in compacted if one.day] == [(1, 1), (2, 2)]
    assert all(0 < one.bytes_after <= one.bytes for one in done if one.what in ("merge", "compact"))


def test_what_is_swept_is_told_with_what_expires_before_it(slow_world: Runtime, clock: Clock) -> None:
    """Files of snapshots that the same round forgets count, and those of snapshots that stay do not."""
    lived_in(slow_world, clock)
    work = Maintenance(slow_world.lake, POLICY)
    let_everything_be_old(slow_world)
    (sweep,) = [one for one in work.plan(clock()) if one.what == "sweep"]
    kept_longer = Maintenance(slow_world.lake, evolve(POLICY, keep_seconds=3600))
    (less,) = [one for one in kept_longer.plan(clock()) if one.what == "sweep"]
    now = Housekeeping(slow_world.lake).sweep(3600, dry_run=True)
    assert (less.before, less.bytes) == (len(now), sum(one.bytes for one in now))
    assert less.before >= 2, "the litter"
    assert sweep.before > less.before
    assert sweep.bytes > less.bytes


def test_a_round_that_only_looks_for_dead_bytes_is_foreseen_as_well(
    slow_world: Runtime, clock: Clock
) -> None:
    """Its note that there are none is a commit: one more snapshot to forget, and nothing to sort."""
    commits(slow_world, 3, "only")
    clock.forward(days=1)
    work = Maintenance(slow_world.lake, POLICY)
    work.run(clock())
    erase(slow_world, "person-2")
    work.run(clock())  # sorts what the erasure rewrote
    assert Upkeep(slow_world.lake).has_unseen_fence() is False
    shred(slow_world, "person-3")
    work.run(clock())
    assert Upkeep(slow_world.lake).has_unseen_fence() is True
    let_everything_be_old(slow_world)
    told = work.plan(clock())
    assert comparable(told) == comparable(work.run(clock()))
    assert "compact" not in {one.what for one in told}


def test_explain_tells_the_next_round_and_the_file_that_comes_of_a_merge(
    slow_world: Runtime, clock: Clock
) -> None:
    """The same steps, as far as they are told without opening a file."""
    lived_in(slow_world, clock)
    let_everything_be_old(slow_world)
    found = explain(slow_world.lake, clock(), POLICY)
    told = Maintenance(slow_world.lake, POLICY).plan(clock())
    merges = [one for one in told if one.what == "merge"]
    assert [one for one in found.next_round if one.what == "merge"] == merges
    assert found.next_merge_bytes == merges[0].bytes
    assert [one.day.day for one in found.next_round if one.what == "compact" and one.day] == [2]
    patient = explain(slow_world.lake, clock(), evolve(POLICY, merge_files=10))
    assert patient.next_merge_bytes == merges[0].bytes * 10 // 5
    assert patient.largest_day_bytes == max(one.bytes for one in told if one.what != "sweep")
