"""Publishing, rolling back, time travel, gates and fingerprints."""

from __future__ import annotations

import contextlib
import functools
import gc
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from keys import LeaseExpired, SubjectId
from lake import verify
from projections import (
    DefinitionError,
    Deriver,
    DeriveTask,
    GateClosed,
    InProcess,
    NotPublished,
    ProcessPool,
    StaleEpoch,
    StateDamaged,
    UnknownView,
    ViewRegistry,
    fingerprint,
)
from projections.compute import Partial
from service.doctor import examine
from service.runtime import Runtime, open_deriver, open_runtime
from tests.world import PAID, Clock, compact_all, paid, publish, send, shred

HEAD = """
import polars as pl
from projections import Count, Fold, Projection, Sum, non_negative, within
c = pl.col
"""


def registry(tmp_path: Path, body: str) -> ViewRegistry:
    """Views out of a source text."""
    path = tmp_path / f"v{abs(hash(body))}.py"
    path.write_text(HEAD + body)
    return ViewRegistry.load([path])


def simple(final: str = "return rows", more: str = "", checks: str = "[]") -> str:
    """A small view's source."""
    return f"""
{more}
class V(Projection):
    name = "v"
    reads = {{"Paid": ["cents", "occurred_on"]}}
    keys = {{"day": c("occurred_on")}}
    state = {{"cents": Sum(c("cents"))}}
    checks = {checks}
    def final(self, rows):
        {final}
"""


def test_readers_see_nothing_before_publication(world: Runtime) -> None:
    """A built version waits beside what is published."""
    send(world, [paid("ann", event_id="1")])
    world.views.build(["cents_per_day"])
    with pytest.raises(NotPublished, match="never published"):
        world.views.as_reported("cents_per_day")


def test_a_second_build_of_nothing_new_reuses_every_bucket(world: Runtime) -> None:
    """And publishing it again makes no release."""
    send(world, [paid("ann", event_id="1")])
    publish(world)
    built = world.views.build(world.views.registry.names())
    assert {one.reused for one in built} == {256}
    assert world.views.publish(built, who="", why="").release_id == 1


def test_only_touched_buckets_are_merged(world: Runtime) -> None:
    """One new event of one person touches one bucket."""
    send(world, [paid(f"p{n}", event_id=str(n)) for n in range(50)])
    publish(world)
    send(world, [paid("p7", event_id="new")])
    by_name = {b.publication.view: b for b in world.views.build(world.views.registry.names())}
    assert (by_name["cents_per_day"].merged, by_name["cents_per_day"].reused) == (1, 255)
    assert (by_name["bands"].derived, by_name["bands"].reused) == (1, 255)


def test_states_newer_than_restored_key_pages_say_that_a_rebuild_mends_them(world: Runtime) -> None:
    """The pages came back from before the first build; the error names the command, and it works."""
    send(world, [paid(f"p{n}", event_id=str(n)) for n in range(20)])
    pages = world.home / "keys" / "pages.db"
    with sqlite3.connect(pages) as before, sqlite3.connect(world.home.parent / "copy.db") as copy:
        before.backup(copy)
    publish(world)
    with sqlite3.connect(pages) as now, sqlite3.connect(world.home.parent / "copy.db") as copy:
        copy.backup(now)
    with open_runtime(world.home) as restored:
        send(restored, [paid("p7", event_id="new")])
        names = restored.views.registry.names()
        with pytest.raises(StateDamaged) as caught:
            restored.views.build(names)
        assert "--rebuild" in caught.value.next_step
        restored.views.publish(restored.views.build(names, rebuild=True), who="", why="")
        assert restored.views.as_reported("cents_per_day").rows["events"].sum() == 21


def test_a_roll_back_is_one_step(world: Runtime) -> None:
    """Readers see the publication before."""
    for n in range(2):
        send(world, [paid("ann", event_id=str(n))])
        publish(world)
    assert world.views.as_reported("cents_per_day").rows["events"].sum() == 2
    world.views.roll_back("cents_per_day", who="", why="")
    assert world.views.as_reported("cents_per_day").rows["events"].sum() == 1
    assert world.views.as_reported("people_per_day").rows["cents"].sum() == 200


def test_a_roll_back_never_brings_a_person_back(world: Runtime) -> None:
    """A version from before an erasure is refused."""
    send(world, [paid("ann", event_id="1"), paid("bob", event_id="2")])
    publish(world)
    shred(world, "ann")
    publish(world)
    with pytest.raises(StaleEpoch):
        world.views.roll_back("people_per_day", who="", why="")
    assert world.views.as_reported("people_per_day").rows["people"].sum() == 1


def test_a_version_built_before_an_erasure_is_not_published(world: Runtime) -> None:
    """The fence log is read inside the switch."""
    send(world, [paid("ann", event_id="1"), paid("bob", event_id="2")])
    built = world.views.build(["people_per_day"])
    shred(world, "ann")
    with pytest.raises(StaleEpoch):
        world.views.publish(built, who="", why="")


def test_the_past_answers_as_it_was_reported(slow_world: Runtime, clock: Clock) -> None:
    """Each moment has its own publication; before the first one the error says since when."""
    moments = []
    for n in range(3):
        send(slow_world, [paid("ann", 10, event_id=str(n))])
        publish(slow_world)
        moments.append(clock())
        clock.forward(hours=1)
    sums = [slow_world.views.as_reported("cents_per_day", at).rows["cents"].sum() for at in moments]
    assert sums == [10, 20, 30]
    with pytest.raises(NotPublished, match="its first publication is of 2026-03-01"):
        slow_world.views.as_reported("cents_per_day", datetime(2020, 1, 1, tzinfo=UTC))


def test_an_unknown_view_names_those_that_exist(world: Runtime) -> None:
    """A typing mistake is mended at once."""
    with pytest.raises(UnknownView, match="cents_per_day"):
        world.views.as_reported("nope")


def test_reported_and_recomputed_differ_by_the_erased_and_nothing_else(world: Runtime) -> None:
    """The difference is explained by erased events, and for an anonymous view there is none."""
    send(world, [paid("ann", event_id="1"), paid("bob", event_id="2")])
    publish(world)
    at = datetime.now(UTC)
    assert world.views.reconcile("people_per_day", at).differences.height == 0
    shred(world, "ann")
    publish(world)
    found = world.views.reconcile("people_per_day", at)
    assert (found.erased_events, found.residual) == (1, 0)
    row = found.differences.row(0, named=True)
    assert (row["people_reported"], row["people_recomputed"]) == (2, 1)
    assert world.views.reconcile("cents_per_day", at).differences.height == 0


def test_a_published_figure_that_was_changed_is_a_residual(world: Runtime) -> None:
    """Where nobody was erased, a difference is unexplained and says so."""
    send(world, [paid("ann", event_id="1")])
    publish(world)
    (table,) = {p.table for p in world.views.ledger.history("people_per_day")}
    written = world.views._tables.write(
        table,
        "0" * 8,
        "forged",
        world.views.as_reported("people_per_day").rows.with_columns(people=pl.lit(9, pl.Int64)),
        None,
        0,
    )
    good = world.views.ledger.history("people_per_day")[0]
    import attrs

    forged = attrs.evolve(good, snapshot_id=written.snapshot_id, build_id="forged")
    world.views.ledger.release([forged], epoch=world.keyring.epoch, who="", why="")
    assert world.views.reconcile("people_per_day").residual == 1


def test_a_person_s_row_is_theirs_and_answers_shredded_afterwards(world: Runtime) -> None:
    """In every publication, also those of before."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2")])
    publish(world)
    at = datetime.now(UTC)
    assert (world.views.person("balance", SubjectId("ann")).row or {})["cents"] == 5
    shred(world, "ann")
    for moment in (None, at):
        found = world.views.person("balance", SubjectId("ann"), moment)
        assert found.row is None
        assert found.shredded is not None
    assert world.views.as_reported("balance", at).shredded == 1
    assert world.views.as_reported("balance", at).rows["cents"].to_list() == [7]
    assert world.views.person("balance", SubjectId("nobody")).shredded is None


def test_several_processes_give_what_one_gives(world: Runtime) -> None:
    """The pool opens the lake in each worker, under leases of their own."""
    send(world, [paid(f"p{n % 40}", n, event_id=str(n)) for n in range(200)])
    publish(world)
    one = {n: world.views.as_reported(n).rows for n in ("cents_per_day", "people_per_day", "bands")}
    pool = ProcessPool(lambda: contextlib.nullcontext(functools.partial(open_deriver, world.home)), 2)
    with open_runtime(world.home, executor=pool) as other:
        publish(other, rebuild=True)
        for name, rows in one.items():
            assert other.views.as_reported(name).rows.equals(rows)


def test_a_build_whose_lease_an_erasure_ended_is_done_again(world: Runtime) -> None:
    """Without that person; a lease that ended by itself is an error."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2")])
    own = InProcess(Deriver(world.lake.replay(), world.lake.types, world.views.registry))
    erasures = [lambda: shred(world, "bob")]

    class EndedByAnErasure:
        """Its workers' lease dies in the first run."""

        def map(self, tasks: Sequence[DeriveTask]) -> Iterator[dict[str, Partial]]:
            if erasures:
                erasures.pop()()
                raise LeaseExpired("this lease was of an epoch that is over")
            return own.map(tasks)

    class EndedByItself:
        """As of a process that slept."""

        def map(self, tasks: Sequence[DeriveTask]) -> Iterator[dict[str, Partial]]:
            raise LeaseExpired("the lease ran out while values were being opened")

    world.views.builder._executor = EndedByItself()
    with pytest.raises(LeaseExpired, match="ran out"):
        publish(world, "people_per_day")
    world.views.builder._executor = EndedByAnErasure()
    publish(world, "people_per_day")
    assert world.views.as_reported("people_per_day").rows["people"].to_list() == [1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_build_that_begins_after_a_fence_never_counts_who_is_behind_it(
    world: Runtime, workers: int
) -> None:
    """Also within the second in which the keys of before are still at hand: its states say the newer epoch."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2")])
    pool = (
        ProcessPool(lambda: contextlib.nullcontext(functools.partial(open_deriver, world.home)), workers)
        if workers
        else None
    )
    with open_runtime(world.home, executor=pool) as builder, open_runtime(world.home) as eraser:
        publish(builder, "people_per_day")
        bob = eraser.keyring.ref_of(SubjectId("bob"))
        assert bob is not None
        eraser.keyring.fence([(SubjectId("bob"), bob)], "req-1")
        publish(builder, "people_per_day", rebuild=True)
        assert builder.views.as_reported("people_per_day").rows["people"].to_list() == [1]


@pytest.mark.parametrize(
    ("checks", "what"),
    [
        ('[non_negative("cents")]', "negative cents"),
        ('[within("cents", previous=0.1)]', "the total of cents moves"),
    ],
)
def test_a_failed_check_keeps_the_published_version(
    world: Runtime, tmp_path: Path, checks: str, what: str
) -> None:
    """The gate names the check and the figures."""
    world.views.registry._views = registry(tmp_path, simple(checks=checks))._views
    send(world, [paid("ann", 10, event_id="1")])
    publish(world, "v")
    send(world, [paid("ann", -500, event_id="2")])
    with pytest.raises(GateClosed, match=what):
        world.views.build(["v"])
    assert world.views.as_reported("v").rows["cents"].sum() == 10


def test_the_conservation_gate_can_close(world: Runtime) -> None:
    """A state that saw more events than the lake holds is not published."""
    send(world, [paid("ann", event_id="1")])
    original = world.views.builder._states.load

    def lie(version: str, states: Any) -> Any:
        import attrs

        whole = original(version, states)
        return attrs.evolve(whole, counts=whole.counts.with_columns(pl.col("counted") + 1))

    world.views.builder._states.load = lie  # type: ignore[method-assign]
    with pytest.raises(GateClosed, match="do not add up"):
        world.views.build(["cents_per_day"])


def version(tmp_path: Path, body: str, document: dict[str, Any] = PAID) -> str:
    """Fingerprint of view `v` of a source text."""
    from lake import parse_event_type

    return fingerprint(registry(tmp_path, body).get("v"), {"Paid": parse_event_type(document)})


def test_several_threads_read_the_definitions_at_once() -> None:
    files = [Path(__file__).parents[1] / "views_for_tests.py"]

    def collector_callback(_phase: str, _info: dict[str, int]) -> None:
        for _ in range(50):  # long enough for the interpreter to switch threads in the middle of a parse
            pass

    before, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.callbacks.append(collector_callback)
    gc.set_threshold(50, 2, 2)
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            names = list(pool.map(lambda _: ViewRegistry.load(files).names(), range(64)))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*before)
        gc.callbacks.remove(collector_callback)
    assert names == [ViewRegistry.load(files).names()] * 64


def test_comments_and_docstrings_do_not_make_a_version(tmp_path: Path) -> None:
    """Layout is not logic."""
    commented = simple().replace("    name =", '    """Words."""\n    # more words\n    name =')
    assert version(tmp_path, simple()) == version(tmp_path, commented)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (simple("return rows"), simple("return rows.head(1)")),
        (
            simple("return f(rows)", "def f(rows): return rows"),
            simple("return f(rows)", "def f(rows): return rows.head(1)"),
        ),
        (simple("return rows.head(N)", "N = 1"), simple("return rows.head(N)", "N = 2")),
        (
            simple("return f(rows)", "N = 1\ndef f(rows): return rows.head(N)"),
            simple("return f(rows)", "N = 2\ndef f(rows): return rows.head(N)"),
        ),
    ],
)
def test_a_change_of_anything_the_code_reaches_makes_a_version(
    tmp_path: Path, before: str, after: str
) -> None:
    """The class, a helper, a constant, a constant of a helper."""
    assert version(tmp_path, before) != version(tmp_path, after)


def test_a_change_of_the_event_type_makes_a_version(tmp_path: Path) -> None:
    """The schema is part of what a view computes from."""
    assert version(tmp_path, simple()) != version(tmp_path, simple(), PAID | {"dedup_window_days": 3})


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (simple("import random; return rows.sample(1)"), "not reproducible"),
        (simple('return rows.unique(keep="any")'), "not reproducible"),
        (
            'class V(Projection):\n    name = "v"\n    reads = {"Paid": ["cents"]}\n',
            "needs `keys` and `state`",
        ),
        ('class V(Projection):\n    name = "Bad Name"\n    reads = {"Paid": ["cents"]}\n', "lower-case"),
    ],
)
def test_a_definition_that_is_incomplete_or_impure_is_refused(tmp_path: Path, body: str, what: str) -> None:
    """Before anything is built."""
    with pytest.raises(DefinitionError, match=what):
        registry(tmp_path, body)


@pytest.mark.parametrize("column", ['c("subject")', 'c("note")', 'c("event_id").str.to_lowercase()'])
def test_an_aggregate_never_shows_what_names_a_person(world: Runtime, tmp_path: Path, column: str) -> None:
    """Its rows lie in clear; as a key or as a shown value it is refused before anything is built."""
    send(world, [paid("ann", event_id="1", note="n")])
    reads = '"Paid": ["cents", "subject", "note", "event_id", "occurred_at"]'
    for keys, state in (
        (f'{{"who": {column}}}', "Count()"),
        ('{"day": c("occurred_at").dt.date()}', f"Max({column})"),
    ):
        body = f"""
from projections import Max
class V(Projection):
    name = "v"
    reads = {{{reads}}}
    keys = {keys}
    state = {{"x": {state}}}
"""
        world.views.registry._views = registry(tmp_path, body)._views
        with pytest.raises(DefinitionError, match="in clear"):
            world.views.build(["v"])


def test_people_counted_by_handle_are_living_people(world: Runtime, tmp_path: Path) -> None:
    """Severed blocks carry fresh handles each; they are not people."""
    from tests.world import compact_all

    body = """
from projections import Distinct
class V(Projection):
    name = "v"
    reads = {"Paid": ["cents", "occurred_on"]}
    keys = {"day": c("occurred_on")}
    state = {"subjects": Distinct(c("subject_ref"))}
"""
    world.views.registry._views = registry(tmp_path, body)._views
    for n in range(4):
        send(world, [paid("ann", event_id=str(n)), paid("bob", event_id=f"b{n}")])
    shred(world, "ann")
    compact_all(world)
    publish(world, "v")
    assert world.views.as_reported("v").rows["subjects"].to_list() == [1]


def test_an_event_that_came_before_its_time_counts_and_moves_no_watermark(world: Runtime) -> None:
    """One dated 2099 would say that every day until then is complete; the summary of the ingest counts it."""
    today = datetime.now(UTC)
    summary = send(
        world,
        [paid("ann", event_id="1", at=today), paid("ann", event_id="2", at=today.replace(year=2099, day=1))],
    )
    assert (summary.events, summary.future) == (2, 1)
    publish(world, "cents_per_day")
    publication = world.views.publication("cents_per_day")
    assert publication.events_counted == 2
    assert publication.watermark == today.date().isoformat()


@pytest.mark.parametrize(("future_days", "ahead", "guarded"), [(0, 1, True), (1, 1, False), (30, 29, False)])
def test_how_far_ahead_a_type_may_be_dated_is_its_own_setting_and_what_is_further_is_told(
    world: Runtime, future_days: int, ahead: int, guarded: bool
) -> None:
    """Stored and counted in any case; `lake verify` and `doctor` count it, by source; another type's holds on."""
    world.lake.types.register(PAID | {"version": 2, "future_days": future_days})
    today = datetime.now(UTC)
    late = today + timedelta(days=ahead, minutes=1 if guarded else -1)
    summary = send(world, [paid("ann", event_id="1", at=today), paid("ann", event_id="2", at=late)])
    assert (summary.events, summary.future) == (2, int(guarded))
    publish(world, "cents_per_day")
    publication = world.views.publication("cents_per_day")
    assert publication.events_counted == 2
    assert publication.watermark == (today if guarded else late).date().isoformat()
    compact_all(world)
    checked = verify(world.lake, deep=True)
    assert (checked.problems, checked.future) == ((), int(guarded))
    findings = [one for one in examine(world) if one.check == "dates of events"]
    assert [one.level for one in findings] == ["warning"] * guarded
    for one in findings:
        assert "`future_days`" in one.text
        assert f"1 of {summary.source}" in one.text


def test_events_of_erased_people_that_are_refused_are_not_counted_as_dated_ahead(world: Runtime) -> None:
    """Only what is stored is."""
    ahead = datetime.now(UTC) + timedelta(days=9)
    send(world, [paid("ann", event_id="1")])
    shred(world, "ann")
    summary = send(world, [paid(who, event_id=f"{who}2", at=ahead) for who in ("ann", "bob")])
    assert (summary.events, summary.suppressed, summary.future) == (1, 1, 1)
