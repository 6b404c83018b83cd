"""What engines see that know nothing of releases: the head of a view's table is what is published."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import duckdb
import polars as pl
import pytest
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.table import Table

from keys import SubjectId
from lake import IcebergTable, privacy_lint
from lake.offsets import EPOCH, KIND
from lake.table import summary_of
from projections import HeadAhead, PublicationExpired, StaleEpoch, bring_back, rederive
from projections.tables import ViewTables
from purge import Status, scan
from service.doctor import examine
from service.lakeplace import lake_place
from service.runtime import Runtime, open_runtime
from tests.lake.far import anywhere, versions
from tests.world import VIEWS, erase, make_world, paid, publish, send, shred

__all__ = ["anywhere", "versions"]
AGGREGATES = ("cents_per_day", "people_per_day", "bands")


class Stop(BaseException):
    """The power goes."""


def engine(runtime: Runtime) -> Catalog:
    """The catalog as somebody else opens it."""
    place = lake_place(runtime.settings.lake)
    if place.kind == "rest":
        return load_catalog("other", type="rest", uri=place.uri, **place.properties)
    return load_catalog("shredlake", type="sql", uri=f"sqlite:///{runtime.home}/lake/catalog.db")


def table_of(runtime: Runtime, view: str) -> Table:
    """A view's table as another engine loads it."""
    return engine(runtime).load_table(f"views.{view}")


def seen(runtime: Runtime, view: str) -> pl.DataFrame:
    """What a plain reader gets of a view, through DuckDB as well."""
    arrow = table_of(runtime, view).scan().to_arrow()
    assert duckdb.sql("select * from arrow").pl().height == arrow.num_rows
    rows = pl.from_arrow(arrow)
    assert isinstance(rows, pl.DataFrame)
    return rows


def shows_what_is_published(runtime: Runtime) -> None:
    """Every table shows the release's rows and no others; its head knows the newest fence it needs."""
    release = runtime.views.ledger.current()
    there = {name for _, name in engine(runtime).list_tables("views")}
    for view in there.intersection(runtime.views.registry.names()):
        rows, entry = seen(runtime, view), release.entries.get(view) if release else None
        if entry is None or view in runtime.views.ledger.aside():
            assert rows.is_empty(), view
            continue
        publication = runtime.views.ledger.publication(entry)
        if view in AGGREGATES:
            reported = runtime.views.as_reported(view).rows
            assert rows.select(reported.columns).sort(pl.all()).equals(reported.sort(pl.all())), view
        else:
            assert rows.height == publication.rows
        head = table_of(runtime, view).current_snapshot()
        assert head is not None
        assert not publication.personal or int(summary_of(head)[EPOCH]) == runtime.keyring.epoch()
        assert head.parent_snapshot_id is None
    assert {one.state for one in runtime.views.heads.look()} <= {"published", "empty"}


def no_file_is_shared(runtime: Runtime) -> None:
    """No data file belongs to two tables."""
    files = [
        {file.file_path for file in table.kept_files()} for table in runtime.lake.warehouse.tables("views")
    ]
    assert sum(map(len, files)) == len(set().union(*files))


def test_other_engines_see_the_published_release_and_never_a_build(anywhere: Runtime) -> None:
    """Not before the first publication, not between build and publication, and behind a roll-back again."""
    names = anywhere.views.registry.names()
    send(anywhere, [paid("ann", 5, event_id="1"), paid("bob", 700, event_id="2")])
    built = anywhere.views.build(names)
    shows_what_is_published(anywhere)
    anywhere.views.publish(built, who="test", why="")
    shows_what_is_published(anywhere)
    assert seen(anywhere, "cents_per_day")["cents"].sum() == 705
    send(anywhere, [paid("cid", 9, event_id="3")])
    built = anywhere.views.build(names)
    shows_what_is_published(anywhere)
    assert seen(anywhere, "cents_per_day")["cents"].sum() == 705
    anywhere.views.publish(built, who="test", why="")
    shows_what_is_published(anywhere)
    assert seen(anywhere, "cents_per_day")["cents"].sum() == 714
    anywhere.views.roll_back("cents_per_day", who="test", why="")
    shows_what_is_published(anywhere)
    assert seen(anywhere, "cents_per_day")["cents"].sum() == 705
    no_file_is_shared(anywhere)
    assert privacy_lint(anywhere.lake) == []


def test_an_erasure_moves_heads_behind_its_fence_and_empties_what_is_withdrawn(
    anywhere: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A withdrawn view shows nothing, and no earlier head is left to travel to; it comes back when it builds."""
    send(anywhere, [paid("ann", 5, event_id="1"), paid("bob", 700, event_id="2")])
    publish(anywhere)
    with monkeypatch.context() as edited:
        edited.setattr(type(anywhere.views.registry.get("bands")), "fold", lambda self, events: None)
        erase(anywhere, "ann")
    shows_what_is_published(anywhere)
    assert seen(anywhere, "people_per_day")["people"].to_list() == [1]
    assert seen(anywhere, "bands").is_empty()
    for view in anywhere.views.registry.names():
        table = table_of(anywhere, view)
        heads = [one for one in table.metadata.snapshots if summary_of(one).get(KIND) == "head"]
        assert heads == [table.current_snapshot()]
        assert [entry.snapshot_id for entry in table.history()] == [heads[0].snapshot_id]
    assert bring_back(anywhere.views, who="test", why="") == ["bands"]
    shows_what_is_published(anywhere)
    assert seen(anywhere, "bands")["people"].to_list() == [1]
    assert privacy_lint(anywhere.lake) == []


def test_a_publication_that_another_engine_expired_is_not_told_as_an_older_lake(world: Runtime) -> None:
    """Its rows are gone and the lake is the newest one: what can be done is another thing."""
    moments = []
    for n in range(2):
        send(world, [paid("bob", 10, event_id=str(n))])
        publish(world, "people_per_day")
        moments.append(world.lake.clock())
    first = world.views.publication("people_per_day", moments[0])
    table = table_of(world, "people_per_day")
    for name, ref in table.metadata.refs.items():
        if name != "main" and ref.snapshot_id == first.snapshot_id:
            table.manage_snapshots().remove_tag(name).commit()
    table.maintenance.expire_snapshots().by_id(first.snapshot_id).commit()
    with pytest.raises(PublicationExpired, match="expired") as told:
        world.views.as_reported("people_per_day", moments[0])
    assert "as_recomputed" in told.value.next_step
    world.views.restored.refuse_older_lake()
    assert world.views.as_recomputed("people_per_day", moments[0]).rows["cents"].to_list() == [10]
    assert world.views.as_reported("people_per_day").rows["cents"].to_list() == [20]


def test_of_a_dropped_publication_nothing_is_left_in_the_table(anywhere: Runtime) -> None:
    """Neither a snapshot, nor a file, nor the branch of builds; the head stays as it is."""
    for number in (1, 2, 3):
        send(anywhere, [paid("bob", number, event_id=str(number))])
        publish(anywhere, "people_per_day")
    views = anywhere.views
    views.roll_back("people_per_day", who="test", why="")
    gone = views.dropping.drop(views.dropping.choose("people_per_day").publications, why="a test")
    assert len(gone) == 2, "the first, and the third, which the branch of builds names"
    table = anywhere.lake.warehouse.table("views.people_per_day")
    assert {one.snapshot_id for one in gone}.isdisjoint(one.snapshot_id for one in table.history())
    assert len({one.file_path for one in table.kept_files()}) == 1
    objects = anywhere.lake.warehouse.objects.objects(table.load().location())
    assert sum(one.location.endswith(".parquet") for one in objects) == 1
    assert seen(anywhere, "people_per_day")["cents"].to_list() == [3]
    shows_what_is_published(anywhere)
    assert privacy_lint(anywhere.lake) == []
    publish(anywhere, "people_per_day")
    assert seen(anywhere, "people_per_day")["cents"].to_list() == [6]


def test_what_is_served_as_stale_is_not_shown_to_engines_that_see_no_mark(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers of the release are told; a head never stands behind the fence."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 700, event_id="2")])
    publish(world)
    world.purge._steps._serve_stale = ("bands",)
    with monkeypatch.context() as edited:
        edited.setattr(type(world.views.registry.get("bands")), "fold", lambda self, events: None)
        assert world.purge.journal.get(erase(world, "ann")).status is Status.COMPLETED
    assert world.views.as_reported("bands").stale
    assert seen(world, "bands").is_empty()


def test_versions_with_other_columns_share_a_table_and_each_is_read_with_its_own(
    anywhere: Runtime,
) -> None:
    """A column of another type is another column; a roll-back brings the old ones back."""
    send(anywhere, [paid("ann", 5, event_id="1"), paid("bob", 700, event_id="2")])
    publish(anywhere, "cents_per_day")
    old = seen(anywhere, "cents_per_day")
    edited = anywhere.home.parent / "edited.py"
    state = '{"count": Count(), "cents": Sum(c("cents").cast(pl.Decimal(38, 2)))}'
    edited.write_text(VIEWS.read_text().replace('{"events": Count(), "cents": Sum(c("cents"))}', state, 1))
    config = anywhere.home / "shredlake.toml"
    config.write_text(config.read_text().replace(str(VIEWS), str(edited)))
    built = anywhere.views.build(["cents_per_day"])
    assert seen(anywhere, "cents_per_day").equals(old)
    anywhere.views.publish(built, who="test", why="")
    new = seen(anywhere, "cents_per_day")
    assert new.columns == ["day", "shop", "count", "cents"]
    assert new["cents"].dtype == pl.Decimal(38, 2)
    assert (new["cents"].sum(), new["count"].sum()) == (705, 2)
    anywhere.views.roll_back("cents_per_day", who="test", why="")
    assert seen(anywhere, "cents_per_day").equals(old)
    ids = [
        one.field_id
        for schema in table_of(anywhere, "cents_per_day").metadata.schemas
        for one in schema.fields
    ]
    assert len(set(ids)) == 6, "day, shop, events, cents, count, and cents of the other type"


def at_the_next_head(monkeypatch: pytest.MonkeyPatch, view: str, act: Callable[[], object]) -> list[Any]:
    """Something that happens between what a head's attempt has looked at and its commit, once."""
    sending, left = IcebergTable._send, [act]

    def overtaken(self: IcebergTable, table: Table, requirements: Any, updates: Any) -> None:
        moves = any(getattr(one, "ref_name", "") == "main" for one in updates)
        if moves and self.identifier == f"views.{view}" and left:
            left.pop()()
        sending(self, table, requirements, updates)

    monkeypatch.setattr(IcebergTable, "_send", overtaken)
    return left


def test_of_two_publishers_the_later_release_stays_whoever_moves_the_head_last(
    anywhere: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The intent is read anew in every attempt."""
    send(anywhere, [paid("ann", 5, event_id="1")])
    publish(anywhere)

    def another() -> None:
        with open_runtime(anywhere.home) as other:
            send(other, [paid("cid", 9, event_id="3")])
            publish(other, "cents_per_day")

    send(anywhere, [paid("bob", 7, event_id="2")])
    left = at_the_next_head(monkeypatch, "cents_per_day", another)
    publish(anywhere, "cents_per_day")
    assert left == []
    assert seen(anywhere, "cents_per_day")["cents"].sum() == 21
    shows_what_is_published(anywhere)


def test_rows_of_before_an_erasure_are_not_brought_forward_by_a_late_head(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Released before the fence and moved behind it: the head stays, and is moved by who builds again."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2")])
    names = world.views.registry.names()
    real = world.views.ledger.release

    def released(*args: Any, **named: Any) -> Any:
        done = real(*args, **named)
        shred(world, "ann")
        return done

    built = world.views.build(names)
    with monkeypatch.context() as patched:
        patched.setattr(world.views.ledger, "release", released)
        with pytest.raises(StaleEpoch, match="people_per_day"):
            world.views.publish(built, who="test", why="")
    assert seen(world, "people_per_day").is_empty()
    with open_runtime(world.home) as again:
        assert seen(again, "people_per_day").is_empty(), "neither by who opens the lake next"
    rederive(world.views, who="test", why="")
    assert seen(world, "people_per_day")["people"].to_list() == [1]
    shows_what_is_published(world)


def test_a_head_that_was_not_moved_is_moved_when_the_lake_is_opened_next(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers of the release are ahead until then, and doctor says so."""
    send(world, [paid("ann", 5, event_id="1")])
    publish(world)
    send(world, [paid("bob", 7, event_id="2")])

    def dies() -> None:
        raise Stop

    with monkeypatch.context() as patched:
        at_the_next_head(patched, "cents_per_day", dies)
        with pytest.raises(Stop):
            publish(world)
    assert world.views.as_reported("cents_per_day").rows["cents"].sum() == 12
    assert seen(world, "cents_per_day")["cents"].sum() == 5
    told = {one.check: one.level for one in examine(world)}
    assert told["head of views.cents_per_day"] == "warning"
    with open_runtime(world.home) as again:
        assert not again.views.heads.is_due()
        shows_what_is_published(again)


@pytest.mark.parametrize("how", ["rows of others", "an older build", "nothing"])
def test_a_head_that_another_engine_moved_is_told_and_moved_back(world: Runtime, how: str) -> None:
    """By doctor, until it is repaired or the view is published; an erasure does not stumble over it."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2")])
    publish(world)
    theirs = table_of(world, "people_per_day")
    if how == "rows of others":
        theirs.append(theirs.scan().to_arrow())
    elif how == "nothing":
        theirs.delete()
    else:
        (build,) = [one for one in theirs.snapshots() if summary_of(one).get(KIND) == "publication"]
        _point(theirs, build.snapshot_id)
    told = {one.check: one.level for one in examine(world)}
    assert told["head of views.people_per_day"] == "error"
    world.views.heads.repair(["views.people_per_day"])
    shows_what_is_published(world)
    table_of(world, "people_per_day").delete()
    assert world.purge.journal.get(erase(world, "ann")).status is Status.COMPLETED
    shows_what_is_published(world)


def _point(table: Table, snapshot_id: int) -> None:
    """Moves `main` as another engine's `set_current_snapshot` does."""
    with table.manage_snapshots() as changes:
        changes.set_current_snapshot(snapshot_id=snapshot_id)


def test_a_head_that_knows_a_later_fence_is_left_alone(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older fence log and ledger that were brought back move no head behind the fence."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2")])
    publish(world)
    erase(world, "ann")
    heads = world.views.heads
    monkeypatch.setattr(heads, "_epoch", lambda: 0)
    wanted = world.views.ledger.heads.of("views.people_per_day")
    assert wanted is not None
    older = attrs.evolve(wanted, release_id=1, epoch=0, is_moved=False)
    monkeypatch.setattr(world.views.ledger.heads, "of", lambda table: older)
    monkeypatch.setattr(world.views.ledger.heads, "pending", lambda: [older])
    with pytest.raises(HeadAhead):
        heads.settle()
    assert seen(world, "people_per_day")["people"].to_list() == [1]


@pytest.fixture
def old_lake(tmp_path: Path) -> Path:
    """A lake of the time when a version had a table of its own, and a build moved its head."""
    with make_world(tmp_path / "lake") as runtime:
        send(runtime, [paid("ann", 5, event_id="1", note="x"), paid("bob", 700, event_id="2")])
        publish(runtime)
        made = _as_before(runtime)
    with sqlite3.connect(tmp_path / "lake" / "views" / "ledger.db") as db:
        for publication_id, table, snapshot_id in made:
            db.execute(
                "UPDATE publications SET record = json_set(record, '$.table', ?, '$.snapshot_id', ?)"
                " WHERE publication_id = ?",
                (table, snapshot_id, publication_id),
            )
        db.execute("DROP TABLE heads")
        db.execute("DROP TABLE heads_adopted")
    return tmp_path / "lake"


def _as_before(runtime: Runtime) -> list[tuple[int, str, int]]:
    """Moves the publications to tables of their versions, whose heads are at a build that nobody published."""
    made = []
    release = runtime.views.ledger.current()
    assert release is not None
    tables = ViewTables(runtime.lake.warehouse, runtime.keyring)
    for view, publication_id in release.entries.items():
        one = runtime.views.ledger.publication(publication_id)
        name = f"views.{view}__{one.version[:8]}"
        if one.grain == "aggregate":
            rows, purposes = tables.read_aggregate(one.table, one.snapshot_id), None
        else:
            rows = tables.read_subjects(one.table, one.snapshot_id, one.columns).frame
            purposes = tables._purposes_in(one)
        written = tables.write(name, one.version, one.build_id, rows, purposes, one.epoch)
        made.append((publication_id, name, written.snapshot_id))
        table = runtime.lake.warehouse.table(name)
        table.commit(table.files(written.snapshot_id) * 2, lambda _: {KIND: "publication"})
        runtime.lake.warehouse.catalog.drop_table(one.table)
    return made


def test_a_lake_whose_builds_moved_heads_opens_and_shows_what_is_published(old_lake: Path) -> None:
    """In the views' own tables, which are copies; the tables of versions show nothing, and answer as reported."""
    with open_runtime(old_lake) as runtime:
        shows_what_is_published(runtime)
        no_file_is_shared(runtime)
        assert seen(runtime, "cents_per_day")["cents"].sum() == 705
        old = [one for one in runtime.lake.warehouse.tables("views") if "__" in one.identifier]
        assert len(old) == 4
        assert all(one.files() == [] for one in old)
        row = runtime.views.person("balance", SubjectId("ann")).row
        assert row is not None
        assert scan(old_lake, SubjectId("ann")).findings
        erase(runtime, "ann")
        shows_what_is_published(runtime)
        assert seen(runtime, "people_per_day")["people"].to_list() == [1]
        assert scan(old_lake, SubjectId("ann")).findings == ()
        assert privacy_lint(runtime.lake) == []
