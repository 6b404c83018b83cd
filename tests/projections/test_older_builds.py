"""Readers go back to an older input only when somebody says so, whichever way the build comes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keys import SubjectId
from projections import OlderBuild
from purge import Status
from service.jobs import run_job
from service.runtime import Runtime
from service.settings import Job
from tests.command import command
from tests.world import make_world, paid, publish, send

NAME = "cents_per_day"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """One lake; each test sends events of its own."""
    home = tmp_path_factory.mktemp("older") / "lake"
    with make_world(home) as runtime:
        config = home / "shredlake.toml"
        config.write_text(config.read_text().replace("[projections]", "[projections]\nbucket_bits = 1"))
        send(runtime, [paid("ann", event_id="first")])
        publish(runtime, NAME)
        yield runtime


def counted(runtime: Runtime) -> int:
    """Events that readers see."""
    return int(runtime.views.as_reported(NAME).rows["events"].sum())


def head(runtime: Runtime) -> int:
    """The newest snapshot of the events."""
    found = runtime.lake.events.snapshot()
    assert found is not None
    return found.snapshot_id


def by_snapshot(runtime: Runtime, older: int) -> None:
    """Builds an older snapshot and publishes it in one call."""
    runtime.views.bring_up_to_date([NAME], snapshot_id=older, who="test", why="")


def by_build(runtime: Runtime, older: int) -> None:
    """Builds it first, as two calls do."""
    runtime.views.publish(runtime.views.build([NAME], snapshot_id=older), who="test", why="")


@pytest.mark.parametrize("door", [by_snapshot, by_build])
def test_an_older_input_takes_the_place_of_a_newer_one_only_when_said(
    world: Runtime, door: Callable[[Runtime, int], None]
) -> None:
    """Nothing changes for readers; said, they see it, and a roll back needs no word, and the newest neither."""
    before, older = counted(world), head(world)
    send(world, [paid("ann", event_id=f"older-{door.__name__}")])
    publish(world, NAME)
    with pytest.raises(OlderBuild, match=f"`{NAME}` reads events up to commit") as caught:
        door(world, older)
    assert "--older" in caught.value.next_step
    assert counted(world) == before + 1
    world.views.bring_up_to_date([NAME], snapshot_id=older, older=True, who="test", why="as it was")
    assert counted(world) == before
    publish(world, NAME)
    assert counted(world) == before + 1
    world.views.roll_back(NAME, who="test", why="")
    assert counted(world) == before
    publish(world, NAME)


def test_a_build_that_somebody_overtook_is_not_published_over_theirs(world: Runtime) -> None:
    """What was built first is published last."""
    slow = world.views.build([NAME])
    before = counted(world)
    send(world, [paid("ann", event_id="overtook")])
    publish(world, NAME)
    with pytest.raises(OlderBuild):
        world.views.publish(slow, who="slow", why="")
    assert counted(world) == before + 1


def test_a_scheduled_build_that_somebody_overtook_catches_up(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its try was in vain; the job is not."""
    before, inner, overtaken = counted(world), world.views.builder.build, list[int]()
    send(world, [paid("ann", event_id="scheduled-1")])

    def build(*args: object, **kwargs: object) -> object:
        built = inner(*args, **kwargs)  # type: ignore[arg-type]
        if not overtaken:
            overtaken.append(1)
            send(world, [paid("ann", event_id="scheduled-2")])
            release = inner([NAME])
            world.views.publish(release, who="fast", why="")
        return built

    monkeypatch.setattr(world.views.builder, "build", build)
    run_job(world, Job(name="often", cron="* * * * *", action="build", views=[NAME]))
    assert counted(world) == before + 2


def test_a_command_refuses_an_older_moment_unless_said(world: Runtime, tmp_path: Path) -> None:
    """By name and with the way out; `--older` without `--publish` is no sentence."""
    moment, before = world.lake.clock().isoformat(), counted(world)
    send(world, [paid("ann", event_id="command")])
    publish(world, NAME)
    build = ("views", "build", NAME, "--as-of", moment, "--publish")
    refused = command(world.home, *build)
    assert refused.returncode != 0
    assert "--older" in refused.stderr
    assert "OlderBuild" not in refused.stdout
    assert counted(world) == before + 1
    assert command(world.home, "views", "build", NAME, "--older").returncode != 0
    assert command(world.home, *build, "--older", "--why", "as certified").returncode == 0
    assert counted(world) == before
    publish(world, NAME)


def test_an_erasure_does_not_wait_for_events_that_an_older_copy_of_the_table_lacks(world: Runtime) -> None:
    """What is published reads more than the table holds; who is erased goes all the same."""
    send(world, [paid("gone", event_id="gone")])
    publish(world, NAME, "people_per_day")
    with sqlite3.connect(world.home / "views" / "ledger.db") as db:
        for number, body in db.execute("SELECT publication_id, record FROM publications").fetchall():
            record = json.dumps(json.loads(body) | {"input_sequence": 10_000})
            db.execute("UPDATE publications SET record = ? WHERE publication_id = ?", (record, number))
    send(world, [paid("ann", event_id="after")])
    with pytest.raises(OlderBuild):
        publish(world, NAME)
    request = world.purge.submit(SubjectId("gone")).request
    assert world.purge.run(request.request_id).status is Status.COMPLETED
    assert world.views.ledger.aside() == {}
