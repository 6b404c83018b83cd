"""As of a moment: the state of that moment, or a refusal that names its neighbours; through every door."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.schema import Schema
from pyiceberg.table.metadata import TableMetadata, new_table_metadata
from pyiceberg.table.snapshots import Operation, Snapshot, Summary
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.table.update import (
    AddSnapshotUpdate,
    RemoveSnapshotsUpdate,
    SetPropertiesUpdate,
    SetSnapshotRefUpdate,
    update_table_metadata,
)

from lake import (
    Found,
    Housekeeping,
    MomentRefused,
    Nearest,
    SnapshotExpired,
    SnapshotGone,
    checked_moment,
    privacy_lint,
)
from lake.moments import EXPIRED_PROPERTY, commits_of, head_at, remembered_of, remembering
from service.app import create_app
from service.runtime import Runtime
from tests.command import command
from tests.world import Clock, paid, publish, send

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class History:
    """A table's metadata by pyiceberg's own rules, and every commit that there ever was."""

    def __init__(self) -> None:
        made = new_table_metadata(
            Schema(), UNPARTITIONED_PARTITION_SPEC, UNSORTED_SORT_ORDER, "file:///nowhere", {}
        )
        self.metadata: TableMetadata = made
        self.begin_ms = made.last_updated_ms + 1_000_000
        self.commits: list[tuple[int, int]] = []
        self.now_ms = self.begin_ms

    def commit(self, step_ms: int) -> None:
        """One more, so many ms after the one before."""
        self.now_ms += step_ms
        number = len(self.commits) + 1
        snapshot = Snapshot(
            snapshot_id=1000 + number,
            sequence_number=number,
            timestamp_ms=self.now_ms,
            manifest_list="nowhere",
            summary=Summary(Operation.APPEND),
            schema_id=0,
        )
        named = {"ref-name": "main", "type": "branch", "snapshot-id": 1000 + number}
        updates = (AddSnapshotUpdate(snapshot=snapshot), SetSnapshotRefUpdate.model_validate(named))
        self.metadata = update_table_metadata(self.metadata, updates)
        self.commits.append((1000 + number, self.now_ms))

    def forget(self, picks: list[int], *, ours: bool) -> None:
        """Forgets some of those that are not the head, and remembers them where it is ours."""
        there = [one.snapshot_id for one in self.metadata.snapshots][:-1]
        gone = sorted({there[pick % len(there)] for pick in picks}) if there else []
        if not gone:
            return
        updates: list[Any] = [RemoveSnapshotsUpdate.model_validate({"snapshot-ids": gone})]
        if ours:
            text = remembering(self.metadata, gone)
            updates.append(SetPropertiesUpdate(updates={EXPIRED_PROPERTY: text}))
        self.metadata = update_table_metadata(self.metadata, tuple(updates))

    def truth(self, at_ms: int) -> int | None:
        """The head then, kept or not."""
        return next((one for one, landed in reversed(self.commits) if landed <= at_ms), None)

    def ask(self, at_ms: int, nearest: Nearest | None = None) -> Found:
        """What is answered; raises."""
        m = self.metadata
        moment = EPOCH + timedelta(milliseconds=at_ms)
        return head_at(commits_of(m), m.next_sequence_number() - 1, remembered_of(m), moment, nearest)

    def answer(self, at_ms: int) -> tuple[Found | None, SnapshotGone | None]:
        """What is answered, or why nothing is."""
        try:
            return self.ask(at_ms), None
        except SnapshotGone as refused:
            return None, refused

    def check_neighbours(self, at_ms: int, refused: SnapshotExpired) -> None:
        """They are named, and are what the option takes."""
        for one, nearest in ((refused.before, Nearest.BEFORE), (refused.after, Nearest.AFTER)):
            if one is not None:
                assert str(one) in refused.message
                found = self.ask(at_ms, nearest)
                assert (found.commit.snapshot_id, found.is_exact) == (one, False)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.lists(st.integers(0, 3), min_size=1, max_size=4)),
        st.tuples(st.just("ours"), st.lists(st.integers(0, 30), min_size=1, max_size=4)),
        st.tuples(st.just("theirs"), st.lists(st.integers(0, 30), min_size=1, max_size=3)),
    ),
    min_size=1,
    max_size=14,
)
BACKWARDS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.lists(st.integers(-2, 3), min_size=1, max_size=4)),
        st.tuples(st.just("ours"), st.lists(st.integers(0, 30), min_size=1, max_size=4)),
    ),
    min_size=1,
    max_size=14,
)


@given(st.one_of(STEPS, BACKWARDS))
def test_any_history_answers_with_the_truth_or_with_a_refusal_that_names_the_neighbours(steps: Any) -> None:
    """Never an older state as if it were the answer; what our expiries forgot is known to be gone."""
    history = History()
    for verb, numbers in steps:
        if verb == "commit":
            for number in numbers:
                history.commit(number)
        else:
            history.forget(numbers, ours=verb == "ours")
    kept = {one.snapshot_id: one.timestamp_ms for one in history.metadata.snapshots}
    only_ours = all(verb != "theirs" for verb, _ in steps)
    in_order = [landed for _, landed in history.commits] == sorted(landed for _, landed in history.commits)
    for at_ms in range(history.begin_ms - 3, max([history.now_ms, history.begin_ms]) + 4):
        truth = history.truth(at_ms)
        found, refused = history.answer(at_ms)
        if found is not None:
            assert found.commit.snapshot_id == truth
        elif isinstance(refused, SnapshotExpired):
            assert history.commits
            assert not only_ours or (truth is not None and truth not in kept)
            if in_order:
                older = [one for one, landed in kept.items() if landed <= at_ms]
                newer = [one for one, landed in kept.items() if landed > at_ms]
                expected = (older[-1] if older else None, newer[0] if newer else None)
                assert (refused.before, refused.after) == expected
            history.check_neighbours(at_ms, refused)
        else:
            assert truth is None
            assert refused is not None
            assert "nothing was in the lake" in refused.message or not history.commits


def test_what_is_remembered_does_not_grow_with_what_has_expired() -> None:
    """One entry for every kept snapshot at most."""
    history = History()
    for _ in range(300):
        history.commit(1)
        history.forget([0], ours=True)
    assert len(history.metadata.properties[EXPIRED_PROPERTY]) < 40


def _moment(runtime: Runtime, snapshot_id: int) -> datetime:
    found = runtime.lake.events.snapshot(snapshot_id)
    assert found is not None
    return EPOCH + timedelta(milliseconds=found.timestamp_ms)


def _three(world: Runtime) -> tuple[list[int], datetime]:
    """Three commits of which that in the middle expires; and its moment."""
    ids = []
    for number in range(3):
        send(world, [paid("ann", event_id=f"{number}")])
        head = world.lake.events.snapshot()
        assert head is not None
        ids.append(head.snapshot_id)
    world.lake.events.set_tags({"audit": ids[0]})
    between = _moment(world, ids[1])
    assert Housekeeping(world.lake).expire(keep=1) == [ids[1]]
    return ids, between


def test_reading_as_of_an_expired_moment_is_refused_and_nearest_says_what_it_took(
    world: Runtime, tmp_path: Path
) -> None:
    """On standard error and in the JSON; without the option nothing is written."""
    ids, between = _three(world)
    to = tmp_path / "out.jsonl"
    read = ["lake", "read", "--type", "Paid", "--to", str(to), "--as-of", between.isoformat()]
    refused = command(world.home, *read)
    assert refused.returncode == 1
    assert not to.exists()
    assert all(str(one) in refused.stderr.replace("\n", "") for one in (ids[0], ids[2]))
    for nearest, at in (("before", 0), ("after", 2)):
        done = command(world.home, "--output", "json", *read, "--nearest", nearest)
        told = json.loads(done.stdout)
        assert (told["snapshot"], told["exact"], told["nearest"]) == (str(ids[at]), False, nearest)
        assert told["events"] == at + 1
        assert f"nearest kept one {nearest}" in done.stderr.replace("\n", " ")
    assert privacy_lint(world.lake) == []


def test_nothing_was_in_the_lake_is_said_of_the_time_before_the_very_first_commit_alone(
    world: Runtime,
) -> None:
    """Also once the first has expired, which is remembered."""
    ids = []
    for number in range(2):
        send(world, [paid("ann", event_id=f"{number}")])
        head = world.lake.events.snapshot()
        assert head is not None
        ids.append(head.snapshot_id)
    first = _moment(world, ids[0])
    Housekeeping(world.lake).expire(keep=1)
    replay = world.lake.replay()
    with pytest.raises(SnapshotExpired, match="no older one is kept") as refused:
        replay.as_of(first)
    assert (refused.value.before, refused.value.after) == (None, ids[1])
    with pytest.raises(SnapshotGone, match="nothing was in the lake") as nothing:
        replay.as_of(first - timedelta(milliseconds=1))
    assert not isinstance(nothing.value, SnapshotExpired)


def test_an_expiry_beside_another_that_was_not_seen_is_made_anew(world: Runtime) -> None:
    """Each remembers on top of what the other did."""
    ids = []
    for number in range(4):
        send(world, [paid("ann", event_id=f"{number}")])
        head = world.lake.events.snapshot()
        assert head is not None
        ids.append(head.snapshot_id)
    beside = [True]

    def choose(_: TableMetadata) -> list[int]:
        if beside.pop() if beside else False:
            world.lake.events.expire(lambda _: [ids[0]])
        return [ids[2]]

    world.lake.events.expire(choose)
    runs = remembered_of(world.lake.events.metadata())
    assert {sequence: run.count for sequence, run in runs.items()} == {0: 1, 2: 1}


# -- every door ------------------------------------------------------------------------------------

PYTHON: dict[str, Callable[[Runtime, datetime], Any]] = {
    "replay": lambda runtime, at: runtime.lake.replay().as_of(at),
    "resolve": lambda runtime, at: runtime.lake.replay().resolve(at),
    "publication": lambda runtime, at: runtime.views.publication("cents_per_day", at),
    "reported": lambda runtime, at: runtime.views.as_reported("cents_per_day", at),
    "recomputed": lambda runtime, at: runtime.views.as_recomputed("cents_per_day", at),
    "reconcile": lambda runtime, at: runtime.views.reconcile("cents_per_day", at),
    "person": lambda runtime, at: runtime.views.person("balance", _subject(), at),
}


def _subject() -> Any:
    from keys import SubjectId

    return SubjectId("ann")


@pytest.mark.parametrize("door", PYTHON)
def test_every_call_that_takes_a_moment_refuses_the_future_and_what_names_no_instant(
    world: Runtime, door: str
) -> None:
    """One function decides it for all."""
    for moment in (datetime.now(UTC) + timedelta(hours=1), datetime(2026, 1, 1)):
        with pytest.raises(MomentRefused, match=r"has not come yet|time zone"):
            PYTHON[door](world, moment)


def test_every_command_and_route_that_takes_a_moment_refuses_the_future(world: Runtime) -> None:
    """Found by their parameters: a new one is walked over as well."""
    import typer.main

    from service.cli.main import app

    send(world, [paid("ann", event_id="1")])
    publish(world)
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    given = {"event_type": "Paid", "to": "-", "name": "cents_per_day", "subject": "ann"}
    found = []
    for path, leaf in _leaves(typer.main.get_command(app)):
        names = {one.name: one for one in leaf.params}
        if "as_of" not in names:
            continue
        found.append(" ".join(path))
        line = [*path, "--as-of", soon]
        for name, value in given.items():
            if name in names and names[name].required:
                option = [names[name].opts[0]] if names[name].param_type_name == "option" else []
                line += [*option, value]
        refused = command(world.home, *line)
        assert refused.returncode == 1, line
        assert "has not come yet" in refused.stderr.replace("\n", " ")
    assert found == ["views build", "views show", "views person", "lake read"]
    with TestClient(create_app(world)) as client:
        client.headers["Authorization"] = f"Bearer {world.token}"
        paths = client.get("/openapi.json").json()["paths"]
        routes = [
            (path, method)
            for path, methods in paths.items()
            for method, route in methods.items()
            if any(one["name"] == "as_of" for one in route.get("parameters", ()))
        ]
        assert len(routes) == 2
        for path, method in routes:
            body = {"json": {"subject": "ann"}} if method == "post" else {}
            url = path.replace("{name}", "cents_per_day")
            answer = client.request(method, url, params={"as_of": soon}, **body)
            assert (answer.status_code, answer.json()["title"]) == (422, "MomentRefused")
            answer = client.request(method, url, params={"nearest": "before"}, **body)
            assert (answer.status_code, answer.json()["title"]) == (422, "NearestRefused")


@pytest.mark.parametrize("mode", ["as_reported", "as_recomputed", "reconcile"])
def test_certified_answers_are_never_taken_from_the_nearest_moment(world: Runtime, mode: str) -> None:
    """The command says so, instead of an option that it does not know."""
    refused = command(
        world.home,
        *("views", "show", "cents_per_day", "--mode", mode, "--nearest", "before"),
    )
    assert refused.returncode == 1
    assert "never taken from another one" in refused.stderr.replace("\n", " ")


def test_a_moment_is_checked_by_the_clock_that_is_given() -> None:
    """The very moment of now is no future."""
    now = Clock()()
    assert checked_moment(now, now) == now
    with pytest.raises(MomentRefused):
        checked_moment(now + timedelta(milliseconds=1), now)


def _leaves(group: Any, path: tuple[str, ...] = ()) -> Any:
    children = getattr(group, "commands", None)
    if children is None:
        yield path, group
        return
    for name, child in children.items():
        yield from _leaves(child, (*path, name))
