"""L1 of a day that does not fit into memory: range by range, each a commit of its own."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import struct
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from attrs import field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from pyiceberg.manifest import DataFile
from pyiceberg.typedef import Record

from keys import Effects, SubjectId
from lake import EventRead, Upkeep, places_of, verify
from lake.blocks import BUCKET_PREFIX_BYTES
from lake.errors import ConservationBroken
from lake.events import SUBJECT_REF_FIELD_ID
from lake.levels import Level, Origin, Sequenced, origin, together
from lake.sorting import Rewrite, rewrites, sorted_files
from service.runtime import Runtime, open_runtime
from tests.world import erase, make_world, paid, send, shred

PEOPLE = 6
SMALL = 1_000
"""Bytes of a piece: less than any file of ours has, so that each person becomes a file."""
CONTEXT = multiprocessing.get_context("forkserver")


def commits(runtime: Runtime, count: int, start: int = 0) -> None:
    """So many commits of an event of everybody."""
    for number in range(start, start + count):
        send(runtime, [paid(f"person-{n}", n, event_id=f"{number}-{n}", note="n") for n in range(PEOPLE)])


def told(runtime: Runtime, snapshot_id: int | None = None) -> dict[bytes, list[str]]:
    """Who → their event ids of a snapshot (the head by default), in the order of replay."""
    replay, snapshot = runtime.lake.replay(), runtime.lake.events.snapshot(snapshot_id)
    assert snapshot is not None
    frame = replay.events(replay.files(snapshot.snapshot_id), EventRead("Paid", ("event_id",))).frame
    alive = frame.filter(~frame["shredded"]).group_by("subject_ref", maintain_order=True).agg("event_id")
    return dict(alive.iter_rows())


def ids(runtime: Runtime) -> list[str]:
    """Every event id of the head that can be opened, sorted."""
    return sorted(itertools.chain.from_iterable(told(runtime).values()))


def expected(count: int) -> list[str]:
    """What `commits` stored."""
    return sorted(f"{number}-{n}" for number in range(count) for n in range(PEOPLE))


def the_day(runtime: Runtime) -> date:
    """The ingest day of everything."""
    (day,) = Upkeep(runtime.lake).days()
    return day


def paths(runtime: Runtime, level: Level | None = None) -> set[str]:
    """Live files, of one level or of all."""
    return {
        file.file_path
        for file, sequence in runtime.lake.events.sequenced_files()
        if level in (None, origin(file, sequence).level)
    }


# -- what is decided -------------------------------------------------------------------------------


@frozen
class Model:
    """A file as the leading sixteen bits of its rows, a byte each."""

    name: str
    rows: tuple[int, ...] = field(converter=lambda rows: tuple(sorted(rows)))
    sequence: int

    def sequenced(self) -> Sequenced:
        """As a live file."""
        bounds = {
            "lower_bounds": {SUBJECT_REF_FIELD_ID: struct.pack(">H", self.rows[0]) + b"\7" * 14},
            "upper_bounds": {SUBJECT_REF_FIELD_ID: struct.pack(">H", self.rows[-1]) + b"\7" * 14},
        }
        file = DataFile.from_args(
            file_path=f"file:///x/{self.name}.parquet",
            file_size_in_bytes=len(self.rows),
            partition=Record(20000),
            record_count=len(self.rows),
            **bounds,
        )
        return file, self.sequence


class Day:
    """A day of such files, on which what is decided is done."""

    def __init__(self, files: list[list[int]]) -> None:
        self._numbers = itertools.count(1)
        self.files = {
            name: Model(name, tuple(rows), at) for at, rows in enumerate(files, 1) for name in [f"f{at}"]
        }

    def live(self) -> list[Sequenced]:
        """As the head tells it."""
        return [one.sequenced() for one in self.files.values()]

    def do(self, work: Rewrite) -> None:
        """A commit."""
        gone = [
            self.files.pop(file.file_path.rpartition("/")[2].removesuffix(".parquet"))
            for file, _ in work.files
        ]
        rows = [row for one in gone for row in one.rows]
        what = together(Level.DIVIDED if work.bits else Level.SORTED, work.files)
        shift = 8 * BUCKET_PREFIX_BYTES - work.bits if work.bits else 8 * BUCKET_PREFIX_BYTES
        for part in sorted({row >> shift for row in rows}):
            self._add(what, [row for row in rows if row >> shift == part])

    def _add(self, what: Origin, rows: list[int]) -> None:
        name = f"{what.prefix}{next(self._numbers):032x}"
        self.files[name] = Model(name, tuple(rows), 99)


PREFIXES = st.one_of(st.integers(0, 65535), st.integers(0, 40), st.sampled_from([7, 40_000]))


@settings(max_examples=300)
@given(st.lists(st.lists(PREFIXES, min_size=1, max_size=60), min_size=1, max_size=8), st.integers(1, 80))
def test_a_day_is_sorted_in_steps_that_fit_and_nothing_is_sorted_twice(
    files: list[list[int]], piece_bytes: int
) -> None:
    """It ends; every row is there once; nobody lies in two files; what is sorted is not touched again."""
    day = Day(files)
    before = Counter(row for rows in files for row in rows)
    finished: set[str] = set()
    while todo := rewrites(day.live(), piece_bytes):
        work = todo[0]
        size = sum(file.file_size_in_bytes for file, _ in work.files)
        rows = [row for file, _ in work.files for row in day.files[Path(file.file_path).stem].rows]
        if work.bits:
            assert size <= piece_bytes or len(work.files) == 1
        else:
            assert size <= 1.5 * piece_bytes or len(set(rows)) == 1
        assert not finished & {Path(file.file_path).stem for file, _ in work.files}
        day.do(work)
        finished = {name for name in day.files if name.startswith("l1-")}
    assert Counter(row for one in day.files.values() for row in one.rows) == before
    owners = Counter(row for one in day.files.values() for row in set(one.rows))
    assert set(owners.values()) == {1}
    assert all(name.startswith("l1-") for name in day.files)


def test_a_day_that_fits_is_one_commit_and_the_forecast_of_a_large_one_is_near() -> None:
    """Evenly spread people of a day of sixteen pieces: as many files as were told, give or take one in four."""
    spread = [list(range(at, 65536, 1024)) for at in range(0, 1024, 64)]
    small = Day(spread)
    assert [(len(work.files), work.bits) for work in rewrites(small.live(), 2_000)] == [(16, 0)]
    assert sorted_files(small.live(), 2_000) == 1
    large = Day(spread)
    told = sorted_files(large.live(), 64)
    assert told == 16
    while todo := rewrites(large.live(), 64):
        large.do(todo[0])
    assert 12 <= len(large.files) <= 20
    assert sorted_files(large.live(), 64) == len(large.files)


def test_a_sorted_file_with_dead_bytes_is_written_anew_and_its_neighbours_stay() -> None:
    """Which ones they are is told from outside; nothing else of the day is touched."""
    day = Day([[1, 2, 3, 30_000], [2, 30_000, 60_000]])
    while todo := rewrites(day.live(), 2):
        day.do(todo[0])
    stale = day.live()[1][0].file_path
    assert [[file.file_path for file, _ in one.files] for one in rewrites(day.live(), 2, {stale})] == [
        [stale]
    ]


# -- on a real table -------------------------------------------------------------------------------


def test_a_large_day_is_divided_and_sorted_in_commits_that_each_keep_every_event(world: Runtime) -> None:
    """Whatever commit a reader is at: all events once, each person's in their order; in the end in one file."""
    commits(world, 4)
    before = told(world)
    known = world.lake.events.history()[0].snapshot_id
    done = Upkeep(world.lake).compact(the_day(world), piece_bytes=SMALL)
    assert done.commits > PEOPLE
    later = [one for one in world.lake.events.history() if one.snapshot_id != known][: done.commits]
    assert len(later) == done.commits
    for snapshot in later:
        assert told(world, snapshot.snapshot_id) == before
    assert paths(world) == paths(world, Level.SORTED)
    assert len(paths(world)) == PEOPLE
    for number in range(PEOPLE):
        ref = world.keyring.ref_of(SubjectId(f"person-{number}"))
        assert ref is not None
        assert len([one for one in places_of(world.lake, {ref}) if one.held_by == "head"]) == 1
    assert verify(world.lake, deep=True).problems == ()


def test_no_commit_of_l1_holds_more_than_the_setting_says(world: Runtime) -> None:
    """Neither when it divides nor when it sorts: the bytes of the files that it replaces are its measure."""
    commits(world, 12)
    sizes = {one.file_path: one.file_size_in_bytes for one in world.lake.events.files()}
    piece = 3 * max(sizes.values())
    replaced: list[int] = []
    committing = world.lake.events.commit

    def watched(adds: list[DataFile], guard: object, removes: list[DataFile], **more: object) -> object:
        replaced.append(sum(one.file_size_in_bytes for one in removes))
        return committing(adds, guard, removes, **more)  # type: ignore[arg-type]

    world.lake.events.commit = watched  # type: ignore[method-assign, assignment]
    Upkeep(world.lake).compact(the_day(world), piece_bytes=piece)
    assert len(replaced) > 4
    assert max(replaced) <= 1.5 * piece
    assert ids(world) == expected(12)


def test_a_division_that_would_lose_a_block_is_not_committed(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written is counted against the manifests of what it replaces."""
    commits(world, 12)
    upkeep, before = Upkeep(world.lake), paths(world)
    piece_bytes = 3 * max(one.file_size_in_bytes for one in world.lake.events.files())
    write = upkeep._write

    def losing(day: date, rows: pl.DataFrame, *given: Any, **named: Any) -> DataFile:
        return write(day, rows.head(1), *given, **named)

    monkeypatch.setattr(upkeep, "_write", losing)
    with pytest.raises(ConservationBroken):
        upkeep.compact(the_day(world), piece_bytes=piece_bytes)
    assert paths(world) == before


class Stop(BaseException):
    """The power goes."""


def test_a_day_stopped_at_any_effect_is_finished_without_sorting_anything_twice(tmp_path: Path) -> None:
    """Before and after each file and each commit: what was sorted before the stop is still there afterwards."""
    finished_before: set[int] = set()
    for at in itertools.count(0, 7):
        left = [-1]

        def observe(when: str, name: str, left: list[int] = left) -> None:
            if left[0] == 0:
                raise Stop
            left[0] -= 1

        home = tmp_path / f"lake-{at}"
        with make_world(home, effects=Effects(observe)) as runtime:
            commits(runtime, 2)
            left[0] = at
            try:
                Upkeep(runtime.lake).compact(the_day(runtime), piece_bytes=SMALL)
            except Stop:
                pass
            else:
                break
        with open_runtime(home) as runtime:
            assert ids(runtime) == expected(2)
            finished = paths(runtime, Level.SORTED)
            finished_before.add(len(finished))
            Upkeep(runtime.lake).compact(the_day(runtime), piece_bytes=SMALL)
            assert finished <= paths(runtime)
            assert paths(runtime) == paths(runtime, Level.SORTED)
            assert ids(runtime) == expected(2)
            assert verify(runtime.lake, deep=True).problems == ()
    assert min(finished_before) == 0 < max(finished_before), "it was stopped early and late"


def compact_and_die(home: str, finished: int) -> None:
    """In a process of its own: L1 of the day, killed before the commit that follows so many sorted files."""
    here: list[Runtime] = []

    def observe(when: str, name: str) -> None:
        at_commit = here and when == "before" and name == "commit:lake.events"
        if at_commit and len(paths(here[0], Level.SORTED)) == finished:
            os.kill(os.getpid(), signal.SIGKILL)

    with open_runtime(Path(home), effects=Effects(observe)) as runtime:
        here.append(runtime)
        Upkeep(runtime.lake).compact(the_day(runtime), piece_bytes=SMALL)


def test_a_process_killed_between_two_ranges_is_followed_by_one_that_goes_on(tmp_path: Path) -> None:
    """SIGKILL; the ranges that it sorted are not written again."""
    home = tmp_path / "lake"
    with make_world(home) as runtime:
        commits(runtime, 3)
    process = CONTEXT.Process(target=compact_and_die, args=(str(home), 2))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    with open_runtime(home) as runtime:
        finished = paths(runtime, Level.SORTED)
        assert len(finished) == 2
        assert ids(runtime) == expected(3)
        done = Upkeep(runtime.lake).compact(the_day(runtime), piece_bytes=SMALL)
        assert done.blocks_after == PEOPLE - 2, "a block for each of the others"
        assert finished <= paths(runtime)
        assert ids(runtime) == expected(3)
        assert verify(runtime.lake, deep=True).problems == ()


def test_l1_stops_between_two_ranges_when_it_is_told_to(world: Runtime) -> None:
    """And the next one does the rest."""
    commits(world, 2)
    asked = itertools.count()
    done = Upkeep(world.lake).compact(the_day(world), piece_bytes=SMALL, should_stop=lambda: next(asked) >= 3)
    assert done.commits == 3
    rest = Upkeep(world.lake).compact(the_day(world), piece_bytes=SMALL)
    assert rest.commits > 0
    assert (Upkeep(world.lake).compact(the_day(world), piece_bytes=SMALL)).commits == 0
    assert ids(world) == expected(2)


def test_who_is_erased_while_a_day_is_divided_is_gone_and_everybody_else_is_there(world: Runtime) -> None:
    """A whole erasure between two commits of the same day; what it took out is not brought back."""
    commits(world, 3)
    ref = world.keyring.ref_of(SubjectId("person-1"))
    assert ref is not None
    steps = itertools.count()

    def progress(text: str) -> None:
        number = next(steps)
        if number == 2:
            assert text.startswith("dividing")
            erase(world, "person-1")
        if number == 4:
            send(world, [paid("person-2", 1, event_id="late", note="n")])

    day = the_day(world)
    Upkeep(world.lake).compact(day, progress, piece_bytes=SMALL)
    Upkeep(world.lake).compact(day, piece_bytes=SMALL)
    assert [one for one in places_of(world.lake, {ref}) if one.held_by == "head"] == []
    gone = {f"{number}-1" for number in range(3)}
    assert ids(world) == sorted({*expected(3), "late"} - gone)
    assert verify(world.lake, deep=True).problems == ()


def test_of_a_sorted_day_only_the_range_with_dead_bytes_is_written_again(world: Runtime) -> None:
    """One person shredded by keys alone costs one range, not the day."""
    commits(world, 2)
    upkeep = Upkeep(world.lake)
    upkeep.compact(the_day(world), piece_bytes=SMALL)
    before = paths(world)
    shred(world, "person-1")
    done = upkeep.compact(the_day(world), piece_bytes=SMALL)
    assert (done.commits, done.severed_blocks) == (1, 1)
    assert len(before & paths(world)) == PEOPLE - 1
    assert upkeep.compact(the_day(world), piece_bytes=SMALL).commits == 0
    assert verify(world.lake, deep=True).problems == ()


def test_what_is_ingested_meanwhile_is_left_to_the_next_time(world: Runtime) -> None:
    """So that a day into which somebody goes on writing is done at some time."""
    commits(world, 2)
    late = itertools.count()

    def progress(_: str) -> None:
        number = next(late)
        assert number < 100, "it goes on for ever"
        send(world, [paid("person-0", 1, event_id=f"late-{number}", note="n")])

    done = Upkeep(world.lake).compact(the_day(world), progress, piece_bytes=SMALL)
    assert done.files_after == len(paths(world, Level.SORTED)) == PEOPLE
    left = next(late)
    assert len(paths(world, Level.INGESTED)) == left
    assert ids(world) == sorted([*expected(2), *(f"late-{number}" for number in range(left))])
    Upkeep(world.lake).compact(the_day(world))
    assert ids(world) == sorted([*expected(2), *(f"late-{number}" for number in range(left))])
    assert verify(world.lake, deep=True).problems == ()
