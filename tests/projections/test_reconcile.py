"""Erasures explain, key by key, what they can account for and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keys import SubjectId
from projections import Count, Distinct, Projection, Sum
from projections.explained import Gone, unexplained
from projections.reconciling import Reconciled
from service.runtime import Runtime, initialise, open_runtime
from tests.projections.test_views import HEAD
from tests.world import PAID, START, paid, publish, send, shred

c = pl.col
VIEWS = """
class ByDay(Projection):
    name = "by_day"
    reads = {"Paid": ["cents", "subject", "occurred_at"]}
    keys = {"day": c("occurred_at").dt.date()}
    state = {"events": Count(), "people": Distinct(c("subject")), "cents": Sum(c("cents"))}


class ByHour(ByDay):
    name = "by_hour"
    keys = {"hour": c("occurred_at").dt.truncate("1h")}


class ByShop(ByDay):
    name = "by_shop"
    keys = {"shop": c("shop")}
    reads = {"Paid": ["cents", "shop", "subject", "occurred_at"]}


class ByNote(ByDay):
    name = "by_note"
    keys = {"note": c("note")}
    reads = {"Paid": ["cents", "note", "subject"]}
    shows_personal = "because the notes are public"


class Folded(Fold):
    name = "folded"
    reads = {"Paid": ["cents", "occurred_at"]}
    keys = {"day": c("day")}
    impersonal = ["day"]
    state = {"people": Count(), "cents": Sum(c("cents"))}
    def fold(self, events):
        return events.group_by("subject_ref", c("occurred_at").dt.date().alias("day")).agg(c("cents").sum())


class Guarded(Folded):
    name = "guarded"
    min_subjects = 3
    subjects = "people"
"""
VIEW_NAMES = ("by_day", "by_hour", "by_shop", "by_note", "folded", "guarded")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Ten people over four days; ann has events of the first day and shop alone."""
    folder = tmp_path_factory.mktemp("reconcile")
    (folder / "views.py").write_text(HEAD.replace("Count,", "Count, Distinct,") + VIEWS)
    initialise(folder / "lake", [folder / "views.py"])
    config = folder / "lake" / "shredlake.toml"
    config.write_text(config.read_text().replace("[projections]", "[projections]\nbucket_bits = 1"))
    with open_runtime(folder / "lake") as runtime:
        runtime.lake.types.register(PAID)
        events = [spent(f"p{n}", n % 4, n) for n in range(24)] + [spent("ann", 0, n) for n in (100, 101)]
        send(runtime, events)
        publish(runtime)
        yield runtime


def spent(person: str, day: int, n: int) -> dict[str, Any]:
    """An event of a day, with the shop and the note of that day."""
    event = paid(person, 10 + n, event_id=str(n), at=START + timedelta(days=day), note=f"n{day}")
    event["data"]["shop"] = f"s{day}"
    return event


def planted(runtime: Runtime, view: str, **changes: pl.Expr) -> datetime:
    """Publishes the first publication of a view with some of its values changed; the moment after."""
    good = runtime.views.ledger.history(view)[-1]
    rows = runtime.views._tables.read_aggregate(good.table, good.snapshot_id).sort(pl.first())
    number = len(runtime.views.ledger.history(view))
    changed = rows.with_columns(**changes)
    written = runtime.views._tables.write(good.table, good.version, f"p{number}", changed, None, good.epoch)
    forged = attrs.evolve(
        good, snapshot_id=written.snapshot_id, build_id=f"{view}-{number}", epoch=good.epoch
    )
    runtime.views.ledger.release([forged], epoch=lambda: good.epoch, who="", why="")
    return datetime.now(UTC)


def at_row(number: int, column: str, by: int) -> dict[str, pl.Expr]:
    """A change of one value of one row, in the order of keys."""
    changed = pl.when(pl.int_range(pl.len()) == number).then(pl.col(column) + by).otherwise(pl.col(column))
    return {column: changed}


def residual(found: Reconciled, key: str) -> list[object]:
    """The keys that nothing explains."""
    return found.differences.filter(~pl.col("explained"))[key].to_list()


@pytest.fixture(scope="module")
def erased(lake: Runtime) -> tuple[Runtime, dict[str, datetime]]:
    """Every view with an error in its third row, and ann erased after that."""
    column = {view: "events" if view == "by_hour" else "cents" for view in VIEW_NAMES}
    moments = {view: planted(lake, view, **at_row(2, column[view], 1)) for view in VIEW_NAMES}
    for view in VIEW_NAMES:
        if view == "guarded":
            continue
        found = lake.views.reconcile(view, moments[view])
        assert (found.residual, found.differences.height) == (1, 1), view
    shred(lake, "ann")
    return lake, moments


@pytest.mark.parametrize("view", ["by_day", "by_hour", "by_shop", "by_note", "folded"])
def test_an_error_beside_an_erasure_is_a_residual_at_its_key(
    erased: tuple[Runtime, dict[str, datetime]], view: str
) -> None:
    """By a day, an hour, a field in clear, a sealed one and a Fold; what the erasure changed is explained."""
    runtime, moments = erased
    found = runtime.views.reconcile(view, moments[view])
    key = found.differences.columns[0]
    keys = sorted(found.differences[key].to_list())
    assert (found.residual, len(keys), found.erased_events) == (1, 2, 2)
    assert residual(found, key) == [keys[1]]


def test_an_error_in_a_guarded_view_counts_and_is_not_shown_where_fewer_than_k_were_erased(
    erased: tuple[Runtime, dict[str, datetime]],
) -> None:
    """Its row and the erased person's are both withheld; what is left over is one row that nobody explains."""
    runtime, moments = erased
    found = runtime.views.reconcile("guarded", moments["guarded"])
    assert (found.residual, found.withheld, found.differences.height) == (1, 2, 0)


@pytest.mark.parametrize(
    ("view", "column", "by"),
    [("by_day", "cents", 1), ("by_day", "events", 1), ("by_day", "people", 1), ("by_shop", "cents", -1)],
)
def test_an_error_at_the_erased_person_s_own_key_is_a_residual_where_the_amount_is_known(
    erased: tuple[Runtime, dict[str, datetime]], view: str, column: str, by: int
) -> None:
    """Counts, sums of anonymous fields, and more people than were erased."""
    runtime, _ = erased
    found = runtime.views.reconcile(view, planted(runtime, view, **at_row(0, column, by)))
    assert (found.residual, found.differences["explained"].to_list()) == (1, [False])


def test_without_an_error_everything_is_explained(erased: tuple[Runtime, dict[str, datetime]]) -> None:
    """Of every view, and a hold explains what it takes out."""
    runtime, _ = erased
    for view in VIEW_NAMES:
        found = runtime.views.reconcile(view, planted(runtime, view))
        assert found.residual == 0, view
        assert found.differences["explained"].all()


people = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(-3, 9), st.booleans()),
    min_size=1,
    max_size=12,
)


class Days(Projection):
    """A view over days."""

    name = "days"
    reads = {"Paid": ["cents", "subject", "occurred_at"]}
    keys = {"day": c("occurred_at").dt.date()}
    state = {"events": Count(), "people": Distinct(c("subject")), "cents": Sum(c("cents"))}


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(people, st.sets(st.integers(0, 5)), st.integers(0, 3), st.integers(-2, 2), st.booleans())
def test_residual_is_exactly_what_was_planted(
    events: list[tuple[int, int, int, bool]], erased: set[int], day: int, error: int, is_count: bool
) -> None:
    """Any events, any erased people, an error of any size on any day, in a count or in a sum."""
    then, now = _rows(events, set()), _rows(events, erased)
    column = "events" if is_count else "cents"
    hit = error != 0 and day in then
    if hit:
        then[day] = {**then[day], column: then[day][column] + error}
    rows = [
        {"day": START.date() + timedelta(days=d)}
        | {f"{n}_reported": then[d][n] for n in then[d]}
        | {f"{n}_recomputed": now[d][n] if d in now else None for n in then[d]}
        for d in then
        if then[d] != now.get(d)
    ]
    schema = {"day": pl.Date} | {
        f"{n}_{side}": pl.Int64 for side in ("reported", "recomputed") for n in ("events", "people", "cents")
    }
    gone_events = [event for event in events if event[0] in erased]
    frame = pl.DataFrame(
        {
            "occurred_on": [START.date() + timedelta(days=event[1]) for event in gone_events],
            "cents": [event[2] for event in gone_events],
        },
        schema={"occurred_on": pl.Date, "cents": pl.Int64},
    )
    gone = Gone(frame, frozenset({"occurred_on", "cents"}), len({e[0] for e in gone_events}), True, False)
    found = unexplained(Days(), pl.DataFrame(rows, schema=schema), gone)
    assert int(found.sum()) == int(hit)


def _rows(events: Sequence[tuple[int, int, int, bool]], erased: set[int]) -> dict[int, dict[str, int]]:
    """Day → what the view counts without these people."""
    left = [event for event in events if event[0] not in erased]
    return {
        day: {
            "events": sum(1 for e in left if e[1] == day),
            "people": len({e[0] for e in left if e[1] == day}),
            "cents": sum(e[2] for e in left if e[1] == day),
        }
        for day in sorted({event[1] for event in left})
    }


def test_a_hold_explains_what_it_takes_out(lake: Runtime) -> None:
    """And its end what it brings back; nobody records whose it was."""
    at = planted(lake, "by_day")
    lake.purge.hold(SubjectId("p3"), "claim")
    assert lake.views.reconcile("by_day", at).residual == 0
