"""The replay reader: what it leaves unread, days, pieces that fit into memory, what came between two snapshots."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from pyiceberg.manifest import DataFile

from keys import SubjectId
from lake import EventRead, Events, Housekeeping, SnapshotGone, StorageFailed, Upkeep, runs
from lake.blocks import MAX_BLOCK_EVENTS
from lake.objects import local_path
from service.runtime import Runtime
from tests.lake.columns import MadeUp
from tests.world import START, Clock, compact_all, paid, send, shred

CLEAR = EventRead("Paid", ("cents", "shop"))
PERSONAL = EventRead("Paid", ("cents", "event_id", "note"))
WHAT_COUNTS = ["subject_ref", "_tag", "_rev", "occurred_on", "ingest_day", "shredded", "cents", "event_id"]
MIB = 1024 * 1024
SLACK = 40 * MIB  # allocators keep some of what was given back, and libraries' code is read when used


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a few people's blocks are of several runs."""
    monkeypatch.setattr(runs, "RUN_EVENTS", 5)


def live(runtime: Runtime) -> list[DataFile]:
    """Data files of the head."""
    return runtime.lake.events.files()


def read(runtime: Runtime, wanted: EventRead = PERSONAL, **more: Any) -> Events:
    """Events of the head."""
    return runtime.lake.replay().events(live(runtime), wanted, **more)


def ids(events: Events) -> list[str]:
    """Their ids, sorted."""
    return sorted(events.frame["event_id"].to_list())


# -- what is left unread ---------------------------------------------------------------------------


def test_anonymous_fields_are_read_without_touching_a_sealed_byte(world: Runtime) -> None:
    """The column's bytes are overwritten in the file: who does not ask for it does not notice."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2")])
    (file,) = live(world)
    path = Path(local_path(file.file_path))
    meta = pq.read_metadata(path)
    column = next(
        c for n in range(meta.num_columns) if (c := meta.row_group(0).column(n)).path_in_schema == "sealed"
    )
    content = bytearray(path.read_bytes())
    end = column.data_page_offset + column.total_compressed_size
    content[column.data_page_offset : end] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    assert read(world, CLEAR).frame["cents"].sum() == 12
    with pytest.raises(StorageFailed):
        read(world, PERSONAL)


# -- days ------------------------------------------------------------------------------------------


def _history(runtime: Runtime, clock: Clock, seed: int) -> None:
    """Twelve days of ingest: late events, duplicates, and corrections that move an event to another day."""
    choose = random.Random(seed)
    runtime.lake.types.register(
        {
            "name": "Paid",
            "version": 2,
            "dedup_window_days": 2,
            "type": "object",
            "properties": {
                "cents": {"type": "integer", "anonymous": True},
                "shop": {"type": "string", "anonymous": True},
                "note": {"type": "string"},
            },
            "required": ["cents"],
        }
    )
    for day in range(12):
        events = [
            paid(
                f"p{choose.randrange(4)}",
                choose.randrange(1000),
                event_id=str(choose.randrange(14)),
                at=START + timedelta(days=day - choose.randrange(4)),
                revision=choose.choice((0, 0, 0, 1, 2)),
                schemaversion=2,
            )
            for _ in range(8)
        ]
        send(runtime, events, key=f"{day}")
        clock.forward(days=choose.choice((0, 1, 1, 2)))


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("seed", range(4))
def test_events_of_days_are_those_of_the_whole_read_on_these_days(
    slow_world: Runtime, clock: Clock, seed: int
) -> None:
    """Also where the correction of an event lies on another day, or a duplicate begins anew; also severed."""
    _history(slow_world, clock, seed)
    shred(slow_world, "p1")
    if seed % 2:
        compact_all(slow_world)
    whole = read(slow_world).frame
    assert whole.height < 96, "the history has duplicates"
    first = START.date() - timedelta(days=4)
    for begin in range(0, 18, 2):
        for length in (0, 1, 5):
            days = (first + timedelta(days=begin), first + timedelta(days=begin + length))
            found = read(slow_world, EventRead("Paid", PERSONAL.fields, days=days))
            expected = whole.filter(pl.col("occurred_on").is_between(*days))
            assert found.frame.select(WHAT_COUNTS).equals(expected.select(WHAT_COUNTS)), days
            assert found.frame["_first_day"].equals(expected["_first_day"])
            assert found.stored == found.frame.height + found.superseded


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("compacted", ["nothing", "the first days", "everything"])
@pytest.mark.parametrize("seed", range(3))
def test_whoever_does_not_settle_again_gets_the_same_events(
    slow_world: Runtime, clock: Clock, seed: int, compacted: str
) -> None:
    """Whether L1 settled a person's events already or not; people who came once, dead and severed ones too."""
    _history(slow_world, clock, seed)
    once = [paid(f"once {n}", n, event_id=f"{n % 5}", schemaversion=2) for n in range(40)]
    send(slow_world, [*once, *once[:9]], key="once")
    upkeep = Upkeep(slow_world.lake)
    every = sorted(upkeep.days())
    days = {"nothing": [], "the first days": every[:4], "everything": every}[compacted]
    for gone in ("p1", "once 3"):
        for day in days:
            upkeep.compact(day)
        shred(slow_world, gone)
    for wanted in (PERSONAL, CLEAR):
        expected, found = read(slow_world, wanted).untagged(), read(slow_world, wanted, tagged=False)
        order = ["subject_ref", "ingest_day", *wanted.fields, "occurred_on"]
        assert found.frame.sort(order).equals(expected.frame.sort(order))
        for counted in ("stored", "superseded", "shredded", "held", "shredded_refs"):
            assert getattr(found, counted) == getattr(expected, counted)


@pytest.mark.parametrize("tagged", [True, False])
@pytest.mark.parametrize("compacted", [True, False])
def test_a_person_on_hold_is_not_counted_as_erased_and_others_keep_their_own_values(
    world: Runtime, compacted: bool, tagged: bool
) -> None:
    people = ["ann", "bob", "cid", "dan"]
    send(world, [paid(who, n, event_id=f"{who} {n}", note=who) for who in people for n in range(3)])
    if compacted:
        compact_all(world)
    held = world.keyring.ref_of(SubjectId("bob"))
    assert held is not None
    world.keyring.hold(held, True)
    gone = world.keyring.ref_of(SubjectId("cid"))
    shred(world, "cid")
    found = read(world, PERSONAL, tagged=tagged)
    assert (found.held, found.shredded, found.shredded_refs) == (3, 3, {gone})
    living = found.frame.filter(pl.col("event_id").is_not_null())
    assert sorted(living["note"].unique()) == ["ann", "dan"]
    assert (living["event_id"] == living["note"] + " " + living["cents"].cast(pl.String)).all()
    assert found.frame.filter(pl.col("event_id").is_null())["note"].null_count() == 6


def test_files_of_other_days_are_not_opened(slow_world: Runtime, clock: Clock) -> None:
    """They are told by their bounds: one that is gone from the disk is not missed."""
    for day in range(0, 60, 20):
        send(slow_world, [paid("ann", day, event_id=str(day), at=clock())])
        clock.forward(days=20)
    oldest = min(live(slow_world), key=lambda file: file.partition[0])
    Path(local_path(oldest.file_path)).unlink()
    last = (START + timedelta(days=40)).date()
    assert ids(read(slow_world, EventRead("Paid", PERSONAL.fields, days=(last, last)))) == ["40"]
    assert (
        read(slow_world, EventRead("Paid", ("cents",), days=(date(2001, 1, 1), date(2001, 1, 2)))).stored == 0
    )
    with pytest.raises((StorageFailed, FileNotFoundError)):
        read(slow_world)


# -- pieces ----------------------------------------------------------------------------------------


def _people(runtime: Runtime) -> None:
    """Sixty people with three commits of events, duplicates and corrections among them; one has very many."""
    for number in range(3):
        events = [
            paid(f"p{n % 60}", n, event_id=f"{n}", revision=number if n % 7 == 0 else 0, note=f"note {n}")
            for n in range(240)
        ]
        send(runtime, events, key=f"{number}")
        hot = [paid("hot", n, event_id=f"h{number}-{n}", note="x" * 20) for n in range(MAX_BLOCK_EVENTS + 50)]
        send(runtime, [*hot, paid("hot", 1, event_id="again", revision=number)], key=f"hot {number}")


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("compacted", [False, True])
def test_pieces_are_the_whole_and_a_person_comes_together(world: Runtime, compacted: bool) -> None:
    """Whatever the bound: the same events; only who does not fit alone comes in several pieces."""
    _people(world)
    shred(world, "p3")
    if compacted:
        compact_all(world)
    whole = read(world).untagged()
    order = ["subject_ref", "occurred_on", "cents", "event_id"]
    hot = world.keyring.ref_of(SubjectId("hot"))
    assert hot is not None
    replay = world.lake.replay()
    told: list[tuple[int, int]] = []
    for memory_bytes in (50_000, 400_000, 4_000_000, 10**9):
        told.clear()
        pieces = list(
            replay.frames(
                live(world), PERSONAL, memory_bytes=memory_bytes, progress=lambda *at: told.append(at)
            )
        )
        together = pl.concat(piece.frame for piece in pieces)
        assert together.sort(order).equals(whole.frame.sort(order))
        for counted in ("stored", "superseded", "shredded"):
            assert sum(getattr(piece, counted) for piece in pieces) == getattr(whole, counted)
        owners = [ref for piece in pieces for ref in piece.frame["subject_ref"].unique()]
        assert {ref for ref in owners if owners.count(ref) > 1} <= {hot}
        assert told[-1] == (whole.stored, whole.stored)
    assert len(pieces) == 1
    of_days = EventRead("Paid", PERSONAL.fields, days=(START.date(), START.date()))
    parts = [one.frame for one in replay.frames(live(world), of_days, memory_bytes=50_000, refs=[hot])]
    assert len(parts) > 1
    assert pl.concat(parts).equals(whole.frame.filter(pl.col("subject_ref") == hot))


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize(("seed", "sorted_days"), [(0, slice(3, 7)), (1, slice(None))])
def test_pieces_that_part_the_blocks_of_an_erased_person_are_the_whole(
    slow_world: Runtime, clock: Clock, seed: int, sorted_days: slice
) -> None:
    """Severed blocks stand under handles of their own, and an event may be in several of them."""
    _history(slow_world, clock, seed)
    shred(slow_world, "p1")
    upkeep = Upkeep(slow_world.lake)
    for day in sorted(upkeep.days())[sorted_days]:
        upkeep.compact(day)
    days = (START.date(), START.date() + timedelta(days=4))
    replay, files = slow_world.lake.replay(), live(slow_world)
    for wanted in (PERSONAL, CLEAR, EventRead("Paid", PERSONAL.fields, days=days)):
        whole = read(slow_world, wanted)
        order = ["subject_ref", "ingest_day", *wanted.fields, "occurred_on"]
        expected = whole.untagged().frame.sort(order)
        handles = read(slow_world, wanted, settled=False).frame["subject_ref"].unique().sort().to_list()
        ends = [(low, low + b"\0") for low in handles]
        until = [(b"", handles[0] + b"\0"), *[(a + b"\0", b + b"\0") for a, b in pairwise(handles)]]
        assert len({one[:2] for one in handles}) < len(handles), "several handles are one person's"
        told = [
            [replay.events(files, wanted, ref_range=span, tagged=tagged) for span in spans]
            for spans in (ends, until)
            for tagged in (True, False)
        ]
        for ref in handles:
            alone = replay.events(files, wanted, refs=[ref], tagged=False).frame
            by_one = [one.frame for one in replay.frames(files, wanted, memory_bytes=1, refs=[ref])]
            assert pl.concat(by_one).sort(order).equals(alone.sort(order)), "handles that are asked for"
        for parts in [*told, list(replay.frames(files, wanted, memory_bytes=1))]:
            frame = pl.concat([part.untagged().frame for part in parts])
            assert frame.sort(order).equals(expected)
            for counted in ("stored", "superseded", "shredded"):
                assert sum(getattr(part, counted) for part in parts) == getattr(whole, counted)


def _pieces_of(runtime: Runtime, memory_bytes: int, share_before: int) -> dict[str, int]:
    """What a process of its own says that reads the lake in pieces, beyond what reading a few people takes."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.lake.replay_worker",
            str(runtime.home),
            str(memory_bytes),
            str(share_before),
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def _cents(events: int) -> int:
    return sum(number % 1000 for number in range(events))


def test_memory_stays_below_its_bound_in_a_lake_several_times_as_large(world: Runtime) -> None:
    """Peak resident memory, measured in a process of its own; read at once it would take far more."""
    events, bound = 400_000, 64 * MIB
    source = MadeUp(world.lake.types.get("Paid"), events, people=20_000, note_bytes=400)
    world.lake.ingestor().run(source, batch_events=40_000)
    assert sum(file.file_size_in_bytes for file in live(world)) > 2.5 * bound
    found = _pieces_of(world, bound, share_before=4)
    assert (found["events"], found["cents"]) == (events, _cents(events))
    assert found["pieces"] > 5
    assert found["took"] < bound + SLACK


def test_a_person_with_a_million_events_is_read_in_pieces(world: Runtime) -> None:
    """Not at once: the pieces are bounded, and every event comes."""
    source = MadeUp(world.lake.types.get("Paid"), 1_000_000)
    world.lake.ingestor().run(source, batch_events=250_000)
    found = _pieces_of(world, 32 * MIB, share_before=0)
    assert (found["events"], found["cents"]) == (1_000_000, _cents(1_000_000))
    assert found["pieces"] > 5
    assert found["took"] < 32 * MIB + SLACK + 1_000_000 * 170  # what the duplicate rule looks at


# -- between two snapshots -------------------------------------------------------------------------


def _since(runtime: Runtime, after: int, until: int | None = None) -> list[str]:
    replay = runtime.lake.replay()
    return ids(replay.events(replay.files_between(after, until or _head(runtime)), PERSONAL))


def _head(runtime: Runtime) -> int:
    head = runtime.lake.events.snapshot()
    assert head is not None
    return head.snapshot_id


def test_a_day_that_was_sorted_since_is_read_over_expired_snapshots(
    slow_world: Runtime, clock: Clock
) -> None:
    """All of its rows are newer, and the file's name says so."""
    send(slow_world, [paid("ann", event_id="old")])
    after = _head(slow_world)
    slow_world.lake.events.set_tags({"mine": after})
    clock.forward(days=1)
    for number in range(3):
        send(
            slow_world,
            [paid("ann", number, event_id=f"{number}"), paid("bob", event_id="twice")],
            key=f"{number}",
        )
    Upkeep(slow_world.lake).compact(clock().date())
    Housekeeping(slow_world.lake).expire(keep=1)
    assert len(slow_world.lake.events.history()) == 2
    assert _since(slow_world, after) == ["0", "1", "2", "twice"]


def test_a_day_that_mixes_old_and_new_is_told_apart_by_a_snapshot_that_is_kept(world: Runtime) -> None:
    """One from before the day was rewritten: first what came up to it, then what came after."""
    send(world, [paid("ann", event_id="old")])
    after = _head(world)
    send(world, [paid("ann", event_id="1")])
    send(world, [paid("bob", event_id="2")])
    between = _head(world)
    world.lake.events.set_tags({"mine": after, "hour": between})
    compact_all(world)
    send(world, [paid("bob", event_id="3")])
    Housekeeping(world.lake).expire(keep=1)
    assert len(world.lake.events.history()) == 3
    assert _since(world, after) == ["1", "2", "3"]
    assert _since(world, after, between) == ["1", "2"]
    assert _since(world, between) == ["3"]
    assert _since(world, after, after) == []


def test_where_nothing_tells_old_from_new_the_error_names_the_day_and_what_to_do(
    slow_world: Runtime, clock: Clock
) -> None:
    """Never a wrong answer: neither everything nor nothing."""
    send(slow_world, [paid("ann", event_id="old")])
    after = _head(slow_world)
    slow_world.lake.events.set_tags({"mine": after})
    send(slow_world, [paid("ann", event_id="1")])
    gone = _head(slow_world)
    compact_all(slow_world)
    Housekeeping(slow_world.lake).expire(keep=1)
    with pytest.raises(SnapshotGone, match=rf"into the same files of {clock().date()}") as refused:
        _since(slow_world, after)
    assert "lake snapshots" in refused.value.next_step
    with pytest.raises(SnapshotGone, match=f"{gone} was expired"):
        _since(slow_world, gone)
    with pytest.raises(SnapshotGone, match="is not older than"):
        _since(slow_world, _head(slow_world), after)
    with pytest.raises(SnapshotGone, match="snapshot 7 was expired, or never was"):
        _since(slow_world, after, 7)


def test_an_expired_snapshot_is_still_placed_by_a_file_that_it_added(world: Runtime) -> None:
    """Its number stands beside the file in the manifests."""
    send(world, [paid("ann", event_id="old")])
    after = _head(world)
    send(world, [paid("ann", event_id="1")])
    send(world, [paid("ann", event_id="2")])
    Housekeeping(world.lake).expire(keep=1)
    assert _since(world, after) == ["1", "2"]
