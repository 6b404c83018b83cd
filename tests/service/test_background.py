"""What a server does by itself goes on whatever fails: scheduled jobs, erasures."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from keys import SubjectId
from purge import Status
from service.app import create_app
from service.doctor import examine, stuck_finding
from service.runtime import Runtime
from service.scheduler import Scheduler
from service.settings import Job
from service.worker import ErasureWorker
from tests.world import START, Clock, paid, publish, send

HOURLY = "0 * * * *"
SECRET = "customer-ann-0001"
KILLED_JOB = """
import sys, time
from datetime import datetime, timedelta
from pathlib import Path
from service.scheduler import Scheduler
from service.settings import Job

def work(job):
    print("runs", flush=True)
    time.sleep(600)

start = datetime.fromisoformat(sys.argv[2])
jobs = [Job(name="a/b", cron="0 * * * *")]
Scheduler(Path(sys.argv[1]), jobs, work, clock=lambda: start + timedelta(hours=1), since=start).tick()
"""


def test_a_job_whose_process_was_killed_runs_again_at_its_next_time(tmp_path: Path) -> None:
    """The history says what became of the first run; while it runs, nobody else begins it."""
    path = tmp_path / "service" / "schedule.db"
    clock = Clock([START + timedelta(hours=2)])
    other = Scheduler(path, [Job(name="a/b", cron=HOURLY)], lambda job: "done", clock=clock, since=START)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_JOB, str(path), START.isoformat()], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "runs\n"
        assert other.tick() == []
        running.kill()
    (run,) = other.tick()
    assert run.outcome == "done"
    assert [one.outcome for one in other.history()] == ["done", "failed: its process was killed"]


def test_a_job_that_fails_in_a_foreign_way_is_in_the_history_by_its_type(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its text may quote a value. The next job runs in the same tick, and this one at its next time."""
    clock = Clock()
    ran: list[str] = []

    def work(job: Job) -> str:
        ran.append(job.name)
        if job.name == "bad" and len(ran) == 1:
            raise ZeroDivisionError(SECRET)
        return "done"

    jobs = [Job(name="bad", cron=HOURLY), Job(name="good", cron=HOURLY)]
    scheduler = Scheduler(tmp_path / "s.db", jobs, work, clock=clock, since=START)
    clock.forward(hours=1)
    failed, done = (run.outcome for run in scheduler.tick())
    assert failed.startswith("failed: unexpected ZeroDivisionError at service/scheduler.py:")
    assert done == "done"
    clock.forward(hours=1)
    assert [run.outcome for run in scheduler.tick()] == ["done", "done"]
    assert ran == ["bad", "good", "bad", "good"]
    assert SECRET not in caplog.text


def test_a_scheduler_that_cannot_write_its_history_goes_on_when_it_can(tmp_path: Path) -> None:
    """A full disk, say; the thread does not die of it."""
    clock = Clock()
    scheduler = Scheduler(
        tmp_path / "s.db", [Job(name="j", cron=HOURLY)], lambda job: "done", clock=clock, since=START
    )
    clock.forward(hours=1)
    (tmp_path / "locks").write_text("a file where the folder of locks should be")
    assert scheduler.tick() == []
    (tmp_path / "locks").unlink()
    assert [run.outcome for run in scheduler.tick()] == ["done"]


def wait_until(world: Runtime, request_id: str, status: Status) -> None:
    """Until the journal says so."""
    end = time.monotonic() + 60
    while world.purge.journal.get(request_id).status is not status:
        assert time.monotonic() < end, world.purge.journal.get(request_id).status
        time.sleep(0.05)


def test_an_erasure_that_cannot_be_helped_by_a_retry_is_retried_all_the_same(world: Runtime) -> None:
    """Somebody mends what stopped it, and tells nobody; until then it is reported with its deadline."""
    send(world, [paid(SECRET, event_id="1"), paid("bob", event_id="2")])
    publish(world)
    stray = world.home / "copy-of-something"
    stray.write_text("belongs to no store")
    now = [1000.0]
    worker = ErasureWorker(world.purge, clock_seconds=lambda: now[0])
    request = world.purge.submit(SubjectId(SECRET)).request
    worker.start()
    try:
        wait_until(world, request.request_id, Status.INCOMPLETE)
        (stuck,) = world.purge.journal.stuck()
        assert (stuck.request_id, stuck.due_at, stuck.stage) == (request.request_id, request.due_at, "swept")
        (found,) = [one for one in examine(world) if one.check == "erasures"]
        assert (found.level, request.request_id in found.text) == ("warning", True)
        assert stuck_finding([stuck], stuck.due_at + timedelta(days=1)).level == "error"
        stray.unlink()
        end = time.monotonic() + 60
        while world.purge.journal.get(request.request_id).status is not Status.COMPLETED:
            assert time.monotonic() < end
            now[0] += 3600
            worker.wake()
            time.sleep(0.05)
    finally:
        worker.stop()
    assert world.purge.journal.stuck() == []


def test_readiness_names_stuck_erasures_by_request_and_nobody_by_id(world: Runtime) -> None:
    """They do not make the server unready."""
    send(world, [paid(SECRET, event_id="1")])
    (world.home / "copy-of-something").write_text("belongs to no store")
    headers = {"Authorization": f"Bearer {world.token}"}
    with TestClient(create_app(world), headers=headers) as client:
        asked = client.post("/v1/erasure-requests", json={"subject": SECRET}).json()
        wait_until(world, asked["request_id"], Status.INCOMPLETE)
        body = client.get("/v1/health/ready").json()
        assert (body["status"], body["stuck_erasures"]) == ("ready", 1)
        assert body["stuck"][0]["request_id"] == asked["request_id"]
        assert body["stuck"][0]["due_at"][:10] == asked["due_at"][:10]
        assert SECRET not in str(body)


def test_the_erasure_worker_lives_through_a_journal_that_cannot_be_read(
    world: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It looks again a second later."""
    send(world, [paid(SECRET, event_id="1")])
    request = world.purge.submit(SubjectId(SECRET)).request
    read = world.purge.journal.all
    failures = [OSError(SECRET)]
    monkeypatch.setattr(
        world.purge.journal, "all", lambda: (_ for _ in ()).throw(failures.pop()) if failures else read()
    )
    worker = ErasureWorker(world.purge)
    with caplog.at_level(logging.INFO):
        worker.start()
        wait_until(world, request.request_id, Status.COMPLETED)
        worker.stop()
    assert "erasures wait: unexpected OSError at service/worker.py:" in caplog.text
    assert SECRET not in caplog.text
