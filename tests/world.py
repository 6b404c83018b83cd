"""A small lake to test against: one event type, helpers that say what tests mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from attrs import field, frozen

from keys import Effects, SubjectId
from lake import HttpBatch, Ingestor, IngestSummary, Upkeep
from service.runtime import Runtime, initialise, open_runtime

VIEWS = Path(__file__).parent / "views_for_tests.py"
PAID = {
    "name": "Paid",
    "version": 1,
    "dedup_window_days": 7,
    "type": "object",
    "properties": {
        "cents": {"type": "integer", "minimum": -1_000_000, "anonymous": True},
        "shop": {"type": "string", "anonymous": True},
        "note": {"type": "string"},
    },
    "required": ["cents"],
}
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@frozen
class Clock:
    """A clock that tests move."""

    now: list[datetime] = field(factory=lambda: [START])

    def __call__(self) -> datetime:
        return self.now[0]

    def forward(self, **delta: float) -> None:
        """Moves on by a timedelta's keywords."""
        self.now[0] += timedelta(**delta)


def make_world(
    home: Path, *, clock: Callable[[], datetime] | None = None, effects: Effects | None = None
) -> Runtime:
    """An initialised, open lake with the type `Paid` and the test views."""
    initialise(home, [VIEWS])
    runtime = open_runtime(home, clock=clock or (lambda: datetime.now(UTC)), effects=effects)
    runtime.lake.types.register(PAID)
    return runtime


def paid(
    person: str,
    cents: int = 100,
    *,
    event_id: str,
    at: datetime = START,
    revision: int = 0,
    note: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A CloudEvent of type `Paid`."""
    data = {"cents": cents, "shop": "s1"} | ({"note": note} if note is not None else {})
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": "test",
        "type": "Paid",
        "subject": person,
        "time": at.isoformat(),
        "revision": revision,
        "data": data,
    } | more


def send(runtime: Runtime, events: Iterable[dict[str, Any]], key: str | None = None) -> IngestSummary:
    """Ingests events as one batch."""
    lines = [json.dumps(event).encode() for event in events]
    return runtime.lake.ingestor().run(HttpBatch(lines, key or repr(lines), runtime.lake.types))


def erase(runtime: Runtime, person: str) -> str:
    """Runs a whole erasure; returns the receipt id."""
    submitted = runtime.purge.submit(SubjectId(person))
    return runtime.purge.run(submitted.request.request_id).request_id


def shred(runtime: Runtime, person: str) -> None:
    """Fences and destroys only: what the keys do, without views and sweep."""
    subject = SubjectId(person)
    ref = runtime.keyring.ref_of(subject)
    assert ref is not None
    fences = runtime.keyring.fence([(subject, ref)], f"req-{runtime.keyring.epoch() + 1}")
    runtime.keyring.destroy([ref], fences)


def shred_before_tagging(runtime: Runtime, ingestor: Ingestor, person: str) -> None:
    """Lets an erasure overtake the ingestor's next batch, between naming its people and sealing."""
    tagged, done = ingestor._sealer._tagged, []

    def overtaken(rows: pl.DataFrame) -> pl.DataFrame:
        if not done:
            done.append(True)
            shred(runtime, person)
            runtime.keyring.catch_up()
        return tagged(rows)

    ingestor._sealer._tagged = overtaken  # type: ignore[method-assign]


def compact_all(runtime: Runtime) -> None:
    """L0 → L1 of every day."""
    upkeep = Upkeep(runtime.lake)
    for day in sorted(upkeep.days()):
        upkeep.compact(day)


def publish(runtime: Runtime, *names: str, rebuild: bool = False) -> None:
    """Builds and publishes views."""
    built = runtime.views.build(names or runtime.views.registry.names(), rebuild=rebuild)
    runtime.views.publish(built, who="test", why="test")
