"""Runs: blocks of sorted files whose open parts lie together (docs/formats/block-body.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys import SubjectId
from lake import EventRead, Upkeep, runs
from lake.bodies import pack
from lake.errors import CorruptBlock
from lake.runs import NO_RUNS, Runs, alone, in_runs, open_events, out_of_runs
from lake.selection import Selection
from service.runtime import Runtime
from tests.lake.plain_body import read_body
from tests.world import compact_all, paid, send, shred

SCHEMA: dict[str, pl.DataType] = {"day": pl.Int64(), "shop": pl.String()}
COLUMNS = list(SCHEMA)
_blocks = st.lists(
    st.tuples(
        st.integers(0, 2**16 - 1),
        st.integers(1, 2),
        st.lists(
            st.tuples(st.integers(-(2**40), 2**40), st.sampled_from(["a", "bc", "", "é"])),
            min_size=1,
            max_size=5,
        ),
    ),
    min_size=1,
    max_size=20,
)


SMALL = {"RUN_EVENTS": 3, "_AT_ONCE": 8}
SHORT = {"RUN_BYTES": 30}


@pytest.fixture(autouse=True, scope="module", params=[SMALL, SHORT, {}], ids=["small", "short", "usual"])
def _size_of_a_run(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in request.param.items():
            patch.setattr(runs, name, value)
        yield


def rows_of(blocks: list[tuple[int, int, list[tuple[int, str]]]]) -> pl.DataFrame:
    """Blocks of one type in the order of their handles, each with a body of its own."""
    ordered = sorted(blocks, key=lambda one: one[0])
    events = pl.DataFrame([e for *_, some in ordered for e in some], schema=SCHEMA, orient="row")
    counts = [len(some) for *_, some in ordered]
    return pl.DataFrame(
        {
            "subject_ref": pl.Series([p.to_bytes(2, "big") + bytes(14) for p, *_ in ordered]),
            "event_type": "Paid",
            "schema_version": pl.Series([version for _, version, _ in ordered], dtype=pl.Int32),
            "facet": "subject/service",
            "event_count": pl.Series(counts, dtype=pl.Int32),
            "open": pack(events, np.cumsum([0, *counts])),
        }
    )


def of_one_version(rows: pl.DataFrame) -> list[pl.DataFrame]:
    """Rows by version."""
    return [rows.filter(schema_version=version) for version in sorted(set(rows["schema_version"]))]


@given(blocks=_blocks, data=st.data())
def test_any_blocks_of_runs_in_any_order_say_what_they_said_alone(blocks: Any, data: st.DataObject) -> None:
    """Also where some have bodies of their own."""
    rows = rows_of(blocks)
    stored = in_runs(rows, lambda *_: SCHEMA)
    assert stored.drop("open", "run", "run_from", "run_to", "run_at").equals(rows.drop("open"))
    bodies = Runs.among(stored)
    chosen = data.draw(st.permutations(range(rows.height)))[: data.draw(st.integers(1, rows.height))]
    strangers = data.draw(st.sets(st.sampled_from(chosen)))
    mixed = [alone(rows)[at] if at in strangers else stored[at].select(alone(rows).columns) for at in chosen]
    for found, before in zip(
        of_one_version(pl.concat(mixed)), of_one_version(rows[list(chosen)]), strict=True
    ):
        expected = open_events(before, NO_RUNS, SCHEMA, COLUMNS)
        assert open_events(found, bodies, SCHEMA, COLUMNS).equals(expected)
    assert out_of_runs(stored, bodies, lambda *_: SCHEMA).equals(rows)
    every = range(rows.height)
    of_both = [alone(rows)[at] if at in strangers else stored[at].select(alone(rows).columns) for at in every]
    assert out_of_runs(pl.concat(of_both), bodies, lambda *_: SCHEMA).equals(rows)


@given(blocks=_blocks)
def test_a_reader_written_from_the_page_alone_reads_a_run(blocks: Any) -> None:
    stored = in_runs(rows_of(blocks), lambda *_: SCHEMA)
    kinds = {"day": "integer", "shop": "string"}
    for group in stored.partition_by("run"):
        body = group["open"][0]
        assert group["run_at"][0] == 0
        assert group["open"].null_count() == group.height - 1
        read = read_body(body[4:], int.from_bytes(body[:4], "little"), kinds)
        assert len(read["day"]) == group["event_count"].sum()
        assert group["run_at"].to_list() == (group["event_count"].cum_sum() - group["event_count"]).to_list()
        prefixes = [int.from_bytes(ref[:2], "big") for ref in group["subject_ref"]]
        assert (group["run_from"][0], group["run_to"][0]) == (min(prefixes), max(prefixes))


def test_few_blocks_of_many_runs_are_found_in_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RUN_EVENTS", 8)
    monkeypatch.setattr(runs, "RUN_BYTES", 10_000)
    monkeypatch.setattr(runs, "_AT_ONCE", 8)
    rows = rows_of([(at, 1, [(at, "a")]) for at in range(64)])
    stored = in_runs(rows, lambda *_: SCHEMA)
    chosen = [60, 3, 21, 40, 12]
    found = open_events(stored[chosen], Runs.among(stored), SCHEMA, COLUMNS)
    assert found["day"].to_list() == chosen


def test_a_run_ends_where_it_has_so_many_events_or_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of([(at, 1, [(at, "a" * 10)] * 5) for at in range(40)])
    size = rows["open"].bin.size()[0]
    monkeypatch.setattr(runs, "RUN_EVENTS", 40)
    monkeypatch.setattr(runs, "RUN_BYTES", 2**20)
    assert in_runs(rows, lambda *_: SCHEMA).filter(run_at=0).height == 5
    monkeypatch.setattr(runs, "RUN_BYTES", 4 * size)
    stored = in_runs(rows, lambda *_: SCHEMA)
    assert stored.filter(run_at=0).height >= 10
    sized = rows.select("event_count", size=pl.col("open").bin.size()).hstack([stored["run"]])
    for run in sized.partition_by("run"):
        assert run["size"][:-1].sum() < 4 * size
        assert run["event_count"][:-1].sum() < 40
    assert out_of_runs(stored, Runs.among(stored), lambda *_: SCHEMA).equals(rows)


def test_a_run_without_its_first_block_or_with_two_or_with_fewer_events_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "RUN_EVENTS", 100)
    monkeypatch.setattr(runs, "RUN_BYTES", 1000)
    blocks = [(at, 1, [(at, "a"), (at, "b")]) for at in range(3)]
    stored = in_runs(rows_of(blocks), lambda *_: SCHEMA)
    with pytest.raises(CorruptBlock, match="is missing"):
        open_events(stored, Runs.among(stored[1:]), SCHEMA, COLUMNS)
    with pytest.raises(CorruptBlock, match="several first blocks"):
        Runs.among(pl.concat([stored, stored[:1]]))
    body = stored["open"][0]
    longer = {"event_count": 4}  # of the second block: there are as many, and they are the third's
    for wrong in (
        longer,
        {"run_at": 5},
        {"run_at": -1},
        {"run_at": None},
        {"run_at": 2**31 - 1},
        {"event_count": 3},
        {"event_count": -2},
        {"event_count": 2**31 - 1},
        {"run": -1},
        {"run": 7},
        {"open": b"\0\0\0\0" + body[4:]},
        {"open": b"\xff\xff\xff\xff" + body[4:]},
        {"open": b"\x07\0\0\0" + body[4:]},
        {"open": b"\x06"},
    ):
        at = 0 if "open" in wrong else 2 if wrong != longer else 1
        changed = stored[at : at + 1].with_columns(
            pl.lit(value, stored.schema[name]).alias(name) for name, value in wrong.items()
        )
        broken = pl.concat([changed, stored[:at], stored[at + 1 :]])
        with pytest.raises(CorruptBlock):
            open_events(broken, Runs.among(broken), SCHEMA, COLUMNS)


def _many(world: Runtime, people: int) -> None:
    numbers = range(3 * people)
    events = [paid(f"p{n % people}", event_id=str(n)) for n in numbers]
    for n, event in zip(numbers, events, strict=True):
        event["data"] = {"cents": n, "shop": f"shop {n % 3}"}
    send(world, events)
    compact_all(world)


def _of(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return sorted(frame.select("subject_ref", "cents", "shop").rows())


def test_whoever_is_asked_for_is_found_in_whatever_run(world: Runtime) -> None:
    """One person, many, a range; more people than runs are looked for one by one."""
    _many(world, 90)
    files, reader = world.lake.events.files(), world.lake.replay()
    wanted = EventRead("Paid", ("cents", "shop"))
    whole = reader.events(files, wanted).frame
    refs = sorted(set(whole["subject_ref"]))
    assert whole.height == 270
    for some in ([refs[0]], [refs[-1]], refs[40:42], refs[::30], refs[5:85], refs[::2], []):
        found = reader.events(files, wanted, refs=some).frame
        assert _of(found) == _of(whole.filter(pl.col("subject_ref").is_in(some)))
    alone_in_range = [(ref, ref + b"\0") for ref in refs[::7]]
    for low, high in (
        *alone_in_range,
        (b"", refs[3]),
        (refs[10], refs[11]),
        (refs[20], None),
        (refs[7][:1], refs[80][:1]),
    ):
        found = reader.events(files, wanted, ref_range=(low, high)).frame
        inside = [ref for ref in refs if low <= ref and (high is None or ref < high)]
        assert _of(found) == _of(whole.filter(pl.col("subject_ref").is_in(inside)))


def test_only_runs_that_may_hold_somebody_are_read(world: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of those who are known to hold it no other."""
    monkeypatch.setattr(runs, "RUN_EVENTS", 6)
    _many(world, 90)
    scan = world.lake.events.scan(world.lake.events.files())
    refs = sorted(scan.select("subject_ref").collect().to_series())
    every = scan.filter(pl.col("run_at") == 0).collect().height
    assert every >= 45
    for chosen in (Selection(refs=refs[:1]), Selection(ref_range=(refs[30], refs[32]))):
        found = scan.filter(chosen.wanted_or_first()).collect()
        assert found.height <= 6
    numbers = scan.select(pl.col("run").unique().sort()).collect()["run"].to_list()
    one = Selection(block_ids=[b"none"], runs=numbers[:1])
    assert scan.filter(one.wanted_or_first()).collect()["run"].to_list() == numbers[:1]


def test_whoever_is_erased_of_a_run_the_others_say_what_they_said(world: Runtime) -> None:
    """Also the first of it, who bears the others' open parts; what the erased left in the open stays."""
    _many(world, 8)
    wanted = EventRead("Paid", ("cents", "shop"))
    before = world.lake.replay().events(world.lake.events.files(), wanted).frame
    upkeep = Upkeep(world.lake)
    (day,) = upkeep.days()
    for gone in ("p3", "p0", "p7", "p1"):
        ref = world.keyring.ref_of(SubjectId(gone))
        assert ref is not None
        shred(world, gone)
        assert upkeep.sever(day, [ref]).blocks == 1
        found = world.lake.replay().events(world.lake.events.files(), wanted).frame
        lean = world.lake.replay().events(world.lake.events.files(), wanted, tagged=False).frame
        assert _of(lean) == _of(found)
        assert ref not in found["subject_ref"].to_list()
        assert _of(found.join(before, on="subject_ref", how="semi")) == _of(
            before.join(found, on="subject_ref", how="semi")
        )
        assert sorted(found["cents"]) == sorted(before["cents"])
