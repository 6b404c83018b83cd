"""Part of suite `path`: what an erasure costs behind many others, in CPU and in bytes, and many people together.

CPU seconds of this process, since walls of a busy machine say little. Early and late erasures take turns, each
pair right after the other: the late ones in a lake that has seen many, the early ones in a twin that has not.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from datetime import UTC, datetime

from bench.measure import Figure, at_least, at_most
from keys import SubjectId
from lake import Maintenance, UpkeepPolicy
from service.runtime import Runtime

EVENTS = int(os.environ.get("BENCH_ERASURE_EVENTS", "20000"))
LATE = (20, 100, 200)
PAIRS = 5


def prepared(runtime: Runtime, ingest: object) -> Runtime:
    """A lake with events of many people, whose views are published."""
    ingest(runtime)  # type: ignore[operator]
    views = runtime.views
    views.publish(views.build(views.registry.names()), who="bench", why="bench")
    return runtime


def figures(late: Runtime, early: Runtime, alone: Runtime, together: Runtime) -> list[Figure]:
    """Of four equal lakes: the n-th erasure beside the 2nd, the bytes, and people together or one by one."""
    found: list[Figure] = []
    erase(late, ["customer-c0"])
    erase(early, ["customer-c0"])
    done, first = 1, 1
    for number in LATE:
        while done < number - PAIRS // 2 - 1:
            erase(late, [f"customer-c{done}"])
            done += 1
        pairs = []
        for _ in range(PAIRS):
            # In turns, so that a busy machine slows both.
            pairs.append((erase(early, [f"customer-c{first}"]), erase(late, [f"customer-c{done}"])))
            done, first = done + 1, first + 1
        ratio = statistics.median(there / here for here, there in pairs)
        median = statistics.median(there for _, there in pairs)
        found.append(Figure(f"erasure around the {number}th: CPU", median, "s"))
        beside = f"the {first - PAIRS + 1}th to {first}th in a twin, {PAIRS} pairs"
        name = f"erasure around the {number}th / one of the first {first}"
        found.append(at_most(name, ratio, "×", 1.2, beside))
    found += _bytes(late)
    people = [f"customer-c{n}" for n in range(200)]
    one_by_one = statistics.mean(erase(alone, [who]) for who in people[:20])
    batch = erase(together, people) / len(people)
    found.append(Figure("200 people together: CPU each", batch, "s"))
    name = "one by one / together, each of 200 people"
    return [*found, at_least(name, one_by_one / batch, "×", 20, "the first 20 one by one, in a twin")]


def _bytes(runtime: Runtime) -> list[Figure]:
    def stored() -> int:
        return sum(path.stat().st_size for path in runtime.home.rglob("*") if path.is_file())

    before = stored()
    Maintenance(runtime.lake, UpkeepPolicy(keep_snapshots=1, keep_seconds=0, grace_seconds=0)).run(
        datetime.now(UTC)
    )
    after = stored()
    events = runtime.lake.events
    live = sum(file.file_size_in_bytes for file in events.files())
    kept = sum(file.file_size_in_bytes for file in events.kept_files())
    return [
        Figure("bytes of the lake's folder behind the erasures", before, "B"),
        Figure("the same behind a round of upkeep", after, "B"),
        Figure("live bytes of events", live, "B"),
        at_most("events kept / live, behind upkeep", kept / live, "×", 2, "the head's files"),
        at_most("the folder behind upkeep / live events", after / live, "×", 2, "the head's files"),
    ]


def erase(runtime: Runtime, people: list[str]) -> float:
    """CPU seconds of erasing people, together where the lake can."""
    start = time.process_time()
    ids = [runtime.purge.submit(SubjectId(who)).request.request_id for who in people]
    if len(ids) == 1:
        runtime.purge.run(ids[0])
    else:
        runtime.purge.run_together(ids)
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit("run `python -m bench path`")
