"""Guarded commits: lost answers, conflicts, and what a reader of old snapshots sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pyiceberg.exceptions import CommitFailedException

from keys import KeyRecordMissing, Shredded, SubjectId, TamperedEnvelope
from lake import (
    CommitConflict,
    EventRead,
    Housekeeping,
    JsonLinesFile,
    SnapshotGone,
    StorageFailed,
    Upkeep,
    verify,
)
from lake.objects import local_path
from lake.selection import block_rows
from service.runtime import Runtime
from tests.world import Clock, compact_all, paid, send, shred

READ = EventRead("Paid", ("cents", "event_id", "note"))


def head_frame(runtime: Runtime, read: EventRead = READ) -> pl.DataFrame:
    """Events of the head."""
    replay = runtime.lake.replay()
    head = replay.resolve(None)
    assert head is not None
    return replay.events(replay.files(head.snapshot_id), read).frame


def break_commit(runtime: Runtime, fault: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Puts a fault at the catalog's commit."""
    catalog: Any = runtime.lake.warehouse.catalog
    catalog.commit_table = fault(catalog.commit_table)


def test_a_commit_whose_answer_was_lost_counts_once(world: Runtime) -> None:
    """It landed, the connection broke; the snapshot id is looked up."""
    fired = []

    def fault(commit: Callable[..., Any]) -> Callable[..., Any]:
        def broken(*args: Any) -> Any:
            answer = commit(*args)
            if not fired:
                fired.append(True)
                raise ConnectionError("the answer was lost")
            return answer

        return broken

    break_commit(world, fault)
    assert send(world, [paid("ann", event_id="1")]).events == 1
    assert head_frame(world).height == 1
    assert verify(world.lake, deep=True).problems == ()


def test_a_commit_that_never_arrived_is_an_error_and_repeats(world: Runtime) -> None:
    """Nothing landed: the error comes out, and the same batch goes in afterwards."""
    fired = []

    def fault(commit: Callable[..., Any]) -> Callable[..., Any]:
        def broken(*args: Any) -> Any:
            if not fired:
                fired.append(True)
                raise ConnectionError("the catalog is away")
            return commit(*args)

        return broken

    break_commit(world, fault)
    with pytest.raises(StorageFailed):
        send(world, [paid("ann", event_id="1")], key="k")
    assert send(world, [paid("ann", event_id="1")], key="k").events == 1
    assert head_frame(world).height == 1


def test_a_conflict_answered_to_a_commit_that_landed_deletes_nothing(world: Runtime, tmp_path: Path) -> None:
    """Also where the snapshot has expired before it is looked up: what it wrote is in use."""
    fired = []

    def fault(commit: Callable[..., Any]) -> Callable[..., Any]:
        def answered_wrongly(*args: Any) -> Any:
            answer = commit(*args)
            if not fired:
                fired.append(True)
                send(world, [paid("bob", event_id="2")])
                Housekeeping(world.lake).expire(keep=1)
                raise CommitFailedException("the second attempt of a proxy met the first")
            return answer

        return answered_wrongly

    break_commit(world, fault)
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(paid("ann", event_id="1")))
    world.lake.ingestor().run(JsonLinesFile(path, world.lake.types))
    assert len(world.lake.events.history()) == 1
    assert sorted(head_frame(world)["event_id"]) == ["1", "2"]
    assert verify(world.lake, deep=True).problems == ()


def test_a_conflict_is_tried_again_and_given_up_in_the_end(world: Runtime) -> None:
    """One lost race is nobody's business; losing all of them is an error that says so."""
    races = [2]

    def fault(commit: Callable[..., Any]) -> Callable[..., Any]:
        def racing(*args: Any) -> Any:
            if races[0]:
                races[0] -= 1
                raise CommitFailedException("somebody was faster")
            return commit(*args)

        return racing

    break_commit(world, fault)
    assert send(world, [paid("ann", event_id="1")]).events == 1
    races[0] = 10_000
    with pytest.raises(CommitConflict):
        world.lake.events.commit([], lambda _: {})
    races[0] = 0
    assert head_frame(world).height == 1


def test_old_snapshots_answer_shredded_for_the_erased_and_open_for_others(world: Runtime) -> None:
    """Time travel reaches the rows, and not the person."""
    send(world, [paid("ann", event_id="1"), paid("bob", event_id="2")])
    old = world.lake.events.history()[0].snapshot_id
    world.lake.events.set_tags({"kept": old})
    shred(world, "ann")
    compact_all(world)
    replay = world.lake.replay()
    events = replay.events(replay.files(old), READ)
    assert events.frame.filter("shredded").height == events.shredded == 1
    assert events.frame.filter(~pl.col("shredded"))["event_id"].to_list() == ["2"]
    assert events.frame["cents"].sum() == 200


def _rewrite(runtime: Runtime, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    (file,) = runtime.lake.events.files()
    path = Path(local_path(file.file_path))
    changed = change(pl.read_parquet(path, hive_partitioning=False))
    changed.write_parquet(path)


def test_a_tampered_envelope_is_an_error_and_never_shredded(world: Runtime) -> None:
    """One flipped bit of ciphertext."""
    send(world, [paid("ann", event_id="1")])

    def flip(rows: pl.DataFrame) -> pl.DataFrame:
        sealed = bytearray(rows["sealed"][0])
        sealed[-1] ^= 1
        return rows.with_columns(pl.Series("sealed", [bytes(sealed)], dtype=pl.Binary))

    _rewrite(world, flip)
    with pytest.raises(TamperedEnvelope):
        head_frame(world)


def test_a_swapped_row_is_an_error_and_never_shredded(world: Runtime) -> None:
    """One person's envelope under another block id of the same person does not open."""
    send(world, [paid("ann", event_id="1")])
    _rewrite(world, lambda rows: rows.with_columns(pl.Series("block_id", [b"\0" * 16], dtype=pl.Binary)))
    with pytest.raises(TamperedEnvelope):
        head_frame(world)


def test_a_handle_without_key_and_fence_is_an_error_and_never_shredded(world: Runtime) -> None:
    """An incomplete page store is not an erasure."""
    send(world, [paid("ann", event_id="1")])
    _rewrite(world, lambda rows: rows.with_columns(pl.Series("subject_ref", [b"\1" * 16], dtype=pl.Binary)))
    with pytest.raises(KeyRecordMissing):
        head_frame(world)


def test_compaction_merges_blocks_and_keeps_every_event(world: Runtime) -> None:
    """Ten commits of one person become one block with the same events."""
    for n in range(10):
        send(world, [paid("ann", n, event_id=str(n)), paid("bob", n, event_id=f"b{n}")])
    before = head_frame(world).sort("event_id").select("event_id", "cents", "note")
    (done,) = [Upkeep(world.lake).compact(day) for day in Upkeep(world.lake).days()]
    assert (done.files_before, done.blocks_before, done.files_after, done.blocks_after) == (10, 20, 1, 2)
    assert head_frame(world).sort("event_id").select("event_id", "cents", "note").equals(before)
    assert verify(world.lake, deep=True).problems == ()


def test_compaction_drops_what_the_duplicate_rule_drops(world: Runtime) -> None:
    """Three deliveries and one correction of an event become the correction."""
    for n in range(3):
        send(world, [paid("ann", 1, event_id="same")], key=f"k{n}")
    send(world, [paid("ann", 9, event_id="same", revision=1)])
    (done,) = [Upkeep(world.lake).compact(day) for day in Upkeep(world.lake).days()]
    assert done.superseded == 3
    assert head_frame(world)["cents"].to_list() == [9]


def test_compaction_severs_the_dead_and_totals_do_not_move(world: Runtime) -> None:
    """The anonymous remainder stays; handle and sealed bytes are gone from the live files."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2")])
    send(world, [paid("ann", 5, event_id="1")], key="a late duplicate")
    ref = world.keyring.ref_of(SubjectId("ann"))
    assert ref is not None
    shred(world, "ann")
    (done,) = [Upkeep(world.lake).compact(day) for day in Upkeep(world.lake).days()]
    assert done.severed_blocks == 2
    live = block_rows(world.lake.events, world.lake.events.files(), None)
    assert ref not in live["subject_ref"].to_list()
    assert live.filter(pl.col("sealed").is_null()).height == 2
    anonymous = head_frame(world, EventRead("Paid", ("cents",)))
    assert anonymous["cents"].sum() == 12, "the duplicate of a dead person is still known as one"


def test_severing_copies_everybody_else_s_rows_as_they_are(world: Runtime) -> None:
    """No other block is opened or sealed again; files without the person are not touched."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2")])
    send(world, [paid("cid", 9, event_id="3")])
    ref = world.keyring.ref_of(SubjectId("ann"))
    assert ref is not None
    before = block_rows(world.lake.events, world.lake.events.files(), None).filter(
        pl.col("subject_ref") != ref
    )
    untouched = {f.file_path for f in world.lake.events.files()}
    upkeep = Upkeep(world.lake)
    (day,) = upkeep.days()
    assert upkeep.sever(day, [ref]).blocks == 0, "nobody is severed who can be read"
    shred(world, "ann")
    assert upkeep.sever(day, [ref]).blocks == 1
    assert upkeep.sever(day, [ref]).blocks == 0
    after = block_rows(world.lake.events, world.lake.events.files(), None)
    alive = after.filter(pl.col("sealed").is_not_null())
    assert alive.sort("block_id").drop("_n").equals(before.sort("block_id").drop("_n"))
    assert ref not in after["subject_ref"].to_list()
    assert len(untouched & {f.file_path for f in world.lake.events.files()}) == 1
    assert head_frame(world, EventRead("Paid", ("cents",)))["cents"].sum() == 21


def test_ingest_during_compaction_loses_nothing(world: Runtime) -> None:
    """A commit that lands while a day is rewritten stays."""
    send(world, [paid("ann", event_id="1")])
    original, fired = world.lake.events.write_file, []

    def write_and_race(*args: Any, **kwargs: Any) -> Any:
        written = original(*args, **kwargs)
        if not fired:
            fired.append(True)
            send(world, [paid("bob", event_id="2")])
        return written

    world.lake.events.write_file = write_and_race  # type: ignore[method-assign]
    compact_all(world)
    assert sorted(head_frame(world)["event_id"]) == ["1", "2"]
    assert verify(world.lake, deep=True).problems == ()


def test_expiry_and_sweep_remove_files_and_leave_tags_readable(world: Runtime) -> None:
    """Untagged old snapshots go with their files; a tagged one still reads."""
    send(world, [paid("ann", event_id="1")])
    first = world.lake.events.history()[0].snapshot_id
    world.lake.events.set_tags({"audit": first})
    for n in range(3):
        send(world, [paid("ann", event_id=f"x{n}")])
        compact_all(world)
    upkeep = Housekeeping(world.lake)
    expired = upkeep.expire(keep=1)
    assert len(expired) == 5
    would = upkeep.sweep(grace_seconds=0, dry_run=True)
    assert would
    assert upkeep.sweep(grace_seconds=0) == would
    assert not any(Path(local_path(one.location)).exists() for one in would)
    replay = world.lake.replay()
    assert replay.events(replay.files(first), READ).frame.height == 1
    assert head_frame(world).height == 4
    with pytest.raises(SnapshotGone):
        replay.files(expired[0])


def test_a_moment_before_the_first_snapshot_says_since_when(slow_world: Runtime, clock: Clock) -> None:
    """The error names the first commit."""
    send(slow_world, [paid("ann", event_id="1")])
    with pytest.raises(SnapshotGone, match="its first commit is of"):
        slow_world.lake.replay().resolve(clock().replace(year=2001))


def test_several_versions_of_a_type_are_read_as_the_newest(world: Runtime) -> None:
    """What an older version lacks is null."""
    from tests.world import PAID

    send(world, [paid("ann", event_id="1")])
    world.lake.types.register(
        PAID
        | {"version": 2, "properties": PAID["properties"] | {"tip": {"type": "integer", "anonymous": True}}}  # type: ignore[operator]
    )
    send(world, [paid("ann", event_id="2") | {"data": {"cents": 3, "tip": 4}}])
    rows = head_frame(world, EventRead("Paid", ("cents", "tip", "event_id"))).sort("event_id")
    assert rows["tip"].to_list() == [None, 4]
    compact_all(world)
    assert head_frame(world, EventRead("Paid", ("cents", "tip"))).height == 2


def test_two_people_in_one_event_are_two_facets(world: Runtime) -> None:
    """Erasing the rider leaves the driver's part whole; the event is counted once."""
    from lake import Facet

    world.lake.types.register(
        {
            "name": "Ride",
            "type": "object",
            "properties": {
                "km": {"type": "integer", "anonymous": True},
                "from": {"type": "string"},
                "driver_id": {"type": "string", "subject_of": "driver"},
                "plate": {"type": "string", "role": "driver"},
                "ad_click": {"type": "string", "purpose": "marketing"},
            },
            "required": ["km"],
        }
    )
    data = {"km": 3, "from": "home", "driver_id": "dan", "plate": "X1", "ad_click": "banner"}
    send(world, [paid("ann", event_id="1") | {"type": "Ride", "data": data}])
    assert verify(world.lake, deep=True).stored == 1
    shred(world, "ann")
    driver = EventRead("Ride", ("km", "plate", "subject"), Facet("driver", "service"))
    assert head_frame(world, driver).select("subject", "plate", "km").rows() == [("dan", "X1", 3)]
    assert head_frame(world, EventRead("Ride", ("km", "from")))["shredded"].to_list() == [True]
    marketing = EventRead("Ride", ("km", "ad_click"), Facet("subject", "marketing"))
    assert head_frame(world, marketing)["shredded"].to_list() == [True]
    assert isinstance(world.keyring.erased(SubjectId("ann")), Shredded)
