"""Upkeep: a table that stays fast, loses nothing, and forgets what it must."""

from __future__ import annotations

import itertools
import threading
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from attrs import define, field
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.manifest import DataFile
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.typedef import Record

from keys import Effects
from lake import (
    Housekeeping,
    Maintenance,
    Place,
    SnapshotGone,
    Upkeep,
    UpkeepPolicy,
    block_rows,
    events,
    explain,
    housekeeping,
    places_of,
    privacy_lint,
    verify,
)
from lake.levels import Level, Origin, added_after, origin
from lake.merging import mergeable
from lake.objects import local_path
from lake.offsets import dropped_of
from lake.resting import Rests
from lake.retention import DEFAULT_LADDER, build_tag, expendable, ladder
from lake.table import summary_of
from service.runtime import Runtime, open_runtime
from tests.lake.test_tables import head_frame
from tests.world import PAID, Clock, compact_all, erase, make_world, paid, publish, send, shred

NOW = datetime(2026, 6, 15, 12, tzinfo=UTC)
EAGER = UpkeepPolicy(merge_files=4, keep_snapshots=1, keep_seconds=0, grace_seconds=0)


def commits(runtime: Runtime, count: int, start: int = 0) -> None:
    """So many commits of two events each, of five people."""
    for number in range(start, start + count):
        send(
            runtime,
            [
                paid(f"person-{number % 5}", number, event_id=f"{number}", note=f"note {number}"),
                paid(f"person-{(number + 1) % 5}", 1, event_id=f"{number}b"),
            ],
        )


def ids(runtime: Runtime) -> list[str]:
    """Every event id of the head that can be opened, sorted."""
    frame = head_frame(runtime)
    return sorted(frame.filter(~pl.col("shredded"))["event_id"].to_list())


def expected(count: int) -> list[str]:
    """What `commits` stored."""
    return sorted(text for number in range(count) for text in (f"{number}", f"{number}b"))


def live_places(runtime: Runtime, ref: bytes) -> list[Place]:
    """Where live files hold sealed bytes of a handle."""
    return [one for one in places_of(runtime.lake, {ref}) if one.held_by == "head"]


def upkeep_of(runtime: Runtime, **policy: Any) -> Maintenance:
    """Eager upkeep, unless told otherwise."""
    from attrs import evolve

    return Maintenance(runtime.lake, evolve(EAGER, **policy))


# -- putting small files together ------------------------------------------------------------------


def test_small_files_become_one_and_every_block_stays(world: Runtime) -> None:
    """Row by row, without opening anything: the same blocks, the same order of replay."""
    commits(world, 12)
    before = head_frame(world)
    (day,) = Upkeep(world.lake).days()
    done = Upkeep(world.lake).merge(day, at_least=4)
    assert (done.files_before, done.files_after) == (12, 1)
    assert head_frame(world).equals(before)
    assert verify(world.lake, deep=True).problems == ()
    assert privacy_lint(world.lake) == []


def test_few_small_files_are_left_alone(world: Runtime) -> None:
    """A merge for its own sake would only write."""
    commits(world, 3)
    (day,) = Upkeep(world.lake).days()
    assert Upkeep(world.lake).merge(day, at_least=4).files_before == 0
    assert len(world.lake.events.files()) == 3


def test_one_file_alone_is_never_merged_and_a_merge_ends(world: Runtime) -> None:
    """Whoever asks for groups of one gets those of two: a file would be replaced by itself for ever."""
    commits(world, 3)
    (day,) = Upkeep(world.lake).days()
    asked = itertools.count()
    merge = partial(Upkeep(world.lake).merge, day, at_least=1, should_stop=lambda: next(asked) > 5)
    assert merge().files_before == 3
    assert merge().files_before == 0
    assert next(asked) <= 5, "it ended by itself"


def test_a_view_catches_up_over_merged_files_and_expired_snapshots(world: Runtime) -> None:
    """It reads what is new alone: nothing is derived anew, and the answer is that of a rebuild."""
    commits(world, 6)
    publish(world)
    commits(world, 8, start=6)
    upkeep_of(world).run(datetime.now(UTC))
    assert len(world.lake.events.files()) < 6
    assert len(world.lake.events.history()) <= 4
    built = world.views.build(["cents_per_day"])
    assert (built[0].derived, built[0].merged > 0) == (0, True)
    world.views.publish(built, who="t", why="t")
    caught_up = world.views.as_reported("cents_per_day").rows
    publish(world, "cents_per_day", rebuild=True)
    assert caught_up.equals(world.views.as_reported("cents_per_day").rows)


def fake(name: str, size: int = 10) -> DataFile:
    """A data file by name and size."""
    return DataFile.from_args(
        file_path=f"file:///x/{name}.parquet",
        file_size_in_bytes=size,
        partition=Record(20000),
        record_count=1,
    )


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=40, unique=True),
    st.lists(st.integers(0, 210), max_size=5),
    st.integers(2, 6),
)
def test_merging_never_puts_both_sides_of_a_mark_together(
    sequences: list[int], marks: list[int], at_least: int
) -> None:
    """Each file is in one group at the most, and a group has enough files and not too many bytes."""
    live = [(fake(f"f{sequence}"), sequence) for sequence in sequences]
    groups = mergeable(live, marks, at_least, piece_bytes=50)
    seen = [file.file_path for group in groups for file, _ in group]
    assert len(seen) == len(set(seen))
    for group in groups:
        numbers = [sequence for _, sequence in group]
        assert not any(min(numbers) <= mark < max(numbers) for mark in marks)
        assert len(group) >= at_least
        assert sum(file.file_size_in_bytes for file, _ in group) <= 50


def test_what_was_ingested_since_is_told_by_names_alone() -> None:
    """And where a file has both old and new, nothing is claimed."""
    end = "0" * 32
    fresh, old = (fake("a" * 32), 9), (fake("b" * 32), 3)
    merged = (fake(f"l0-7-8-{end}"), 10)
    mixed = (fake(f"l0-4-8-{end}"), 10)
    sorted_old, sorted_new = (fake(f"l1-1-4-{end}"), 11), (fake(f"l1-1-9-{end}"), 11)
    assert origin(*merged) == Origin(Level.MERGED, 7, 8)
    assert added_after([fresh, old, merged, sorted_old], 5) == [fresh[0], merged[0]]
    assert added_after([fresh, mixed], 5) is None
    assert added_after([fresh, sorted_new], 5) is None


# -- L1 --------------------------------------------------------------------------------------------


def test_the_next_l1_drops_the_dead_bytes_of_who_was_shredded(slow_world: Runtime, clock: Clock) -> None:
    """Their sealed bytes leave the live files; their counts stay."""
    commits(slow_world, 8)
    from keys import SubjectId

    ref = slow_world.keyring.ref_of(SubjectId("person-1"))
    assert ref is not None
    assert sum(place.sealed_bytes for place in live_places(slow_world, ref)) > 0
    cents = head_frame(slow_world)["cents"].sum()
    shred(slow_world, "person-1")
    clock.forward(days=1)
    done = upkeep_of(slow_world).run(clock())
    assert [step.what for step in done if step.severed] == ["compact"]
    assert live_places(slow_world, ref) == []
    assert head_frame(slow_world)["cents"].sum() == cents


def test_a_day_that_is_sorted_loses_the_dead_bytes_of_who_is_shredded_later(
    slow_world: Runtime, clock: Clock
) -> None:
    """The day is written once more; then nobody looks again before the next fence."""
    from keys import SubjectId

    commits(slow_world, 8)
    clock.forward(days=1)
    work = upkeep_of(slow_world)
    work.run(clock())
    ref = slow_world.keyring.ref_of(SubjectId("person-1"))
    assert ref is not None
    cents = head_frame(slow_world)["cents"].sum()
    shred(slow_world, "person-1")
    assert live_places(slow_world, ref)
    assert [step.severed > 0 for step in work.run(clock()) if step.what == "compact"] == [True]
    assert live_places(slow_world, ref) == []
    assert head_frame(slow_world)["cents"].sum() == cents
    work.run(clock())
    head = slow_world.lake.events.snapshot()
    assert head is not None
    assert dropped_of(summary_of(head)) == slow_world.keyring.epoch()
    work.run(clock())
    assert slow_world.lake.events.history()[0].snapshot_id == head.snapshot_id
    assert verify(slow_world.lake, deep=True).problems == ()


def test_closed_days_are_compacted_once_and_today_is_not(slow_world: Runtime, clock: Clock) -> None:
    """A round that finds nothing to do does nothing."""
    commits(slow_world, 3)
    clock.forward(days=1)
    commits(slow_world, 3, start=3)
    work = upkeep_of(slow_world)
    plan = [(step.what, step.day) for step in work.plan(clock())]
    assert ("compact", date(2026, 3, 1)) in plan
    assert not any(day == date(2026, 3, 2) for what, day in plan if what == "compact")
    first = work.run(clock())
    assert [step.day for step in first if step.what == "compact"] == [date(2026, 3, 1)]
    assert [step.what for step in work.run(clock()) if step.what in ("compact", "merge")] == []
    assert ids(slow_world) == expected(6)


# -- what is kept ----------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 60 * 24 * 5), min_size=1, max_size=60, unique=True),
    st.lists(st.integers(1, 60 * 6), min_size=1, max_size=30),
)
def test_every_full_hour_of_two_days_keeps_its_exact_answer(minutes: list[int], rounds: list[int]) -> None:
    """Whenever upkeep runs in between, the newest snapshot before each full hour is not expired."""
    start = NOW - timedelta(days=5)
    commits_at = sorted(minutes)
    kept: dict[int, int] = {}
    tags: dict[str, int] = {}
    now_minute, last = 0, 0
    for wait in [*rounds, 60 * 24 * 5]:
        now_minute = min(now_minute + wait, 60 * 24 * 5)
        for at in (one for one in commits_at if last < one <= now_minute or (last == 0 and one == 0)):
            kept[at] = int((start + timedelta(minutes=at)).timestamp() * 1000)
        last = now_minute
        now = start + timedelta(minutes=now_minute)
        changes = ladder(list(kept.items()), tags, now)
        tags = {name: at for name, at in tags.items() if name not in changes.remove} | changes.tags
        newest_first = sorted(kept.items(), reverse=True)
        for gone in expendable(newest_first, tags.values(), 1, now.timestamp() * 1000):
            del kept[gone]
    for hour in range(5 * 24 - 47, 5 * 24 + 1):
        before = [at for at in commits_at if (hour - 1) * 60 <= at < hour * 60]
        if before:
            assert before[-1] in kept


def test_tags_of_others_are_left_alone_and_abandoned_builds_are_not() -> None:
    """A killed build's tag goes after a day; an auditor's stays."""
    tags = {"audit": 1, build_tag(7, NOW - timedelta(hours=30)): 1, build_tag(8, NOW): 1}
    changes = ladder([(1, int(NOW.timestamp() * 1000))], tags, NOW)
    assert changes.remove == (build_tag(7, NOW - timedelta(hours=30)),)
    assert set(changes.tags) == {NOW.strftime(rung.tag) for rung in DEFAULT_LADDER}


def test_a_tagged_snapshot_is_reached_over_expired_ones(world: Runtime) -> None:
    """Time travel, verification and erasure look at every kept snapshot, not at an unbroken line."""
    commits(world, 1)
    first = world.lake.events.history()[0]
    world.lake.events.set_tags({"audit": first.snapshot_id})
    commits(world, 6, start=1)
    Housekeeping(world.lake).expire(keep=1)
    kept = [one.snapshot_id for one in world.lake.events.history()]
    assert first.snapshot_id in kept
    assert len(kept) == 2
    at = datetime.fromtimestamp(first.timestamp_ms / 1000, UTC)
    found = world.lake.replay().resolve(at)
    assert found is not None
    assert found.snapshot_id == first.snapshot_id
    looked = verify(world.lake, deep=True)
    assert (looked.problems, looked.expired) == ((), 5)


def test_an_erasure_checks_snapshots_that_only_a_tag_keeps(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person who could be opened there would be found, whatever was expired in between."""
    commits(world, 2)
    world.lake.events.set_tags({"audit": world.lake.events.history()[1].snapshot_id})
    (tagged,) = world.lake.events.files(world.lake.events.history()[1].snapshot_id)
    commits(world, 4, start=2)
    compact_all(world)
    Housekeeping(world.lake).expire(keep=1)
    assert tagged.file_path not in [file.file_path for file in world.lake.events.files()]
    assert tagged.file_path in [file.file_path for file in world.lake.events.kept_files()]
    looked: list[str] = []
    original = type(world.lake.events).kept_files

    def watched(self: Any) -> list[DataFile]:
        looked.extend(file.file_path for file in original(self))
        return original(self)

    monkeypatch.setattr(type(world.lake.events), "kept_files", watched)
    erase(world, "person-1")
    assert tagged.file_path in looked


def test_a_build_keeps_its_input_while_it_reads(world: Runtime) -> None:
    """Expiry beside it leaves the snapshot alone; afterwards nothing holds it."""
    commits(world, 4)
    seen: list[set[str]] = []

    def progress(*_: object) -> None:
        seen.append({name[:6] for name in world.lake.events.metadata().refs if name != "main"})
        commits(world, 1, start=100 + len(seen))
        Housekeeping(world.lake).expire(keep=1)
        Housekeeping(world.lake).sweep(grace_seconds=0)

    world.views.build(world.views.registry.names(), progress=progress)
    assert seen
    assert all("build-" in tags for tags in seen)
    assert not any(name.startswith("build-") for name in world.lake.events.metadata().refs)


def test_a_tag_that_is_set_while_snapshots_are_chosen_stays(world: Runtime) -> None:
    """By another process, on one that was to go: the choice is made anew, and the snapshot stays."""
    commits(world, 4)
    oldest = world.lake.events.history()[-1].snapshot_id
    with open_runtime(world.home) as other:

        def choose(metadata: TableMetadata) -> list[int]:
            named = {ref.snapshot_id for ref in metadata.refs.values()}
            if oldest not in named:
                other.lake.events.set_tags({"pinned": oldest})
            return [one.snapshot_id for one in metadata.snapshots if one.snapshot_id not in named]

        gone = world.lake.events.expire(choose)
    assert oldest not in gone
    assert len(gone) == 2
    assert world.lake.events.metadata().refs["pinned"].snapshot_id == oldest
    assert len(world.lake.events.files(oldest)) == 1


def test_two_keepers_forget_the_same_snapshots_once(world: Runtime) -> None:
    """Whoever comes second looks again, and finds nothing left to do."""
    commits(world, 4)
    firsts: list[list[int]] = []
    with open_runtime(world.home) as other:

        def choose(metadata: TableMetadata) -> list[int]:
            if not firsts:
                firsts.append(Housekeeping(other.lake).expire(keep=1))
            return Housekeeping(world.lake).expendable_of(metadata, 1, 0.0)

        assert world.lake.events.expire(choose) == []
    assert len(firsts[0]) == 3


def test_a_snapshot_that_is_gone_cannot_be_named(world: Runtime) -> None:
    """An error that says so, also when it went between the look and the commit."""
    commits(world, 3)
    first = world.lake.events.history()[-1].snapshot_id
    sending, expired = world.lake.events._send, []

    def overtaken(*given: Any) -> None:
        if not expired:
            expired.append(True)
            Housekeeping(world.lake).expire(keep=1)
        sending(*given)

    world.lake.events._send = overtaken  # type: ignore[method-assign]
    with pytest.raises(SnapshotGone):
        world.lake.events.set_tags({"late": first})
    assert "late" not in world.lake.events.metadata().refs


def test_metadata_of_a_lost_race_goes_and_that_of_a_commit_under_way_stays(world: Runtime) -> None:
    """Written before the catalog decides: the sweep takes what cannot win any more."""
    commits(world, 2)
    catalog: Any = world.lake.warehouse.catalog
    writing = catalog._write_metadata
    seen: list[list[str]] = []

    def raced(metadata: Any, io: Any, metadata_path: str) -> None:
        writing(metadata, io, metadata_path)
        if not seen:
            seen.append([metadata_path])
            with open_runtime(world.home) as other:
                orphans = Housekeeping(other.lake).orphans()
                assert local_path(metadata_path) not in [local_path(one.location) for one in orphans]
                commits(other, 1, start=2)

    catalog._write_metadata = raced
    commits(world, 1, start=3)
    (lost,) = seen[0]
    assert Path(local_path(lost)).exists()
    swept = Housekeeping(world.lake).sweep(grace_seconds=0)
    assert local_path(lost) in [local_path(one.location) for one in swept]
    assert not Path(local_path(lost)).exists()
    assert ids(world) == expected(4)
    assert verify(world.lake, deep=True).problems == ()


# -- beside others, and killed ---------------------------------------------------------------------


def test_upkeep_beside_ingest_and_erasures_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Two keepers, a writer and an eraser at once, each with a connection of its own."""
    home = tmp_path / "lake"
    with make_world(home) as world:
        commits(world, 3)
    stop = threading.Event()
    failed: list[BaseException] = []
    done: set[str] = set()

    def keeping() -> None:
        with open_runtime(home) as other:
            for ahead in itertools.cycle((timedelta(0), timedelta(days=1))):
                if stop.is_set():
                    return
                try:
                    now = datetime.now(UTC) + ahead
                    done.update(step.what for step in Maintenance(other.lake, EAGER_BUT_KIND).run(now))
                except BaseException as error:
                    failed.append(error)
                    return

    keepers = [threading.Thread(target=keeping) for _ in range(2)]
    for thread in keepers:
        thread.start()
    with open_runtime(home) as world:
        for start in range(3, 27, 4):
            commits(world, 4, start=start)
            if start == 11:
                erase(world, "person-2")
                world.lake.types.register(PAID | {"version": 2})
        stop.set()
        for thread in keepers:
            thread.join()
        assert failed == []
        assert done >= {"merge", "compact"}, "both kinds of rewriting ran beside ingest"
        # What is sent after the erasure is refused, so exactly what names nobody erased is there.
        gone = {f"{n}" for n in range(27) if n % 5 == 2} | {f"{n}b" for n in range(27) if (n + 1) % 5 == 2}
        assert ids(world) == sorted(set(expected(27)) - gone)
        assert {
            row["schema_version"]
            for row in block_rows(world.lake.events, world.lake.events.files(), None).iter_rows(named=True)
        } == {1, 2}
        assert verify(world.lake, deep=True).problems == ()


EAGER_BUT_KIND = UpkeepPolicy(merge_files=2, keep_snapshots=20, keep_seconds=0, grace_seconds=60)


class Stop(BaseException):
    """The power goes."""


@pytest.fixture
def effects_of_a_round(tmp_path: Path) -> list[str]:
    """The durable effects of one round of upkeep, by name."""
    names: list[str] = []
    runtime = make_world(tmp_path / "count", effects=Effects(lambda when, name: names.append(name)))
    commits(runtime, 6)
    names.clear()
    upkeep_of(runtime).run(datetime.now(UTC) + timedelta(days=1))
    runtime.close()
    return names


def test_a_round_stopped_at_any_effect_is_finished_by_the_next(
    tmp_path: Path, effects_of_a_round: list[str]
) -> None:
    """Before and after each: every event is there once, and the table ends the same."""
    assert len(effects_of_a_round) > 6
    for at in range(len(effects_of_a_round)):
        left = [-1]

        def observe(when: str, name: str, left: list[int] = left) -> None:
            if left[0] == 0:
                raise Stop
            left[0] -= 1

        home = tmp_path / f"lake-{at}"
        with make_world(home, effects=Effects(observe)) as runtime:
            commits(runtime, 6)
            left[0] = at
            with pytest.raises(Stop):
                upkeep_of(runtime).run(datetime.now(UTC) + timedelta(days=1))
        with open_runtime(home) as runtime:
            upkeep_of(runtime).run(datetime.now(UTC) + timedelta(days=1))
            assert ids(runtime) == expected(6)
            assert len(runtime.lake.events.files()) == 1
            assert verify(runtime.lake, deep=True).problems == ()
            assert Housekeeping(runtime.lake).sweep(grace_seconds=0, dry_run=True) == []


def test_explain_says_what_is_and_what_comes(world: Runtime) -> None:
    """In figures that add up, and leaves nothing behind."""
    commits(world, 5)
    found = explain(world.lake, datetime.now(UTC))
    assert (found.live_files, found.by_level["ingested"], found.snapshots) == (5, 5, 5)
    assert found.commits_per_hour > 0
    assert 0 < found.commit_seconds < 60
    assert (found.manifests, found.planning_seconds > 0) == (5, True)
    assert Housekeeping(world.lake).sweep(grace_seconds=0, dry_run=True) == []
    assert found.next_merge_minutes is not None
    tomorrow = explain(world.lake, datetime.now(UTC) + timedelta(days=1))
    assert (tomorrow.closed_days, tomorrow.l1_files, tomorrow.commits_per_hour) == (1, 1, 0)


def test_an_erasure_between_opening_and_sealing_makes_a_compaction_look_again(world: Runtime) -> None:
    """Who was opened and then erased is not sealed again; the day is rewritten without them."""
    commits(world, 5)
    upkeep = Upkeep(world.lake)
    sealing, erased = upkeep._sealed, []

    def overtaken(*given: Any) -> Any:
        if not erased:
            erased.append(True)
            shred(world, "person-1")
            world.keyring.catch_up()
        return sealing(*given)

    upkeep._sealed = overtaken  # type: ignore[method-assign]
    (day,) = upkeep.days()
    done = upkeep.compact(day)
    assert done.severed_blocks > 0
    assert head_frame(world).height == 10
    assert verify(world.lake, deep=True).problems == ()


# -- rests, and stopping in between ----------------------------------------------------------------


@define
class SlowWork:
    """A clock by which every look at it takes a second, and a sleep that only counts."""

    now: float = 0.0
    slept: list[float] = field(factory=list)

    def rests(self, ratio: float) -> Rests:
        """Rests by this clock."""
        return Rests(ratio, self.look, self.sleep)

    def look(self) -> float:
        """A second later than the last time."""
        self.now += 1.0
        return self.now

    def sleep(self, seconds: float) -> None:
        """Counts, and time goes on."""
        self.slept.append(seconds)
        self.now += seconds


def test_upkeep_rests_behind_each_piece_and_each_batch_of_the_sweep(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once at the end of a day: each group, each piece of L1, listing and deleting."""
    monkeypatch.setattr(housekeeping, "_SWEPT_AT_ONCE", 10)
    commits(world, 9)
    (day,) = Upkeep(world.lake).days()
    size = sum(file.file_size_in_bytes for file in world.lake.events.files()) // 9
    work = SlowWork()
    merged = Upkeep(world.lake).merge(day, 2, int(3.5 * size), rests=work.rests(2.0))
    assert merged.files_after > 2
    assert work.slept == [2.0] * merged.files_after, "a second of work each, and rest is no work"
    work = SlowWork()
    pieces: list[str] = []
    Upkeep(world.lake).compact(day, pieces.append, piece_bytes=1_000, rests=work.rests(2.0))
    assert work.slept == [2.0] * len(pieces)
    Housekeeping(world.lake).expire(keep=1)
    work = SlowWork()
    swept = Housekeeping(world.lake).sweep(grace_seconds=0, rests=work.rests(0.5))
    assert len(work.slept) == 1 + -(-len(swept) // 10) > 2


def test_a_round_of_upkeep_rests_as_its_policy_says(world: Runtime) -> None:
    """Every step of it, by the rests that it was given; a ratio of nothing never sleeps."""
    commits(world, 6)
    work = SlowWork()
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    Maintenance(world.lake, EAGER, work.rests(1.0)).run(tomorrow)
    assert len(work.slept) >= 3
    work = SlowWork()
    Maintenance(world.lake, EAGER, work.rests(0.0)).run(tomorrow)
    assert work.slept == []


def test_a_merge_stops_between_two_groups_when_it_is_told_to(world: Runtime) -> None:
    """What was committed stays, the rest is left to the next round."""
    commits(world, 9)
    (day,) = Upkeep(world.lake).days()
    size = sum(file.file_size_in_bytes for file in world.lake.events.files()) // 9
    asked = iter([False, True])
    piece = int(3.5 * size)
    done = Upkeep(world.lake).merge(day, at_least=2, piece_bytes=piece, should_stop=lambda: next(asked))
    assert done.files_after == 1
    assert len(world.lake.events.files()) == 9 - done.files_before + 1
    assert ids(world) == expected(9)
    assert Upkeep(world.lake).merge(day, at_least=2, piece_bytes=piece).files_after >= 1


def test_manifests_stay_few_however_many_commits_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers and commits look through all of them; small ones are merged by the commits themselves."""
    monkeypatch.setitem(events.EVENTS_PROPERTIES, "commit.manifest.min-count-to-merge", "5")
    with make_world(tmp_path / "lake") as world:
        for number in range(24):
            commits(world, 1, start=number)
            assert explain(world.lake, datetime.now(UTC)).manifests <= 5
        assert len(world.lake.events.files()) == 24
        (day,) = Upkeep(world.lake).days()
        for _ in range(4):
            Upkeep(world.lake).merge(day, at_least=2)
            commits(world, 4, start=30)
            assert explain(world.lake, datetime.now(UTC)).manifests <= 6
