"""Builds, publications and erasures side by side, some of them killed: what is published is what is true."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest

from keys import SubjectId
from projections import BuildUnderWay
from projections.buildlocks import BuildLocks
from projections.tables import ViewTables
from purge import Status
from service.jobs import run_job
from service.runtime import Runtime, open_runtime
from service.settings import Job
from tests.world import make_world, paid, publish, send, shred

SPAWN = multiprocessing.get_context("spawn")
PEOPLE = [f"person-{n:02}" for n in range(24)]


def _publisher(home: str, number: int, until: float, said: Any) -> None:
    """Ingests an event and publishes, over and over; tells what went wrong."""
    with open_runtime(Path(home)) as runtime:
        turn = 0
        while time.time() < until:
            turn += 1
            name = random.choice(PEOPLE[12:])
            try:
                send(runtime, [paid(name, turn, event_id=f"{number}-{turn}-{time.time_ns()}")])
                runtime.views.bring_up_to_date(runtime.views.registry.names(), who=str(number), why="history")
            except Exception as error:
                said.put(f"publisher: {type(error).__name__}: {error}")


def _scheduler(home: str, number: int, until: float, said: Any) -> None:
    """Runs the build job of a schedule."""
    with open_runtime(Path(home)) as runtime:
        while time.time() < until:
            try:
                run_job(runtime, Job(name="history", cron="* * * * *", action="build"))
            except Exception as error:
                said.put(f"scheduler: {type(error).__name__}: {error}")


def _eraser(home: str, number: int, until: float, said: Any) -> None:
    """Erases one person after the other."""
    with open_runtime(Path(home)) as runtime:
        for person in PEOPLE[:12]:
            if time.time() >= until:
                return
            try:
                runtime.purge.run(runtime.purge.submit(SubjectId(person)).request.request_id)
            except Exception as error:
                said.put(f"eraser: {type(error).__name__}: {error}")


def check(runtime: Runtime) -> None:
    """Every view that is published equals its recomputation, and no row is doubled."""
    runtime.purge.resume_all()
    runtime.views.bring_up_to_date(runtime.views.registry.names(), who="test", why="at the end")
    for name in runtime.views.registry.names():
        reported = runtime.views.as_reported(name).rows
        assert reported.equals(runtime.views.as_recomputed(name).rows.select(reported.columns)), name
    assert runtime.views.ledger.aside() == {}
    assert all(one.status is Status.COMPLETED for one in runtime.purge.journal.all())


def test_publishers_a_scheduler_and_an_eraser_with_random_kills_leave_what_a_recomputation_says(
    tmp_path: Path,
) -> None:
    """No step of those that live fails, whatever the others do; those killed leave nothing wrong."""
    home = tmp_path / "lake"
    with make_world(home) as runtime:
        send(runtime, [paid(one, n, event_id=f"first-{n}") for n, one in enumerate(PEOPLE)])
    config = home / "shredlake.toml"
    config.write_text(config.read_text().replace("files = ", "bucket_bits = 3\nfiles = "))
    with open_runtime(home) as runtime:
        publish(runtime)
    said = SPAWN.SimpleQueue()
    until = time.time() + 12
    jobs = [_publisher, _publisher, _scheduler, _eraser]
    workers = [SPAWN.Process(target=job, args=(str(home), n, until, said)) for n, job in enumerate(jobs)]
    for worker in workers:
        worker.start()
    chance = random.Random(7)
    while time.time() < until - 3:
        time.sleep(chance.uniform(0.5, 3))
        at = chance.randrange(len(workers))
        workers[at].kill()
        workers[at].join()
        workers[at] = SPAWN.Process(target=jobs[at], args=(str(home), at, until, said))
        workers[at].start()
    for worker in workers:
        worker.join(90)
        assert worker.exitcode == 0
    problems = []
    while not said.empty():
        problems.append(said.get())
    assert problems == []
    with open_runtime(home) as runtime:
        check(runtime)


def test_two_builders_that_write_rows_at_once_never_add_up(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever lands second has its own rows alone, also without the lock between them."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2")])
    publish(world)
    rows = world.views.as_reported("cents_per_day").rows
    name = world.views.publication("cents_per_day").table
    tables = ViewTables(world.lake.warehouse, world.keyring)
    table = world.lake.warehouse.table(name)
    real, overtaken = type(table).write_file, []

    def write_file(self: Any, *args: Any, **named: Any) -> Any:
        found = real(self, *args, **named)
        if self.identifier == name and not overtaken:
            overtaken.append(True)
            tables.write(name, "0" * 8, "the other build", rows, None, 0)
        return found

    monkeypatch.setattr(type(table), "write_file", write_file)
    written = tables.write(name, "0" * 8, "this build", rows, None, 0)
    monkeypatch.undo()
    assert overtaken
    assert tables.read_aggregate(name, written.snapshot_id).equals(rows)
    assert len(table.files(written.snapshot_id)) == 1
    numbers = [one.sequence_number for one in table.history()]
    assert len(set(numbers)) == len(numbers), "the second was staged anew behind the first"


@pytest.mark.parametrize("step", ["known", "load"])
def test_states_forgotten_while_a_build_finishes_are_derived_again(
    world: Runtime, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """An erasure forgets states behind its fence, in the middle of somebody's build."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2")])
    publish(world)
    ref = world.keyring.ref_of(SubjectId("ann"))
    assert ref is not None
    real, done = getattr(world.views.states, step), []

    def beside(*args: Any) -> Any:
        found = real(*args) if step == "known" else None
        if len(done) < 3:
            done.append(True)
            world.views.forget_people([ref])
        return found if step == "known" else real(*args)

    monkeypatch.setattr(world.views.states, step, beside)
    built = world.views.build(world.views.registry.names())
    assert len(done) == 3
    told = {one.publication.view: one.publication.events_counted for one in built}
    assert told == {"cents_per_day": 2, "people_per_day": 2, "bands": 2, "balance": None}


def test_an_erasure_between_build_and_publication_is_built_again_by_the_schedule(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`StaleEpoch` reaches no job and no command."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2")])
    real, done = world.views.publish, []

    def overtaken(*args: Any, **kwargs: Any) -> Any:
        if not done:
            done.append(True)
            shred(world, "ann")
        return real(*args, **kwargs)

    monkeypatch.setattr(world.views, "publish", overtaken)
    run_job(world, Job(name="nightly", cron="* * * * *", action="build"))
    assert world.views.as_reported("people_per_day").rows["people"].to_list() == [1]


def test_one_builder_of_a_view_at_a_time_and_waiting_has_an_end(tmp_path: Path) -> None:
    """Other views are not waited for."""
    locks = BuildLocks(tmp_path / "locks")
    with locks.held(["a", "b"]):
        with locks.held(["c"], 0.05):
            pass
        with pytest.raises(BuildUnderWay, match="b"), locks.held(["c", "b"], 0.05):
            pass
    with locks.held(["b", "a"], 0.05):
        pass
