"""No column in clear shows a personal field's value unless its author says why, and then everybody is told."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys import SubjectId
from lake import EventType, parse_event_type
from projections import Count, DefinitionError, Distinct, First, Fold, Last, Max, Min, Projection, Sum, View
from projections.exposure import exposures, is_window, refuse_exposed, refuse_names
from purge import payload_of
from service.doctor import examine, shown_findings
from service.runtime import Runtime
from tests.world import erase, paid, publish, send

c = pl.col
PERSON = {
    "name": "Person",
    "version": 1,
    "type": "object",
    "properties": {
        "born": {"type": "string", "format": "date"},
        "salary": {"type": "integer"},
        "mail": {"type": "string"},
        "well": {"type": "boolean"},
        "shop": {"type": "string", "anonymous": True},
        "cents": {"type": "integer", "anonymous": True},
    },
}
TYPES: dict[str, EventType] = {"Person": parse_event_type(PERSON)}
PERSONAL = ["born", "salary", "mail", "well", "occurred_at", "subject", "source", "event_id"]
SHOWING: list[Callable[[pl.Expr], Any]] = [Min, Max, First, Last]


def view(base: type = Projection, **attributes: Any) -> View:
    """A view over everything of `Person`."""
    reads = {"Person": [*PERSONAL, "shop", "cents", "occurred_on"]}
    made: View = type("V", (base,), {"name": "v", "reads": reads, **attributes})()
    return made


@pytest.mark.parametrize("field", PERSONAL)
@pytest.mark.parametrize(
    "wrap", [lambda e: e, lambda e: e.cast(pl.String), lambda e: pl.coalesce(e, c("shop"))]
)
def test_a_personal_field_is_refused_in_every_column_that_shows_values(
    field: str, wrap: Callable[[pl.Expr], pl.Expr]
) -> None:
    """As a key and in every measure that keeps single values, however it is dressed."""
    shop = {"shop": c("shop")}
    views = [view(keys={"k": wrap(c(field))}, state={"n": Count()})]
    views += [view(keys=shop, state={"k": kind(wrap(c(field)))}) for kind in SHOWING]
    for one in views:
        with pytest.raises(DefinitionError, match=f"`k` would show `{field}`") as told:
            refuse_exposed(one, TYPES)
        assert "subject_ref" in told.value.next_step
        (found,) = exposures(one, TYPES)
        assert (found.column, found.kind, found.fields) == ("k", "value", (field,))


def test_an_aggregate_that_nobody_knows_shows_whatever_the_view_reads() -> None:
    """A set, for one."""

    class Everything:
        def partial(self, name: str) -> list[pl.Expr]:
            return [c("mail").implode().alias(name)]

    (found,) = exposures(view(keys={"shop": c("shop")}, state={"all": Everything()}), TYPES)
    assert (found.kind, set(found.fields)) == ("value", set(PERSONAL))


def test_amounts_are_named_and_not_refused_and_a_floor_takes_them_off() -> None:
    """A sum is a value where one person is in the row."""
    state = {"sum": Sum(c("salary")), "mails": Distinct(c("mail")), "n": Count(), "cents": Sum(c("cents"))}
    one = view(keys={"shop": c("shop")}, state=state)
    refuse_exposed(one, TYPES)
    assert [(e.column, e.kind) for e in exposures(one, TYPES)] == [("sum", "few"), ("mails", "few")]
    assert exposures(view(keys={"shop": c("shop")}, state=state, min_subjects=5), TYPES) == ()


def test_what_a_fold_returns_counts_as_personal_until_it_is_marked() -> None:
    """Nobody can look through its code."""
    parts = {"keys": {"band": c("band")}, "state": {"n": Count(), "top": Max(c("top"))}}
    with pytest.raises(DefinitionError, match="`band` would stand in clear") as told:
        refuse_exposed(view(Fold, **parts), TYPES)
    assert "impersonal" in told.value.next_step
    assert "any personal value" in told.value.message
    assert "event_id" not in told.value.message, "which it does not read"
    assert [e.column for e in exposures(view(Fold, impersonal=["band"], **parts), TYPES)] == ["top"]
    refuse_exposed(view(Fold, impersonal=["band", "top"], **parts), TYPES)


def test_a_reason_lets_a_value_through_and_never_a_name() -> None:
    """By column or for the whole view; recorded as it was said."""
    parts = {"keys": {"year": c("born").dt.year()}, "state": {"n": Count()}}
    for said in ("because years are coarse", {"year": "because years are coarse"}):
        one = view(shows_personal=said, **parts)
        refuse_exposed(one, TYPES)
        assert [e.because for e in exposures(one, TYPES)] == ["because years are coarse"]
    with pytest.raises(DefinitionError):
        refuse_exposed(view(shows_personal={"other": "because"}, **parts), TYPES)
    for name in ("subject", "event_id", "subject_ref"):
        one = view(shows_personal="because", keys={"shop": c("shop")}, state={"k": Max(c(name))})
        with pytest.raises(DefinitionError, match=name):
            refuse_names(one, TYPES)


def test_rows_of_one_person_and_anonymous_fields_show_nothing_in_clear() -> None:
    """The former are sealed."""
    assert exposures(view(keys={"subject_ref": c("subject_ref")}, state={"m": Max(c("mail"))}), TYPES) == ()
    anonymous = view(keys={"day": c("occurred_on"), "shop": c("shop")}, state={"m": Max(c("cents"))})
    assert exposures(anonymous, TYPES) == ()


@given(st.sampled_from(["15m", "30m", "1h", "6h", "1d", "1w", "1mo", "1q", "1y"]))
def test_truncations_of_the_event_time_are_windows(every: str) -> None:
    """Calendar windows, in any zone, and parts of them."""
    time = c("occurred_at")
    assert is_window(time.dt.truncate(every))
    assert is_window(time.dt.convert_time_zone("Asia/Kathmandu").dt.date())
    assert all(map(is_window, (time.dt.year(), time.dt.hour(), time.dt.date().dt.month_start())))


@given(st.sampled_from(["us", "ms", "s", "1m", "5m"]), st.integers(-3, 3))
def test_what_is_finer_than_a_quarter_of_an_hour_is_a_value(fine: str, days: int) -> None:
    """Moved about or not."""
    time = c("occurred_at") + pl.duration(days=days)
    expression = time.dt.truncate(fine) if fine[0].isdigit() else time.dt.epoch(fine)
    assert not is_window(expression)
    assert not is_window(c("occurred_on").dt.year()), "not of the event's time"


def test_publication_plan_doctor_and_receipt_name_what_is_shown(world: Runtime) -> None:
    """The amount of the people's view is one; the view itself is unchanged."""
    send(world, [paid("ann", 5, event_id="1", note="x"), paid("bob", 6, event_id="2")])
    publish(world)
    publication = world.views.publication("people_per_day")
    assert [(one["column"], one["kind"], list(one["fields"])) for one in publication.exposes] == [
        ("people", "few", ["subject"])
    ]
    shown = [one for one in world.views.shown() if one["view"] == "people_per_day"]
    (finding,) = shown_findings(shown)
    assert (finding.check, finding.level) == ("column people_per_day.people", "note")
    assert shown[0] in world.purge.plan(SubjectId("ann")).shown
    receipt = payload_of(world.purge.journal.get(erase(world, "ann")).receipt or b"")
    assert shown[0] in receipt["predicate"]["shown_in_clear"]


def forget_of_records(runtime: Runtime, *names: str) -> None:
    """Makes the record of every publication one of a release that did not write these fields."""
    with closing(sqlite3.connect(runtime.home / "views" / "ledger.db")) as db:
        for build_id, record in db.execute("SELECT build_id, record FROM publications").fetchall():
            older = {name: value for name, value in json.loads(record).items() if name not in names}
            db.execute("UPDATE publications SET record = ? WHERE build_id = ?", (json.dumps(older), build_id))
        db.commit()


def test_publications_of_before_the_judgement_are_named_as_not_judged_until_they_are_dropped(
    world: Runtime,
) -> None:
    """In the plan, by doctor with the way out, and in receipts; anonymous views and rows of one person are not."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 6, event_id="2")])
    publish(world)
    assert world.purge.plan(SubjectId("ann")).uncovered == ()
    forget_of_records(world, "exposes")
    found = world.purge.plan(SubjectId("ann")).uncovered
    assert [(one["view"], one["kind"]) for one in found] == [
        ("bands", "not_judged"),
        ("people_per_day", "not_judged"),
    ]
    told = [one for one in examine(world) if one.check == "publications of bands"]
    assert [one.level for one in told] == ["warning"]
    assert "views drop-publications bands" in told[0].text
    receipt = payload_of(world.purge.journal.get(erase(world, "ann")).receipt or b"")
    assert found[1]["text"] in receipt["predicate"]["not_addressed"]
    for view in ("bands", "people_per_day"):
        dropping = world.views.dropping
        dropping.drop(dropping.choose(view).publications, why="a test")
    assert world.purge.plan(SubjectId("bob")).uncovered == ()
