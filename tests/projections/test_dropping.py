"""Publications are dropped for good: rows, files, snapshots; the record says when and why."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from keys import Effects, SubjectId
from projections import Ledger, Publication, PublicationDropped, StaleEpoch
from projections.dropping import Dropping
from projections.tables import ViewTables
from purge import Status, payload_of
from service.cli.main import app
from service.runtime import Runtime, initialise, open_runtime
from tests.projections.test_differencing import GUARDED, buy, cents
from tests.world import PAID, Clock, erase, make_world, paid, publish, send

VIEW = "people_per_day"
ANN = SubjectId("ann")


class Killed(BaseException):
    """What stands for a kill: nothing catches it."""


class Killer:
    """Counts effects and raises before one of them."""

    def __init__(self) -> None:
        self.count = 0
        self.at: int | None = None
        self.only = ""

    def __call__(self, when: str, name: str) -> None:
        """The observer of `keys.Effects`."""
        if when == "before" and name.startswith(self.only):
            self.count += 1
            if self.count == self.at:
                raise Killed


def stored_cents(runtime: Runtime, view: str = VIEW) -> set[int]:
    """The amounts in every file of a view's tables, whatever refers to it."""
    folder = runtime.home / "lake" / "warehouse" / "views"
    found: set[int] = set()
    for path in folder.glob(f"{view}/data/*/*.parquet"):
        found |= set(pl.read_parquet(path)["cents"].to_list())
    return found


def published(runtime: Runtime) -> datetime:
    """Publishes the view; returns a moment at which readers saw that publication."""
    publish(runtime, VIEW)
    return datetime.now(UTC)


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[tuple[Runtime, Killer]]:
    """A lake whose effects can be killed."""
    killer = Killer()
    with make_world(tmp_path / "lake", effects=Effects(killer)) as runtime:
        yield runtime, killer


def test_of_a_dropped_publication_no_row_is_stored_and_every_answer_names_the_reason(world: Runtime) -> None:
    """As reported, as recomputed, reconciled, and a roll-back; what readers see and what is kept stays."""
    moments = []
    for n in range(1, 4):
        send(world, [paid("bob", 10**n, event_id=str(n))])
        moments.append(published(world))
    assert stored_cents(world) == {10, 110, 1110}
    views = world.views
    chosen = views.dropping.choose(VIEW, keep=2)
    assert [one.publication_id for one in chosen.publications] == [1]
    views.dropping.drop(chosen.publications, why="a test")
    assert stored_cents(world) == {110, 1110}
    for ask in (views.as_reported, views.as_recomputed, views.reconcile):
        with pytest.raises(PublicationDropped, match=r"publication 1 .* dropped at .*: a test"):
            ask(VIEW, moments[0])
    assert views.as_reported(VIEW, moments[1]).rows["cents"].to_list() == [110]
    views.roll_back(VIEW, who="test", why="")
    chosen = views.dropping.choose(VIEW)
    assert [one.publication_id for one in chosen.publications] == [3], "readers see the second again"
    views.dropping.drop(chosen.publications, why="a test")
    assert stored_cents(world) == {110}, "also of the table's head"
    with pytest.raises(Exception, match="no publication before"):
        views.roll_back(VIEW, who="test", why="")
    published(world)
    assert views.as_reported(VIEW).rows["cents"].to_list() == [1110], "a dropped build is built again"


def test_a_build_whose_publication_was_dropped_meanwhile_is_built_again_and_not_published(
    world: Runtime,
) -> None:
    """Between the end of a build and its publication somebody drops the publication that it was before."""
    views = world.views
    send(world, [paid("bob", 10, event_id="1")])
    built = views.build([VIEW], who="a test", why="a test")
    views.publish(built, who="a test", why="a test")
    send(world, [paid("bob", 100, event_id="2")])
    publish(world, VIEW)
    views.dropping.drop(views.dropping.choose(VIEW).publications, why="a test")
    with pytest.raises(StaleEpoch, match="dropped"):
        views.publish(built, older=True, who="a test", why="a test")
    assert views.as_reported(VIEW).rows["cents"].to_list() == [110]


def test_an_erasure_drops_the_publications_that_count_the_person_and_no_other(
    slow_world: Runtime, clock: Clock
) -> None:
    """By setting; its receipt names them. Builds that were never published go as well."""
    slow_world.purge._steps._drop_affected = (VIEW,)
    send(slow_world, [paid("bob", 1, event_id="1")])
    publish(slow_world)
    first = clock()
    clock.forward(days=2)
    send(slow_world, [paid("ann", 20, event_id="2")])
    publish(slow_world)
    second = clock()
    clock.forward(days=1)
    send(slow_world, [paid("bob", 300, event_id="3")])
    slow_world.views.build([VIEW])
    assert stored_cents(slow_world) == {1, 21, 321}
    clock.forward(days=1)
    done = slow_world.purge.journal.get(erase(slow_world, "ann"))
    assert stored_cents(slow_world) == {1, 301}
    touched = payload_of(done.receipt or b"")["predicate"]["touched"]
    (dropped,) = touched["publications_dropped"]
    assert dropped["view"] == VIEW
    with pytest.raises(PublicationDropped, match="counts people who were erased"):
        slow_world.views.as_reported(VIEW, second)
    assert slow_world.views.as_reported(VIEW, first).rows["cents"].to_list() == [1]
    for other in ("cents_per_day", "bands"):
        assert slow_world.views.as_reported(other, second).rows.height == 1, "another policy, another kind"


def test_a_dropped_publication_is_still_what_the_next_one_is_compared_with(tmp_path: Path) -> None:
    """A guarded view under the policy: rows come back once three people have gone, and not before."""
    with guarded(tmp_path) as lake:
        buy(lake, range(8), 0, "a")
        publish(lake)
        (day,) = cents(lake, "guarded")
        for person, shown in (("person-7", 0), ("person-6", 0), ("person-5", 1)):
            erase(lake, person)
            assert len(cents(lake, "guarded")) == shown
        publish(lake, "guarded")
        assert cents(lake, "guarded") == {day: sum(1000 + 2**n for n in range(5))}
        assert lake.views.dropping.owed() == []
        assert stored_cents(lake, "guarded") <= {cents(lake, "guarded")[day]}


def test_of_a_withdrawn_view_with_a_floor_the_last_publication_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then nobody reads it, and the receipt says that its rows are there."""
    with guarded(tmp_path) as lake:
        buy(lake, range(8), 0, "a")
        publish(lake)
        moment, before = datetime.now(UTC), stored_cents(lake, "guarded")
        with monkeypatch.context() as edited:

            def broken(*_: object) -> pl.DataFrame:
                raise ValueError

            edited.setattr(type(lake.views.registry.get("guarded")), "fold", broken)
            edited.setattr("projections.views.ViewRegistry.refresh", lambda _: False)
            receipt = lake.purge.journal.get(erase(lake, "person-7")).receipt
        predicate = payload_of(receipt or b"")["predicate"]
        assert any("publication 1 of guarded" in one for one in predicate["not_addressed"])
        assert stored_cents(lake, "guarded") == before
        with pytest.raises(PublicationDropped):
            lake.views.as_reported("guarded", moment)
        publish(lake)
        assert cents(lake, "guarded") == {}, "compared with what was dropped"
        assert stored_cents(lake, "guarded").isdisjoint(before)


def guarded(tmp_path: Path) -> Runtime:
    """A lake with the same view with a floor of three people and without; all affected publications go."""
    views = tmp_path / "guarded.py"
    views.write_text(GUARDED)
    initialise(tmp_path / "lake", [views])
    config = tmp_path / "lake" / "shredlake.toml"
    config.write_text(config.read_text() + '\n[erasure]\ndrop_affected = ["*"]\n')
    runtime = open_runtime(tmp_path / "lake")
    runtime.lake.types.register(PAID)
    return runtime


def test_a_kill_at_any_effect_of_a_drop_is_gone_on_with(killed: tuple[Runtime, Killer]) -> None:
    """Before each effect in turn, of publications that are a table's head too."""
    world, killer = killed
    at, n = 0, 0
    while killer.at is None or killer.count >= at:  # until it ends before the next one
        at += 1
        for _ in range(2):
            n += 1
            send(world, [paid("bob", n, event_id=str(n))])
            published(world)
        if at % 2:
            world.views.roll_back(VIEW, who="test", why="")
        chosen = world.views.dropping.choose(VIEW)
        killer.count, killer.at = 0, at
        try:
            world.views.dropping.drop(chosen.publications, why="a test")
        except Killed:
            killer.at = 0
            world.views.dropping.drop(chosen.publications, why="a test")
            killer.count, killer.at = at, at
        assert stored_cents(world) == set(world.views.as_reported(VIEW).rows["cents"].to_list())
        assert world.views.dropping.owed() == []
    assert at > 4


def test_an_erasure_that_is_killed_while_it_drops_names_the_same_publications(
    killed: tuple[Runtime, Killer],
) -> None:
    """The stage is repeated as a whole."""
    world, killer = killed
    world.purge._steps._drop_affected = ("*",)
    for n in (1, 2):
        send(world, [paid("ann", n, event_id=f"a{n}"), paid("bob", 5, event_id=f"b{n}")])
        publish(world)
    request = world.purge.submit(ANN).request
    killer.count, killer.at, killer.only = 0, 4, "drop"
    with pytest.raises(Killed):
        world.purge.run(request.request_id)
    killer.at = None
    done = world.purge.run(request.request_id)
    assert done.status is Status.COMPLETED
    dropped = payload_of(done.receipt or b"")["predicate"]["touched"]["publications_dropped"]
    assert sorted(one["view"] for one in dropped) == ["bands", "bands", VIEW, VIEW]
    assert stored_cents(world) == {10}


def test_rows_that_came_back_with_older_tables_are_dropped_again(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger knows what is gone; here the deletion itself had been taken back."""
    for n in (1, 2):
        send(world, [paid("bob", n, event_id=str(n))])
        published(world)
    with monkeypatch.context() as undone:
        undone.setattr("projections.tables.drop_snapshots", lambda *_: [])
        world.views.dropping.drop(world.views.dropping.choose(VIEW).publications, why="a test")
    assert stored_cents(world) == {1, 3}
    assert world.views.dropping.settle([VIEW]) == []
    assert stored_cents(world) == {3}


class _NoTables(ViewTables):
    """Remembers which snapshots are dropped."""

    def __init__(self) -> None:
        self.gone: set[int] = set()

    def drop(self, name: str, snapshot_ids: Collection[int], effects: Effects) -> int:
        """See `ViewTables.drop`."""
        self.gone |= set(snapshot_ids)
        return len(snapshot_ids)

    def unpublished(self, view: str, builds: Collection[str], epoch: int) -> dict[str, list[int]]:
        """None."""
        return {}


MODEL = Publication(
    build_id="", view="v", grain="aggregate", personal=True, table="views.v", snapshot_id=0, version="", epoch=0,
    input_snapshot=0, input_sequence=0, offsets={}, watermark=None, schemas=("Paid/v1",), columns={}, rows=0,
    events_stored=0, events_superseded=0, events_shredded=0, events_counted=0, digest="", git_sha="",
    git_dirty=False, libraries={}, built_at="2026-03-01T00:00:00+00:00", who="", why="",
)  # fmt: skip
STEPS = st.lists(
    st.tuples(st.sampled_from(["publish", "back", "drop", "withdraw"]), st.integers(0, 1)), max_size=12
)


@settings(max_examples=60)
@given(steps=STEPS, floor=st.sampled_from([0, 5, None]))
def test_what_readers_see_and_what_the_next_one_is_compared_with_is_never_gone(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], floor: int | None
) -> None:
    """Over any history of publications, roll-backs, withdrawals and drops; all else that was noted is gone."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    ledger, tables = Ledger(path, lambda: datetime.now(UTC), Effects()), _NoTables()
    dropping = Dropping(ledger, tables, lambda _: None, lambda: 0, Effects())
    made = 0

    def move_heads() -> None:
        for wanted in ledger.heads.pending():
            ledger.heads.moved(wanted)

    for what, number in steps:
        history = ledger.history("v")
        if what == "publish" or not history:
            made += 1
            one = evolve(MODEL, build_id=str(made), snapshot_id=made, floor=floor)
            ledger.release([one], epoch=lambda: 0, who="", why="")
            before = set(tables.gone)
            dropping.settle(["v"])
            assert tables.gone == before, "the head of the table may still show what goes"
            move_heads()
            dropping.settle(["v"])
        elif what == "drop":
            dropping.drop(history[number:], why="a test")
        elif what == "withdraw":
            ledger.set_aside({"v": "a test"}, {}, epoch=lambda: 0, who="", why="")
        else:
            kept = [one for one in history[1:] if one.publication_id not in ledger.dropped()]
            if kept:
                ledger.revert([kept[0]], epoch=lambda: 0, who="", why="")
        release = ledger.current()
        needed: set[Any] = set(release.entries.values()) if release is not None else set()
        if floor != 0 and ledger.history("v"):
            needed.add(ledger.history("v")[0].publication_id)
        assert tables.gone.isdisjoint(needed)
    move_heads()
    dropping.settle(["v"])
    assert tables.gone == {i for i, one in ledger.dropped().items() if one.is_gone}
    assert {i for i, one in ledger.dropped().items() if not one.is_gone} <= needed if steps else True
    ledger.close()


def test_the_command_lists_counts_drops_and_the_history_tells(world: Runtime) -> None:
    """A dry run changes nothing; one choice is needed; twice is success."""
    for n in (1, 2, 3):
        send(world, [paid("bob", n, event_id=str(n))])
        published(world)

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["--home", str(world.home), "--output", "json", "views", *arguments])

    assert run("drop-publications", VIEW).exit_code == 2
    assert run("drop-publications", VIEW, "--keep", "1", "--all-but-current").exit_code == 2
    dry = run("drop-publications", VIEW, "--all-but-current", "--dry-run")
    assert len(json.loads(dry.stdout)) == 2
    assert stored_cents(world) == {1, 3, 6}
    assert run("drop-publications", VIEW, "--before", "2026-01-01", "--yes").exit_code == 0
    assert stored_cents(world) == {1, 3, 6}
    done = run("drop-publications", VIEW, "--all-but-current", "--why", "too old", "--yes")
    assert "2 publication(s) dropped" in done.output
    assert stored_cents(world) == {6}
    told = [one["dropped"].partition(": ")[2] for one in json.loads(run("history", VIEW).stdout)]
    assert told == ["", "too old", "too old"]
    log = world.purge.log
    leaves = [json.loads(data) for _, _, data in log.named("dropped/")]
    assert [(one["view"], one["dropped"]) for one in leaves] == [(VIEW, 1), (VIEW, 2)], "auditors see it"
    assert not any(b"too old" in data for *_, data in log.named("")), "free text may name somebody"
    assert run("drop-publications", VIEW, "--all-but-current", "--yes").exit_code == 0
