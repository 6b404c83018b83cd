"""A source of events that are made as columns: a million of them take seconds, not a minute."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from attrs import frozen

from lake import EventType, Parsed
from lake.salvage import NOTHING, Aside
from lake.sources import DEFAULT_BATCH_EVENTS
from tests.world import START


@frozen
class MadeUp:
    """`Paid` events, `events` of them, by `people` in turns; a note of `note_bytes` (even) is random hexadecimal."""

    event_type: EventType
    events: int
    people: int = 1
    note_bytes: int = 12
    name: str = f"file:{0:064x}"
    feed: str = "made up"
    total_bytes: int = 0

    def read(
        self, start: int, batch_events: int = DEFAULT_BATCH_EVENTS, aside: Aside = NOTHING
    ) -> Iterator[Parsed]:
        """Batches from line `start` on."""
        for at in range(start, self.events, batch_events):
            end = min(at + batch_events, self.events)
            yield Parsed(at, end, ((self.event_type, self._frame(at, end)),), (), 0)

    def _frame(self, start: int, end: int) -> pl.DataFrame:
        size = self.note_bytes
        lines = pl.int_range(start, end, dtype=pl.Int64, eager=True).alias("position")
        noise = np.random.default_rng(start).bytes((end - start) * self.note_bytes // 2).hex()
        return pl.DataFrame(
            {
                "subject": "p" + (lines % self.people).cast(pl.String),
                "source": pl.repeat("made-up", end - start, eager=True),
                "event_id": lines.cast(pl.String),
                "occurred_at": (_since(START) + lines * 1_000_000).cast(pl.Datetime("us", "UTC")),
                "revision": pl.zeros(end - start, pl.Int64, eager=True),
                "position": lines,
                "cents": lines % 1000,
                "shop": pl.repeat("s1", end - start, eager=True),
                "note": pl.Series([noise[at : at + size] for at in range(0, len(noise), size)]),
            }
        )


def _since(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=moment.tzinfo)) // timedelta(microseconds=1)
