"""The differencing guard: nobody is learned by subtracting what readers may see."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from keys import SubjectId
from projections.differencing import Again, Guarded, Shown, Withheld, guard, key_digests
from projections.errors import DefinitionError, GateClosed
from projections.guarding import revealing
from service.cli.main import app
from service.doctor import examine
from service.runtime import Runtime, initialise, open_runtime
from tests.world import PAID, START, erase, paid, publish, send, shred

K = 3
GUARDED = """
import polars as pl
from projections import Count, Fold, Projection, Sum
c = pl.col

class Guarded(Fold):
    name = "guarded"
    reads = {"Paid": ["cents", "occurred_at"]}
    keys = {"day": c("day")}
    impersonal = ["day"]
    state = {"people": Count(), "cents": Sum(c("cents"))}
    min_subjects = 3
    subjects = "people"
    def fold(self, events):
        return events.group_by("subject_ref", c("occurred_at").dt.date().alias("day")).agg(c("cents").sum())

class Each(Projection):
    name = "each"
    reads = {"Paid": ["cents"]}
    keys = {"subject_ref": c("subject_ref")}
    state = {"cents": Sum(c("cents"))}

class Open(Guarded):
    name = "open"
    min_subjects = 0
"""


@pytest.fixture
def lake(tmp_path: Path) -> Runtime:
    """A lake with the same view twice, with a floor of three people and without."""
    views = tmp_path / "guarded.py"
    views.write_text(GUARDED)
    initialise(tmp_path / "lake", [views])
    runtime = open_runtime(tmp_path / "lake")
    runtime.lake.types.register(PAID)
    yield runtime
    runtime.close()


def cents(runtime: Runtime, view: str, at: datetime | None = None) -> dict[object, int]:
    """Day → cents as readers see it."""
    return dict(runtime.views.as_reported(view, at).rows.select("day", "cents").iter_rows())


def buy(runtime: Runtime, people: range, day: int, key: str) -> None:
    """Each of these people spends an amount that only they spend."""
    at = START + timedelta(days=day)
    send(
        runtime,
        [paid(f"person-{n}", 1000 + 2**n, event_id=f"{key}-{n}", at=at) for n in people],
        key=key,
    )


def test_one_erased_person_cannot_be_subtracted_out_of_a_guarded_view(lake: Runtime) -> None:
    """Not from two publications, not from a recomputation, not from a reconciliation; without it they can."""
    buy(lake, range(8), 0, "a")
    buy(lake, range(4), 1, "b")
    publish(lake)
    before, then = datetime.now(UTC), cents(lake, "guarded")
    open_then = cents(lake, "open")
    erase(lake, "person-7")
    one, other = sorted(then)
    assert one not in cents(lake, "guarded")
    assert cents(lake, "guarded")[other] == then[other]
    assert open_then[one] - cents(lake, "open")[one] == 1000 + 2**7  # the control: the attack is real
    again = lake.views.as_recomputed("guarded", before)
    assert (again.rows["day"].to_list(), again.withheld) == ([other], 1)
    found = lake.views.reconcile("guarded", before)
    assert (found.differences.height, found.withheld, found.erased_events) == (0, 1, None)


def test_a_row_comes_back_once_enough_people_have_gone_from_it(lake: Runtime) -> None:
    """The count goes on over publications that withhold the row, and over what is new in between."""
    buy(lake, range(8), 0, "a")
    publish(lake)
    (day,), whole = cents(lake, "guarded"), sum(1000 + 2**n for n in range(8))
    erase(lake, "person-7")
    buy(lake, range(20, 21), 0, "b")
    publish(lake)
    assert cents(lake, "guarded") == {}
    erase(lake, "person-6")
    assert cents(lake, "guarded") == {}
    erase(lake, "person-5")
    gone = sum(1000 + 2**n for n in (5, 6, 7))
    assert cents(lake, "guarded") == {day: whole - gone + 1000 + 2**20}


def test_publishing_again_changes_nothing(lake: Runtime) -> None:
    """The same input, people and code are one publication, with rows withheld or without."""
    buy(lake, range(8), 0, "a")
    publish(lake)
    publish(lake)
    assert len(lake.views.ledger.history("guarded")) == 1
    erase(lake, "person-7")
    publish(lake)  # the sweep made a snapshot of its own
    after = len(lake.views.ledger.history("guarded"))
    publish(lake)
    assert len(lake.views.ledger.history("guarded")) == after
    assert cents(lake, "guarded") == {}


def test_a_person_on_hold_cannot_be_subtracted_either(lake: Runtime) -> None:
    """A hold takes one person out of what is built next, as an erasure does; its end brings the row back."""
    buy(lake, range(8), 0, "a")
    publish(lake)
    then = cents(lake, "guarded")
    lake.purge.hold(SubjectId("person-1"), "claim")
    publish(lake)
    assert cents(lake, "guarded") == {}
    lake.purge.release(SubjectId("person-1"))
    publish(lake)
    assert cents(lake, "guarded") == then


JOINS, ERASED = False, True
HISTORIES = {
    "others come and go while a row is withheld": [
        (0, 0, ERASED),
        *((n, 0, e) for n in (1, 2) for e in (JOINS, ERASED)),
        (3, 0, JOINS),
    ],
    "who an older publication shows leaves with people who came since": [
        (1, 0, JOINS),
        (2, 0, JOINS),
        (3, 0, JOINS),
        (0, 0, ERASED),
        (1, 0, ERASED),
        (2, 0, ERASED),
    ],
}


@pytest.mark.parametrize("history", list(HISTORIES))
def test_a_row_is_compared_with_every_publication_that_shows_it(history: str) -> None:
    """Neither a count that goes on nor the last that showed it tells who is missing from an older one."""
    assert _told_apart(HISTORIES[history]) == []


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3), st.booleans()), max_size=14))
def test_any_two_publications_of_a_row_differ_by_nobody_or_by_at_least_k_people(
    steps: list[tuple[int, int, bool]],
) -> None:
    """Histories of purchases, erasures and publications; the attacker recovers nobody, and some without it."""
    assert _told_apart(steps) == []


def _told_apart(steps: Sequence[tuple[int, int, bool]]) -> list[set[int]]:
    """People whom two publications tell apart: one after every step of (person, row, erased or joins)."""
    alive = {n: {n % 4: 2**n} for n in range(12)}
    gone: set[int] = set()
    shown: list[tuple[dict[int, frozenset[int]], Guarded, dict[int, dict[int, int]]]] = []
    for person, day, erases in [(0, 0, False), *steps]:
        if erases:
            gone.add(person)
        elif person not in gone:
            alive[person][day] = 2**person
        rows, people, members = _table(alive, gone)
        earlier = [
            Shown(before.rows, before.withheld, lambda then=then: _again(then, gone))
            for _, before, then in reversed(shown)
        ]
        guarded = guard(rows, people, earlier=earlier, keys=["day"], subjects="people", k=K)
        inputs = {n: dict(one) for n, one in alive.items()}
        days = set(guarded.rows["day"].to_list())
        shown.append(({d: m for d, m in members.items() if d in days}, guarded, inputs))
    found = [
        {n for n in older[day] - newer[day] if day in then[n]}
        for at, (older, _, then) in enumerate(shown)
        for newer, _, _ in shown[at + 1 :]
        for day in older.keys() & newer.keys()
    ]
    return [taken_out for taken_out in found if 0 < len(taken_out) < K]


def _again(people: dict[int, dict[int, int]], gone: set[int]) -> Again:
    rows, everybody, _ = _table(people, gone)
    return Again(everybody, rows)


def _table(
    people: dict[int, dict[int, int]], gone: set[int]
) -> tuple[pl.DataFrame, pl.DataFrame, dict[int, frozenset[int]]]:
    """The rows over the floor, the people of all rows, and who is in each."""
    members = {
        day: frozenset(n for n, rows in people.items() if day in rows and n not in gone) for day in range(4)
    }
    whole = pl.DataFrame(
        {
            "day": list(members),
            "people": [len(m) for m in members.values()],
            "cents": [sum(people[n][day] for n in m) for day, m in members.items()],
        },
        schema={"day": pl.Int64, "people": pl.Int64, "cents": pl.Int64},
    ).filter(pl.col("people") > 0)
    return whole.filter(pl.col("people") >= K), whole.select("day", "people"), members


@pytest.mark.parametrize("why", ["its input is gone", "too many were looked at"])
def test_a_row_that_cannot_be_compared_any_more_is_withheld(why: str) -> None:
    """A row that nobody can judge is not shown; one that an older publication does not show is."""
    rows = pl.DataFrame({"day": [1, 2], "people": [5, 5], "cents": [50, 50]})
    is_gone = why == "its input is gone"
    again = None if is_gone else Again(rows.select("day", "people"), rows)
    older = Shown(rows.head(1), {}, lambda: again)
    found = guard(
        rows,
        rows.select("day", "people"),
        earlier=[older],
        keys=["day"],
        subjects="people",
        k=K,
        most=int(is_gone),
    )
    assert found.rows["day"].to_list() == [2]


def test_a_person_exchanged_for_another_is_withheld_too() -> None:
    """As many people as before, and other values."""
    rows = pl.DataFrame({"day": [1], "people": [5], "cents": [50]})
    again = rows.with_columns(cents=pl.lit(60))
    found = guard(
        rows,
        rows.select("day", "people"),
        earlier=[Shown(rows, {}, lambda: Again(again.select("day", "people"), again))],
        keys=["day"],
        subjects="people",
        k=K,
    )
    assert (found.rows.height, list(found.withheld.values())) == (0, [Withheld(5, 1)])


def test_a_guarded_view_has_to_show_its_people(tmp_path: Path) -> None:
    """Publications are compared by that column; `final` may not leave it out."""
    views = tmp_path / "without.py"
    views.write_text(GUARDED + '\n    def final(self, rows):\n        return rows.drop("people")\n')
    text = views.read_text().replace('name = "open"\n    min_subjects = 0', 'name = "silent"')
    views.write_text(text)
    initialise(tmp_path / "lake", [views])
    with open_runtime(tmp_path / "lake") as runtime:
        runtime.lake.types.register(PAID)
        buy(runtime, range(4), 0, "a")
        with pytest.raises(DefinitionError, match="leaves `people` out"):
            runtime.views.build(["silent"])


def test_views_that_reveal_people_are_named(lake: Runtime) -> None:
    """One without a floor, and a pair that counts the same field."""
    found = revealing(lake.views.registry.all(), lake.lake.types)
    assert [one.views for one in found] == [("open",), ("guarded", "open")]


def test_doctor_names_views_that_reveal_people(lake: Runtime) -> None:
    """Where an operator looks, without a publication."""
    found = [f.check for f in examine(lake) if f.level == "warning" and "subtraction" in f.text]
    assert found == ["subtraction of open"]


def test_the_plan_of_an_erasure_names_what_reveals_the_person_and_a_reason_quiets_the_warning(
    lake: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of published views that read what the person has; a pair is named whatever is said of one."""
    buy(lake, range(4), 0, "a")
    someone = SubjectId("person-1")
    assert lake.purge.plan(someone).revealing == (), "nothing is published"
    publish(lake)
    single, pair = lake.purge.plan(someone).revealing
    assert "`open` before and after" in single
    assert "`guarded` and `open`" in pair
    views, types = lake.views.registry.all(), lake.lake.types
    assert revealing(views, types, ["Other"]) == []
    monkeypatch.setattr(type(lake.views.registry.get("open")), "no_floor", "because it is a test")
    assert [one.because for one in revealing(views, types)] == ["because it is a test", ""]
    levels = {one.check: one.level for one in examine(lake) if one.check.startswith("subtraction")}
    assert levels == {"subtraction of open": "note", "subtraction of guarded and open": "warning"}


def shown(runtime: Runtime, *arguments: str) -> list[dict[str, object]]:
    """What `shredlake views` says."""
    command = ["--home", str(runtime.home), "--output", "json", "views", *arguments]
    found: list[dict[str, object]] = json.loads(CliRunner().invoke(app, command).stdout)
    return found


def numbers(value: object) -> list[int]:
    """Every number in a record, by its place."""
    if isinstance(value, dict):
        return [n for key in sorted(value) for n in numbers(value[key])]
    if isinstance(value, list | tuple):
        return [n for one in value for n in numbers(one)]
    return [value if isinstance(value, int) and not isinstance(value, bool) else 0]


def test_no_record_of_a_publication_tells_how_many_events_an_erased_person_had(lake: Runtime) -> None:
    """From the ledger, the log, and the command line, before and after each erasure: none recovered."""
    counts = {"a": 11, "b": 17, "c": 23}
    events = [
        paid(person, 100, event_id=f"{person}{n}")
        for person, count in {**counts, "f": 3, "g": 3, "h": 3, "i": 3}.items()
        for n in range(count)
    ]
    send(lake, events)
    publish(lake)
    names = ("guarded", "each", "open")
    seen: dict[str, list[list[int]]] = {name: [] for name in names}

    def look() -> None:
        lake.purge.log_publications()
        listed = {row["view"]: row for row in shown(lake, "list")}
        for name in names:
            newest = lake.views.ledger.history(name)[0]
            leaf = lake.purge.log.data(lake.views.ledger.leaf_of(newest.publication_id) or 0)
            told = [newest.as_dict(), json.loads(leaf), listed[name], shown(lake, "history", name)[0]]
            seen[name].append(numbers(told))

    look()
    for person in counts:
        shred(lake, person)
        publish(lake)
        look()
    recovered = dict.fromkeys(names, 0)
    for name, records in seen.items():
        for (before, after), count in zip(pairwise(records), counts.values(), strict=True):
            assert len(before) == len(after)
            recovered[name] += count in {abs(a - b) for a, b in zip(before, after, strict=True)}
    assert recovered == {"guarded": 0, "each": 0, "open": 3}, "the last is the control: the attack is real"


def test_which_rows_are_withheld_cannot_be_guessed_and_their_key_goes_with_the_publication(
    lake: Runtime,
) -> None:
    """The ledger holds no digest of a row's keys; records of an earlier release are sealed when it is opened."""
    buy(lake, range(8), 0, "a")
    publish(lake)
    day = lake.views.as_reported("guarded").rows.select("day")
    (guess,) = key_digests(day, ["day"])
    shred(lake, "person-7")
    publish(lake)
    newest, first = lake.views.ledger.history("guarded")
    withheld = lake.views.ledger.withheld(newest.build_id)
    assert withheld == {guess: Withheld(7, 1)}

    def files() -> bytes:
        return b"".join(path.read_bytes() for path in sorted((lake.home / "views").glob("ledger.db*")))

    def sealed() -> list[tuple[bytes, bytes]]:
        with closing(sqlite3.connect(lake.home / "views" / "ledger.db")) as db:
            return db.execute("SELECT key_ref, sealed FROM withheld_sealed").fetchall()

    assert guess not in files()
    with closing(sqlite3.connect(lake.home / "views" / "ledger.db")) as db:
        db.execute("DELETE FROM withheld_sealed")
        db.execute("INSERT INTO withheld VALUES (?, ?, 7, 1)", (newest.build_id, guess))
        db.commit()
    assert guess in files(), "as an earlier release left it"
    with open_runtime(lake.home) as again:
        assert again.views.ledger.withheld(newest.build_id) == withheld
    assert guess not in files()
    (kept,) = sealed()
    assert first.withheld_rows == 0
    lake.views.ledger.set_gone([newest])
    assert sealed() == []
    with closing(sqlite3.connect(lake.home / "views" / "ledger.db")) as db:
        db.execute("INSERT INTO withheld_sealed VALUES (?, ?, ?)", (newest.build_id, *kept))
        db.commit()
    with pytest.raises(GateClosed, match="its key is gone"):
        lake.views.ledger.withheld(newest.build_id)
