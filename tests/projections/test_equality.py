"""Incremental = rebuild, and re-derived after erasing anyone = rebuild without them."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lake import Housekeeping, Upkeep
from service.runtime import Runtime
from tests.world import START, Clock, compact_all, make_world, paid, publish, send, shred

PEOPLE = ("ann", "bob", "cid", "dot")
event = st.tuples(
    st.sampled_from(PEOPLE),
    st.integers(-50, 400),  # cents
    st.integers(0, 9),  # event id: repeats are duplicates or corrections
    st.integers(0, 1),  # revision
    st.integers(-5, 5),  # days off: late and early events
)
step = st.one_of(
    st.tuples(st.just("send"), st.lists(event, min_size=1, max_size=6)),
    st.tuples(st.just("build"), st.none()),
    st.tuples(st.just("compact"), st.none()),
    st.tuples(st.just("merge"), st.none()),
    st.tuples(st.just("expire"), st.none()),
    st.tuples(st.just("sleep"), st.sampled_from((1, 5, 9))),
    st.tuples(st.just("erase"), st.sampled_from(PEOPLE)),
)


def answers(runtime: Runtime) -> dict[str, pl.DataFrame]:
    """What readers see of every view, in one order."""
    found = {}
    for name in runtime.views.registry.names():
        rows = runtime.views.as_reported(name).rows
        found[name] = rows.sort(rows.columns)
    return found


def play(runtime: Runtime, clock: Clock, steps: list[tuple[str, object]]) -> None:
    """Runs a history of sends, builds, upkeep, erasures and passing days."""
    for number, (verb, detail) in enumerate(steps):
        if verb == "send":
            batch = [
                paid(who, cents, event_id=f"{who}-{n}", revision=rev, at=START + timedelta(days=days))
                for who, cents, n, rev, days in detail  # type: ignore[attr-defined]
            ]
            send(runtime, batch, key=f"step {number}")
        elif verb == "build" and runtime.lake.events.snapshot() is not None:
            publish(runtime)
        elif verb == "compact":
            compact_all(runtime)
        elif verb == "merge":
            upkeep = Upkeep(runtime.lake)
            for day in upkeep.days():
                upkeep.merge(day, at_least=2)
        elif verb == "expire":
            Housekeeping(runtime.lake).expire(keep=1)
            Housekeeping(runtime.lake).sweep(grace_seconds=0)
        elif verb == "sleep":
            clock.forward(days=float(detail))  # type: ignore[arg-type]
        elif verb == "erase":
            from keys import SubjectId

            if runtime.keyring.ref_of(SubjectId(str(detail))) is not None:
                shred(runtime, str(detail))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(step, max_size=12), st.lists(event, min_size=1, max_size=5))
def test_incremental_is_rebuild_for_any_history(
    steps: list[tuple[str, object]], last: list[tuple[str, int, int, int, int]]
) -> None:
    """Catch-up, corrections, re-derivation and upkeep in any order give what a rebuild gives."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        runtime = make_world(Path(folder) / "lake", clock=clock)
        play(runtime, clock, [*steps, ("send", last)])
        if runtime.lake.events.snapshot() is not None:
            publish(runtime)
            incremental = answers(runtime)
            publish(runtime, rebuild=True)
            rebuilt = answers(runtime)
            for name, rows in incremental.items():
                assert rows.equals(rebuilt[name]), name
        runtime.close()


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(event, min_size=1, max_size=15), st.sets(st.sampled_from(PEOPLE), min_size=1, max_size=3))
def test_after_an_erasure_personal_views_are_those_of_a_lake_that_never_knew_them(
    events: list[tuple[str, int, int, int, int]], erased: set[str]
) -> None:
    """And the anonymous view is the one of before."""
    with tempfile.TemporaryDirectory() as folder:
        knows, never = make_world(Path(folder) / "knows"), make_world(Path(folder) / "never")
        batch = [
            paid(who, cents, event_id=f"{who}-{n}", revision=rev, at=START + timedelta(days=days))
            for who, cents, n, rev, days in events
        ]
        send(knows, batch)
        publish(knows)
        before = answers(knows)
        for who in sorted(erased & {e["subject"] for e in batch}):
            shred(knows, who)
        publish(knows)
        after = answers(knows)
        rest = [e for e in batch if e["subject"] not in erased]
        assert after["cents_per_day"].equals(before["cents_per_day"])
        if rest:
            send(never, rest)
            publish(never)
            expected = answers(never)
            for name in ("people_per_day", "balance", "bands"):
                assert after[name].equals(expected[name]), name
        else:
            assert all(after[name].height == 0 for name in ("people_per_day", "balance", "bands"))
        knows.close()
        never.close()
