"""A view is a function of its input: another result over the same one is an alarm, and nobody sees it unasked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys import SubjectId
from projections.errors import ResultChanged
from projections.sameness import Difference, difference
from service.doctor import alarm_findings, examine
from service.runtime import Runtime, initialise, open_runtime
from tests.command import command
from tests.projections.test_views import HEAD
from tests.world import PAID, paid, publish, send, shred

IMPURE = """
def ticking(turns=[0]):
    def tick():
        turns[0] += 1
        return turns[0]
    return tick

tick = ticking()


class Steady(Projection):
    name = "steady"
    reads = {"Paid": ["cents", "occurred_on"]}
    keys = {"day": c("occurred_on")}
    state = {"cents": Sum(c("cents"))}


class Aggregate(Steady):
    name = "aggregate"
    def final(self, rows):
        return rows.with_columns(c("cents") + tick())


class Person(Fold):
    name = "person"
    reads = {"Paid": ["cents"]}
    def fold(self, events):
        return events.select("subject_ref", c("cents") + tick())


class Missing(Steady):
    name = "missing"
    def final(self, rows):
        return rows.filter(pl.lit(tick() % 2 == 0))


class Sums(Person):
    name = "sums"
    keys = {"all": pl.lit(1)}
    state = {"cents": Sum(c("cents"))}
    impersonal = ["cents"]


class Built(Aggregate):
    name = "only_built"


class One(Aggregate):
    name = "one"


class Two(Person):
    name = "two"


class Other(Person):
    name = "other_input"


class Commanded(Aggregate):
    name = "commanded"


class Mended(Steady):
    name = "mended"
    def final(self, rows):
        return rows.with_columns(c("cents") + tick() * 2)
"""
KINDS = ("aggregate", "person", "missing", "sums")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """One lake; each test has views of its own, that count how often they ran, in a way that no look at their code sees, and a steady one."""
    tmp_path = tmp_path_factory.mktemp("rebuilds")
    file = tmp_path / "impure.py"
    file.write_text(HEAD + IMPURE)
    initialise(tmp_path / "lake", [file])
    config = tmp_path / "lake" / "shredlake.toml"
    config.write_text(config.read_text().replace("[projections]", "[projections]\nbucket_bits = 1"))
    with open_runtime(tmp_path / "lake") as runtime:
        runtime.lake.types.register(PAID)
        send(runtime, [paid(f"p{n}", n + 1, event_id=str(n)) for n in range(5)])
        yield runtime


def shown(runtime: Runtime, name: str) -> list[tuple[object, ...]]:
    """What readers see."""
    rows = runtime.views.as_reported(name).rows
    return rows.sort(rows.columns).rows()


def alarmed(runtime: Runtime, *names: str) -> list[str]:
    """Which of these views have an open alarm, as `doctor` and the readiness probe's number say as well."""
    found = {one.check for one in alarm_findings(runtime.views.ledger.open_alarms())}
    return [name for name in names if f"result of {name}" in found]


@pytest.mark.parametrize("name", KINDS)
def test_another_result_over_the_same_input_is_an_alarm_and_is_not_published_unless_said(
    lake: Runtime, name: str
) -> None:
    """Of aggregates, of rows per person, of a row that is missing; accepted, it is what comes next is held to."""
    publish(lake, "steady", name)
    before, releases = shown(lake, name), len(lake.views.ledger.releases())
    tries = 1 if name == "missing" else 2
    for _ in range(tries):
        with pytest.raises(ResultChanged, match=f"`{name}` gives another result") as caught:
            lake.views.bring_up_to_date(["steady", name], rebuild=True, who="", why="")
        assert "--accept-changed" in caught.value.next_step
    (alarm,) = [one for one in lake.views.ledger.open_alarms() if one.view == name]
    assert (alarm.times, alarmed(lake, name)) == (tries, [name])
    assert (shown(lake, name), len(lake.views.ledger.releases())) == (before, releases)
    publish(lake, name)  # from states: what was published already
    assert shown(lake, name) == before
    if name == "missing":  # every second time the same
        return
    lake.views.bring_up_to_date([name], rebuild=True, accept_changed=True, who="", why="")
    accepted = shown(lake, name)
    assert (accepted != before, alarmed(lake, name)) == (True, [])
    publish(lake, name)
    assert shown(lake, name) == accepted
    with pytest.raises(ResultChanged):
        lake.views.build([name], rebuild=True)
    assert alarmed(lake, name) == [name]


def test_what_was_built_and_not_published_is_compared_as_well_and_every_view_that_changed_is_named(
    lake: Runtime,
) -> None:
    """One alarm does not hide another."""
    names = ["one", "steady", "two"]
    lake.views.build(names)
    with pytest.raises(ResultChanged) as caught:
        lake.views.build(names, rebuild=True)
    assert caught.value.view == "one, two"
    assert alarmed(lake, *names) == ["one", "two"]
    assert {one.check for one in examine(lake) if one.level == "error"} >= {"result of one", "result of two"}


def test_over_another_input_other_fences_or_holds_another_result_is_no_alarm(lake: Runtime) -> None:
    """New events, a hold, its end, and an erasure: nothing is the same as before."""
    steps: list[Callable[[], object]] = [
        lambda: send(lake, [paid("p9", event_id="new")]),
        lambda: lake.purge.hold(SubjectId("p1"), "claim"),
        lambda: lake.purge.release(SubjectId("p1")),
        lambda: shred(lake, "p2"),
    ]
    publish(lake, "other_input")
    for step in steps:
        step()
        lake.views.bring_up_to_date(["other_input"], rebuild=True, who="", why="")
    assert alarmed(lake, "other_input") == []


def test_an_alarm_ends_when_readers_see_other_code(lake: Runtime) -> None:
    """Mended code is a new version, which the next publication takes from the file."""
    publish(lake, "mended")
    with pytest.raises(ResultChanged):
        lake.views.build(["mended"], rebuild=True)
    (file,) = [source.path for source in lake.views.registry.sources()]
    file.write_text(file.read_text().replace(" + tick() * 2", ""))
    lake.views.bring_up_to_date(["mended", "steady"], rebuild=True, who="", why="")
    assert shown(lake, "mended") == shown(lake, "steady")
    assert alarmed(lake, "mended") == []


def test_the_command_ends_with_an_error_until_the_result_is_accepted(lake: Runtime) -> None:
    """What a script sees: the exit code; and nothing is published."""
    rebuild = ("views", "build", "commanded", "--rebuild", "--publish")
    assert command(lake.home, "views", "publish", "commanded").returncode == 0
    done = command(lake.home, *rebuild)
    assert (done.returncode, "another result over the same input" in done.stderr) == (1, True)
    assert command(lake.home, *rebuild, "--accept-changed").returncode == 0


frames = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(-2, 2)),
        st.one_of(st.none(), st.sampled_from([0.0, 0.1, 1e15, -3.5])),
        st.sampled_from([None, "a", "b"]),
    ),
    max_size=8,
)
SCHEMA = {"n": pl.Int64(), "f": pl.Float64(), "t": pl.String()}


@given(frames, st.randoms(use_true_random=False), frames)
def test_results_are_the_same_exactly_where_their_rows_are_the_same_whatever_their_order(
    rows: list[tuple[object, ...]], chance: object, others: list[tuple[object, ...]]
) -> None:
    """Doubled rows count; a float may be off where Polars' order of adding shows."""
    shuffled = list(rows)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    one = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    again = pl.DataFrame(shuffled, schema=SCHEMA, orient="row").with_columns(c_off("f")).select("t", "n", "f")
    other = pl.DataFrame(others, schema=SCHEMA, orient="row")
    assert difference(one, again) is None
    found = difference(one, other)
    gone = list(rows)
    left = [row for row in others if not (row in gone and not gone.remove(row))]
    expected = Difference(len(rows), len(others), len(left) + len(gone)) if left or gone else None
    assert found == expected


def c_off(name: str) -> pl.Expr:
    """A float as another order of adding gives it."""
    return (pl.col(name) * (1 + 1e-14)).alias(name)
