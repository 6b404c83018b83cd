"""The proof that nothing is lost: from the newest summary alone, and from the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyiceberg.manifest import DataFile
from pyiceberg.table.metadata import TableMetadata

from lake import Housekeeping, JsonLinesFile, Upkeep, verify
from lake import offsets as summaries
from lake.errors import AccountDamaged, Fenced
from lake.objects import SETTLED_END, local_path
from lake.offsets import (
    ENDING,
    Account,
    Range,
    SettledList,
    accounts_of,
    lists_to_join,
    settled_of,
    totals_of,
    upkeep_summary,
)
from lake.settled import SourceBook
from lake.table import summary_of
from service.runtime import Runtime, open_runtime
from tests.world import compact_all, erase, make_world, paid, send

FEW = 3


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of settled sources are written after a handful of files."""
    monkeypatch.setattr(summaries, "UNSETTLED_SOURCES", FEW)


def file_of(runtime: Runtime, number: int, events: int = 2, copy: bool = False) -> JsonLinesFile:
    """A file of so many events, a line that fits no type, and a blank one; a copy holds duplicates."""
    path = runtime.home.parent / f"{number}.jsonl"
    lines = [json.dumps(paid(f"person-{n % 3}", n, event_id=f"{number}-{n}")) for n in range(events)]
    path.write_text("\n".join([*lines, '{"broken": true}', "", *([""] * copy), ""]))
    return JsonLinesFile(path, runtime.lake.types)


def take(runtime: Runtime, *numbers: int) -> None:
    """Ingests files."""
    for number in numbers:
        runtime.lake.ingestor().run(file_of(runtime, number))


def head_summary(runtime: Runtime) -> dict[str, str]:
    """The newest summary."""
    head = runtime.lake.events.snapshot()
    assert head is not None
    return summary_of(head)


def without_a_row(file: DataFile) -> None:
    """Rewrites a data file by hand, one row short."""
    path = local_path(file.file_path)
    rows = pq.read_table(path)
    pq.write_table(rows.slice(1), path)


def committed(runtime: Runtime, summary: dict[str, str]) -> None:
    """A commit of nothing but this summary."""

    def guard(_: TableMetadata) -> dict[str, str]:
        return summary

    runtime.lake.events.commit([], guard)


# -- loss ------------------------------------------------------------------------------------------


def test_a_row_that_is_gone_from_a_data_file_is_found(world: Runtime) -> None:
    """Also when every snapshot that brought it has expired."""
    take(world, *range(4))
    compact_all(world)
    Housekeeping(world.lake).expire(keep=1)
    checked = verify(world.lake, deep=True)
    assert (checked.problems, checked.events, checked.stored, checked.sources) == ((), 8, 12, 4)
    without_a_row(world.lake.events.files()[0])
    assert verify(world.lake).problems == (), "metadata alone cannot see it"
    blocks, events = verify(world.lake, deep=True).problems
    assert "its manifest says" in blocks
    assert "12 must be" in events


def test_a_rewrite_that_leaves_a_block_out_is_found(world: Runtime) -> None:
    """File and manifest agree with each other, and not with what was ingested."""
    take(world, 0, 1)
    table = world.lake.events
    first, second = table.files()
    without_a_row(first)
    short = DataFile.from_args(
        **{
            name: getattr(first, name)
            for name in ("content", "file_path", "file_format", "partition", "file_size_in_bytes")
        },
        record_count=first.record_count - 1,
    )
    short.spec_id = first.spec_id

    def guard(metadata: TableMetadata) -> dict[str, str]:
        return upkeep_summary(head_summary(world), epoch=0)

    table.commit([short], guard, removes=[first])
    (problem,) = verify(world.lake, deep=True).problems
    assert "must be" in problem
    assert second.record_count


def test_duplicates_that_compaction_drops_are_accounted_for(world: Runtime) -> None:
    """Stored is what was ingested less what was superseded, and the head knows how many that were."""
    send(world, [paid("ann", 1, event_id="1"), paid("bob", 2, event_id="2")])
    send(world, [paid("ann", 1, event_id="1"), paid("ann", 3, event_id="3")])
    compact_all(world)
    Housekeeping(world.lake).expire(keep=1)
    checked = verify(world.lake, deep=True)
    assert (checked.problems, checked.events, checked.superseded, checked.stored) == ((), 4, 1, 3)


@pytest.mark.parametrize(
    ("totals", "account"),
    [({"events": 1}, {}), ({"blank": 1, "lines": 1}, {}), ({}, {"next": 1}), ({}, {"dead": 1})],
)
def test_a_head_whose_account_does_not_add_up_is_found(
    world: Runtime, totals: dict[str, int], account: dict[str, int]
) -> None:
    """One number off, in the totals or in a source's own, with every older snapshot gone."""
    take(world, 0, 1)
    summary = upkeep_summary(head_summary(world), epoch=0)
    name, one = next(iter(accounts_of(summary).items()))
    accounts = accounts_of(summary) | {name: evolve(one, **_more(one, account))}
    wrong = evolve(totals_of(summary), **_more(totals_of(summary), totals))
    committed(world, {**summary, **summaries._account(accounts, wrong, ())})
    Housekeeping(world.lake).expire(keep=1)
    assert verify(world.lake).problems


def _more(record: Any, by: dict[str, int]) -> dict[str, int]:
    return {name: getattr(record, name) + count for name, count in by.items()}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("file"), st.integers(0, 9)),
        st.tuples(st.just("again"), st.integers(0, 9)),
        st.tuples(st.sampled_from(["compact", "merge", "expire", "erase"]), st.integers(0, 2)),
    ),
    min_size=3,
    max_size=10,
)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS, victim=st.integers(0, 100))
def test_the_account_is_right_after_any_history(
    few: None, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], victim: int
) -> None:
    """Files, the same events in other files, compaction, merging, erasure and expiry in any order."""
    with make_world(tmp_path_factory.mktemp("any") / "lake") as world:
        seen: set[str] = set()
        erased: set[int] = set()
        take(world, 100)
        events = 2
        for what, number in steps:
            if what in ("file", "again"):
                source = file_of(world, number, copy=what == "again")
                if source.name not in seen:
                    events += sum(person not in erased for person in range(2))
                seen.add(source.name)
                world.lake.ingestor().run(source)
            elif what == "compact":
                compact_all(world)
            elif what == "merge":
                for day in Upkeep(world.lake).days():
                    Upkeep(world.lake).merge(day, at_least=2)
            elif what == "expire":
                Housekeeping(world.lake).expire(keep=1)
                Housekeeping(world.lake).sweep(grace_seconds=0)
            elif number not in erased and world.keyring.ref_of(subject(number)) is not None:
                erase(world, f"person-{number}")
                erased.add(number)
        checked = verify(world.lake, deep=True)
        assert checked.problems == ()
        assert (checked.events, checked.sources) == (events, len(seen) + 1)
        files = world.lake.events.files()
        without_a_row(files[victim % len(files)])
        assert verify(world.lake, deep=True).problems


def subject(number: int) -> Any:
    """A person of `file_of`."""
    from keys import SubjectId

    return SubjectId(f"person-{number}")


# -- settled sources -------------------------------------------------------------------------------


def test_a_settled_file_that_comes_again_changes_nothing(few: None, world: Runtime) -> None:
    """Whatever upkeep did since, and for a process that has never seen the lake before."""
    take(world, *range(3 * FEW))
    compact_all(world)
    Housekeeping(world.lake).expire(keep=1)
    Housekeeping(world.lake).sweep(grace_seconds=0)
    before = verify(world.lake, deep=True)
    with open_runtime(world.home) as other:
        again = other.lake.ingestor().run(file_of(world, 0))
    assert (again.events, again.already, again.snapshots) == (0, 4, ())
    assert verify(world.lake, deep=True) == before
    assert before.sources == 3 * FEW


def test_a_settled_source_fences_who_still_believes_in_its_beginning(few: None, world: Runtime) -> None:
    """The guard looks into the lists inside the commit attempt."""
    source = file_of(world, 0)
    (parsed,) = source.read(0)
    take(world, *range(3 * FEW))
    Housekeeping(world.lake).expire(keep=1)
    assert source.name not in accounts_of(head_summary(world))
    with pytest.raises(Fenced):
        world.lake.ingestor().land([(source.name, parsed)])
    assert verify(world.lake, deep=True).problems == ()


def test_a_half_read_file_that_settled_goes_on_where_it_was(few: None, world: Runtime) -> None:
    """Lists hold where a source stands, finished or not."""
    source = file_of(world, 0, events=6)
    (parsed, *_) = source.read(0, 4)
    world.lake.ingestor().land([(source.name, parsed)])
    take(world, *range(1, 3 * FEW))
    assert source.name not in accounts_of(head_summary(world))
    done = world.lake.ingestor().run(source)
    assert (done.events, done.already) == (2, 4)
    take(world, *range(20, 20 + 2 * FEW))
    assert SourceBook(world.lake.events).next_line(source.name) == 8
    assert verify(world.lake, deep=True).problems == ()


def test_a_summary_does_not_grow_with_the_number_of_files(few: None, world: Runtime) -> None:
    """Nor do the lists: each is joined with those that are not larger."""
    for number in range(30):
        send(world, [paid("ann", 1, event_id=f"{number}")], key=f"{number}")
        summary = head_summary(world)
        assert sum(name.startswith(ENDING) for name in accounts_of(summary)) <= FEW + 1
    lists = settled_of(summary)
    assert len(lists) <= 4
    assert sum(one.sources for one in lists) + len(accounts_of(summary)) == 30
    Housekeeping(world.lake).expire(keep=1)
    swept = [one.location for one in Housekeeping(world.lake).sweep(grace_seconds=0)]
    assert sum(one.endswith(SETTLED_END) for one in swept) > 5, "joined lists go once nothing names them"
    assert verify(world.lake, deep=True).problems == ()


def test_a_damaged_list_stops_ingest_and_says_what_to_do(few: None, world: Runtime) -> None:
    """What was settled cannot be told from what is new, so nothing lands."""
    take(world, *range(3 * FEW))
    (path, *_) = Path(local_path(world.lake.events.load().location())).rglob(f"*{SETTLED_END}")
    before = world.lake.events.snapshot()
    for path in Path(local_path(world.lake.events.load().location())).rglob(f"*{SETTLED_END}"):
        path.write_bytes(path.read_bytes().replace(b"file:", b"fi1e:"))
    with open_runtime(world.home) as other, pytest.raises(AccountDamaged) as raised:
        other.lake.ingestor().run(file_of(world, 0))
    assert "backup" in raised.value.next_step
    assert world.lake.events.snapshot() == before


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200))
def test_lists_stay_few_and_sources_are_seldom_written_again(batches: list[int]) -> None:
    """A list at least doubles when it is written anew."""
    lists: list[SettledList] = []
    for batch in batches:
        count = lists_to_join(lists, batch)
        size = batch + sum(one.sources for one in lists[len(lists) - count :])
        lists = [*lists[: len(lists) - count], SettledList("", "", size)]
    sizes = [one.sources for one in lists]
    assert sum(sizes) == sum(batches)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes) <= sum(batches).bit_length() + 6


def test_an_account_counts_every_line_of_its_source() -> None:
    """Range by range."""
    account = Account().plus(Range("file:a", 0, 5, 2, 1, 1, 1)).plus(Range("file:a", 5, 7, 2, 0, 0, 0))
    assert account == Account(7, 4, 1, 1, 1)
    assert account.adds_up()
    assert not evolve(account, events=5).adds_up()
