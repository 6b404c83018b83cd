"""A file of many days → sealed → committed: a JSON line for each event, read ahead in a thread."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Final

from bench.clicks import CLICKED, clicked, person_of
from bench.measure import Figure, at_least, seconds
from keys import SubjectId
from lake import JsonLinesFile, with_read_ahead
from service.runtime import initialise, open_runtime

EVENTS: Final = 2_000_000
PEOPLE: Final = 100_000
RUNS: Final = 3
_AT_ONCE: Final = 10_000


def files(folder: Path) -> list[Figure]:
    """The rate for people who are known already; five events of each come into a commit."""
    path = folder / "clicks.jsonl"
    with path.open("wb") as file:
        for number in range(EVENTS):
            file.write(clicked(number, PEOPLE) + b"\n")
    rates = [_rate(path, folder / f"files-{at}") for at in range(RUNS)]
    rate = statistics.median(rates)
    return [
        at_least("files → sealed → committed, 300 B, known people", rate, "events/s", 300_000),
    ]


def _rate(path: Path, home: Path) -> float:
    """Events a second into a lake of its own."""
    initialise(home)
    with open_runtime(home) as runtime:
        runtime.lake.types.register(CLICKED)
        for start in range(0, PEOPLE, _AT_ONCE):
            people = [SubjectId(person_of(at, PEOPLE)) for at in range(start, start + _AT_ONCE)]
            runtime.keyring.provision(people)
        source = JsonLinesFile(path, runtime.lake.types)
        done = []
        took = seconds(lambda: done.append(runtime.lake.ingestor().run(with_read_ahead(source))))
        assert done[0].events == EVENTS
    shutil.rmtree(home)
    return EVENTS / took
