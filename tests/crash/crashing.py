"""Processes that kill themselves before or after their n-th durable effect."""

from __future__ import annotations

import json
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from keys import Effects, SubjectId
from lake import JsonLinesFile, Maintenance, UpkeepPolicy
from service.runtime import open_runtime
from tests.world import compact_all

SECRET = SubjectId("customer-ann-0001")
DROPPED = "people_per_day"
"""The view whose old publication is dropped."""
PRELOAD = ["tests.crash.crashing"]


class Killer:
    """Counts effects; kills this process at one of them."""

    def __init__(self, kill_at: int | None, when: str) -> None:
        self.count = 0
        self._kill_at = kill_at
        self._when = when

    def __call__(self, when: str, name: str) -> None:
        """The observer of `keys.Effects`."""
        if when == "before":
            self.count += 1
        if self.count == self._kill_at and when == self._when:
            os.kill(os.getpid(), signal.SIGKILL)


def run(home: str, job: str, kill_at: int | None, when: str, said: Any) -> None:
    """Does a job with a killer at its gate; tells how many effects it had when it survives."""
    killer = Killer(kill_at, when)
    with open_runtime(Path(home), effects=Effects(killer)) as runtime:
        killer.count = 0
        if job == "ingest":
            source = JsonLinesFile(Path(home).parent / "events.jsonl", runtime.lake.types)
            runtime.lake.ingestor().run(source, batch_events=12)
        elif job == "intake":
            lines = (Path(home).parent / "events.jsonl").read_text().split("\n")
            for n in range(0, 30, 10):  # as a client that repeats what it got no answer to
                body = f"[{','.join(lines[n : n + 10])}]".encode()
                runtime.lake.intake.put(body, 10, f"key {n}")
                if n == 10:
                    runtime.lake.intake.commit()
            runtime.lake.intake.drain()
        elif job == "publish":
            built = runtime.views.build(runtime.views.registry.names())
            runtime.views.publish(built, who="crash", why="crash")
        elif job == "compact":
            compact_all(runtime)
        elif job == "upkeep":
            policy = UpkeepPolicy(merge_files=2, keep_snapshots=1, keep_seconds=0, grace_seconds=0)
            for later in (timedelta(), timedelta(days=1)):  # the day is open, and closed
                Maintenance(runtime.lake, policy).run(datetime.now(UTC) + later)
        elif job == "erase":
            request = runtime.purge.submit(SECRET).request
            runtime.purge.run(request.request_id)
        elif job == "erase_waiting":
            request = runtime.purge.submit(SECRET).request
            if request.stage == "received":
                body = waiting_batch()
                runtime.lake.intake.put(body, 3, "waiting")
            runtime.purge.run(request.request_id)
        elif job == "drop":
            chosen = runtime.views.dropping.choose(DROPPED).publications
            runtime.views.dropping.drop(chosen, why="crash")
            runtime.purge.log_publications()
        elif job == "close":
            runtime.keyring.close_epoch()
        said.put(killer.count)


def waiting_batch() -> bytes:
    """An event of the erased person, one of somebody else, and a broken one that only quotes the id."""
    head = {"specversion": "1.0", "source": "crash", "type": "Paid", "time": "2026-03-01T12:00:00+00:00"}
    data = {"cents": 1, "shop": "s"}
    mine = head | {"id": "98", "subject": SECRET.reveal(), "data": data}
    other = head | {"id": "99", "subject": "p0", "data": data}
    return json.dumps([mine, other, {"broken": SECRET.reveal()}]).encode()


def events_file(folder: Path) -> None:
    """30 events of 6 people."""
    people = [SECRET.reveal(), *(f"p{n}" for n in range(5))]
    lines = []
    for n in range(30):
        event = {
            "specversion": "1.0",
            "id": str(n),
            "source": "crash",
            "type": "Paid",
            "subject": people[n % 6],
            "time": "2026-03-01T12:00:00+00:00",
            "data": {"cents": n, "shop": "s"} if n != 13 else {"cents": "bad"},
        }
        lines.append(json.dumps(event))
    (folder / "events.jsonl").write_text("\n".join(lines))
