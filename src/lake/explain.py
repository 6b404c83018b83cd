"""`lake explain`: how the table is, and what will happen to it; no data file is opened."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Final

from attrs import frozen

from lake.forecast import Forecast
from lake.lakehouse import Lake
from lake.levels import Level, Sequenced, origin, size_bytes
from lake.merging import L0_FILE_BYTES, day_of, mergeable
from lake.offsets import INGEST, KIND, ranges_of
from lake.table import summary_of
from lake.upkeeprules import Step, UpkeepPolicy, closed_days

_REHEARSALS: Final = 3
_RECENT: Final = timedelta(hours=1)


@frozen
class Explained:
    """A table's state and its near future.

    Attributes:
        snapshots, tags: kept now; `live_files` and `live_bytes` of the head, by level.
        commits_per_hour, events_per_hour, bytes_per_event: of the last hour of ingest; 0 without any.
        commit_seconds: of an empty commit, rehearsed now up to the catalog's answer.
        next_merge_minutes: until today's small files are put together at this rate; None when never.
        next_merge_bytes: about how large the file becomes that the next of them are put into; 0 without any.
        next_round: what upkeep would do now; the sizes of what comes out are told as if nothing shrank. Dead
            bytes of erased people are not looked for: `Maintenance.plan` does.
        closed_days: days that are not sorted yet; `l1_files` they become.
        largest_day_bytes: of an ingest day. However large, it is divided by handles and not by the partition
            spec, which stays (docs/adr/0016).
        metadata_bytes: of the newest metadata file, which every commit writes anew.
        manifests: that a reader of the head looks through; `planning_seconds` is what that takes now.
    """

    snapshots: int
    tags: int
    live_files: int
    live_bytes: int
    by_level: dict[str, int]
    commits_per_hour: float
    events_per_hour: float
    bytes_per_event: float
    commit_seconds: float
    next_merge_minutes: float | None
    next_merge_bytes: int
    next_round: tuple[Step, ...]
    closed_days: int
    l1_files: int
    largest_day_bytes: int
    metadata_bytes: int
    manifests: int
    planning_seconds: float


def explain(lake: Lake, now: datetime, policy: UpkeepPolicy | None = None) -> Explained:
    """Looks at metadata and predicts. Raises `CatalogUnavailable`, `StorageFailed`."""
    policy = policy or UpkeepPolicy()
    table = lake.events.load()
    commit_seconds = statistics.median(lake.events.rehearse_seconds() for _ in range(_REHEARSALS))
    history = lake.events.history(table.metadata)
    head = table.metadata.current_snapshot()
    began = time.perf_counter()
    live = lake.events.sequenced_files()
    planning_seconds = time.perf_counter() - began
    since_ms = (now - _RECENT).timestamp() * 1000
    recent = [s for s in history if s.timestamp_ms >= since_ms and summary_of(s).get(KIND) == INGEST]
    span_hours = (
        max((now.timestamp() * 1000 - recent[-1].timestamp_ms) / 3_600_000, 1 / 3600) if recent else 1
    )
    events = sum(one.events for s in recent for one in ranges_of(summary_of(s)))
    added = sum(int(summary_of(s).get("added-files-size", 0)) for s in recent)
    by_level = {level.name.lower(): 0 for level in Level}
    for file, sequence in live:
        by_level[origin(file, sequence).level.name.lower()] += 1
    commits_per_hour = len(recent) / span_hours
    missing, merged_bytes = _next_merge(live, now, policy)
    coming = Forecast(lake, policy).steps(now, look_for_dead=False)
    bytes_by_day = Counter[date]()
    for file, _ in live:
        bytes_by_day[day_of(file)] += file.file_size_in_bytes
    return Explained(
        snapshots=len(history),
        tags=sum(1 for name in table.metadata.refs if name != "main"),
        live_files=len(live),
        live_bytes=sum(file.file_size_in_bytes for file, _ in live),
        by_level=by_level,
        commits_per_hour=round(commits_per_hour, 1),
        events_per_hour=round(events / span_hours, 1),
        bytes_per_event=round(added / events, 1) if events else 0.0,
        commit_seconds=round(commit_seconds, 4),
        next_merge_minutes=round(60 * missing / commits_per_hour, 1) if commits_per_hour else None,
        next_merge_bytes=merged_bytes,
        next_round=tuple(coming),
        closed_days=len(closed_days(live, now.date())),
        l1_files=sum(step.after for step in coming if step.what == "compact"),
        largest_day_bytes=max(bytes_by_day.values(), default=0),
        metadata_bytes=len(table.io.new_input(table.metadata_location)),
        manifests=len(head.manifests(table.io)) if head is not None else 0,
        planning_seconds=round(planning_seconds, 4),
    )


def _next_merge(live: Sequence[Sequenced], now: datetime, policy: UpkeepPolicy) -> tuple[int, int]:
    """(small files of today that are missing for a merge, about the bytes of what it makes)."""
    today = [one for one in live if day_of(one[0]) >= now.date()]
    small = max(mergeable(today, (), 1, L0_FILE_BYTES), key=len, default=[])
    if not small:
        return policy.merge_files, 0
    missing = max(policy.merge_files - len(small), 0)
    return missing, size_bytes(small) * (len(small) + missing) // len(small)
