"""As-of: from a moment to a snapshot, in a table that has kept ten thousand of them, each with a tag.

The snapshots are real metadata of a real catalog: one ingest is committed, and its snapshot is repeated under
fresh ids, a minute apart, by pyiceberg's own updates; they share its manifest list.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pyiceberg.table import Table
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update import AddSnapshotUpdate, SetSnapshotRefUpdate, TableUpdate

from bench.clicks import CLICKED, clicked
from bench.measure import Figure, at_most, median_seconds
from lake import HttpBatch
from service.runtime import initialise, open_runtime

SNAPSHOTS: Final = 10_000
RUNS: Final = 21


def as_of(folder: Path) -> list[Figure]:
    """All figures of this module."""
    initialise(folder / "asof")
    with open_runtime(folder / "asof") as runtime:
        runtime.lake.types.register(CLICKED)
        runtime.lake.ingestor().run(HttpBatch([clicked(1, 10)], "one", runtime.lake.types))
        table = runtime.lake.events.load()
        first = table.metadata.current_snapshot()
        assert first is not None
        _repeat(table, first)
        assert len(runtime.lake.events.metadata().snapshots) == SNAPSHOTS
        chance = random.Random(1)
        start = datetime.fromtimestamp(first.timestamp_ms / 1000, UTC)

        def resolve() -> None:
            minutes = chance.randrange(SNAPSHOTS)
            found = runtime.lake.replay().resolve(start + timedelta(minutes=minutes, seconds=30))
            assert found is not None
            assert found.timestamp_ms == first.timestamp_ms + 60_000 * minutes

        def open_and_resolve() -> None:
            with open_runtime(folder / "asof") as fresh:
                fresh.lake.replay().resolve(start)

        cold, warm = median_seconds(open_and_resolve), median_seconds(resolve, RUNS)
    return [
        at_most(f"as-of among {SNAPSHOTS:,} snapshots with tags", warm * 1000, "ms", 50),
        Figure("the same, opening the lake included", cold * 1000, "ms"),
    ]


def _repeat(table: Table, first: Snapshot) -> None:
    updates: list[TableUpdate] = []
    previous = first
    for number in range(1, SNAPSHOTS):
        previous = first.model_copy(
            update={
                "snapshot_id": first.snapshot_id + number,
                "parent_snapshot_id": previous.snapshot_id,
                "sequence_number": (first.sequence_number or 0) + number,
                "timestamp_ms": first.timestamp_ms + 60_000 * number,
            }
        )
        updates.append(AddSnapshotUpdate(snapshot=previous))
        updates.append(_ref(f"keep-{number}", SnapshotRefType.TAG, previous))
    updates.append(_ref("main", SnapshotRefType.BRANCH, previous))
    table.catalog.commit_table(table, (), tuple(updates))


def _ref(name: str, kind: SnapshotRefType, snapshot: Snapshot) -> SetSnapshotRefUpdate:
    return SetSnapshotRefUpdate(ref_name=name, type=kind, snapshot_id=snapshot.snapshot_id)
