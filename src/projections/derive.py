"""Derives buckets from a pinned snapshot: the part of a build that runs on an executor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import polars as pl
from attrs import evolve, frozen

from lake import DEFAULT_MEMORY_BYTES, EventRead, Events, EventType, Pace, Replay, TypeRegistry
from projections.compute import BUCKET, INTERNAL, Partial, derive, prepare, put_together
from projections.definition import (
    EVENT_TYPE,
    Fold,
    View,
    event_reads,
    is_personal,
    seen_columns,
)
from projections.errors import DefinitionError
from projections.exposure import refuse_names
from projections.fingerprint import fingerprint
from projections.registry import ViewRegistry
from projections.source import SourceFile, sources_of

_GAPS_PER_TASK: Final = 64


@frozen
class DeriveTask:
    """Buckets [first, last] of some views at a snapshot. Plain values: it travels to other processes.

    Attributes:
        versions: the fingerprints of the views; whoever has other code or event types refuses the task.
        sources: the files of the views as the build read them, which is what runs; those that the deriver
            was given where the views are of no file.
        until: only what had been committed by the commit of this sequence number; None: all.
    """

    views: tuple[str, ...]
    snapshot_id: int
    first: int
    last: int
    bits: int
    versions: tuple[str, ...] = ()
    sources: tuple[SourceFile, ...] = ()
    until: int | None = None


class Deriver:
    """Runs derive tasks; a bucket is read and opened once and feeds every view of the task.

    Args:
        replay: reads and opens; nothing else here holds a key.
        memory_bytes: that the events read at once may take. One person is never cut: a fold needs all.
    """

    def __init__(
        self,
        replay: Replay,
        types: TypeRegistry,
        views: ViewRegistry,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        self._replay = replay
        self._types = types
        self._views = views
        self._memory_bytes = memory_bytes
        self._of_task: tuple[tuple[SourceFile, ...], ViewRegistry] = ((), views)

    def _registry(self, sources: tuple[SourceFile, ...]) -> ViewRegistry:
        if not sources:
            return self._views
        known, registry = self._of_task
        if known != sources:
            registry = ViewRegistry.of(sources)
            self._of_task = (sources, registry)
        return registry

    def run(self, task: DeriveTask) -> dict[str, Partial]:
        """State per view of the task's buckets.

        Raises:
            DefinitionError: a view is here another than the task was made for.
            EnvelopeError, KeysError, SnapshotGone: see `lake.Replay.events`.
        """
        registry = self._registry(task.sources)
        views = [registry.get(name) for name in task.views]
        for view, version in zip(views, task.versions, strict=bool(task.versions)):
            if checked_version(self._types, view) != version:
                raise DefinitionError(
                    f"view `{view.name}` or its event types changed while it was built",
                    next_step="Build it again.",
                )
        files = self._replay.files(task.snapshot_id, task.until)
        span = ref_range(task.first, task.last, task.bits)
        shared = shared_reads(self._types, views)
        pace = Pace(self._memory_bytes)
        parts: dict[str, list[Partial]] = {view.name: [] for view in views}
        for piece in self._replay.ranges(files, shared, span, pace):
            events: dict[EventRead, Events] = {}
            totals: dict[EventRead, pl.DataFrame] = {}
            for read in shared:
                events[read] = self._replay.events(files, read, ref_range=piece)
                totals[read] = self._replay.stored(files, read, task.bits, piece)
            pace.note(sum(e.stored for e in events.values()), sum(e.peak_bytes for e in events.values()))
            for view in views:
                parts[view.name].append(derive_view(self._types, view, events, totals, task.bits))
        return {view.name: put_together(view, parts[view.name]) for view in views}


def tasks_of(
    views: Sequence[tuple[View, str]],
    snapshot_id: int,
    spans: Iterable[tuple[int, int]],
    bits: int,
    until: int | None = None,
) -> list[DeriveTask]:
    """One task for each span (first, last) of buckets, of views with their fingerprints."""
    names, versions = tuple(view.name for view, _ in views), tuple(version for _, version in views)
    sources = sources_of([type(view) for view, _ in views])
    return [
        DeriveTask(names, snapshot_id, first, last, bits, versions, sources, until) for first, last in spans
    ]


def derive_view(
    types: TypeRegistry,
    view: View,
    events: dict[EventRead, Events],
    totals: dict[EventRead, pl.DataFrame],
    bits: int,
) -> Partial:
    """The state of one view out of shared reads."""
    mine, total = [], []
    seen = seen_columns(view, types_of(types, view))
    for wanted, columns in zip(event_reads(view, types), seen.values(), strict=True):
        read = _covering(wanted, events)
        # The read may hold fields that other views asked for: what a view sees never depends on them.
        frame = events[read].frame
        if not wanted.is_personal(types.get(read.event_type)):
            # Only who reads sealed fields sees whether the person was erased: what the view counts would
            # else depend on whether another view of the scan reads them.
            frame = frame.with_columns(pl.lit(False).alias("shredded"))
        if EVENT_TYPE not in wanted.fields:
            frame = frame.with_columns(pl.lit(read.event_type).alias(EVENT_TYPE))
        own = evolve(events[read], frame=frame.select(*columns, *INTERNAL))
        newest = types.get(read.event_type)
        mine.append((own, newest.dedup_window_days, newest.future_days))
        total.append(totals[read])
    stored = pl.concat(total).group_by(pl.col("bucket").alias(BUCKET)).agg(pl.col("stored").sum())
    return derive(view, mine, bits, view_is_personal(types, view), stored)


def view_is_personal(types: TypeRegistry, view: View) -> bool:
    """Whether an erasure touches the view."""
    return is_personal(view, types_of(types, view))


def checked_version(types: TypeRegistry, view: View) -> str:
    """The fingerprint of a view that may be built over these event types.

    Raises:
        DefinitionError: it shows who somebody is, or reads what is not there.
        ViewFailed: a key or measure is not exact, or cannot be kept; a Fold's are looked at when it has run.
    """
    known = types_of(types, view)
    refuse_names(view, known)
    seen: dict[str, pl.DataType] = {}
    for columns in seen_columns(view, known).values():
        seen |= columns
    if not isinstance(view, Fold):
        prepare(view, pl.Schema(seen))
    return fingerprint(view, known, {name: types.chain(name) for name in known})


def types_of(types: TypeRegistry, view: View) -> dict[str, EventType]:
    """The newest version of every event type a view reads."""
    names = {target.partition("/")[0] for target in view.reads}
    return {name: types.get(name) for name in names}


def shared_reads(types: TypeRegistry, views: Sequence[View]) -> list[EventRead]:
    """One read per (event type, facet) with the fields of all views."""
    fields: dict[tuple[str, object], dict[str, None]] = {}
    facets = {}
    for view in views:
        for read in event_reads(view, types):
            facets[read.event_type, str(read.facet)] = read.facet
            known = fields.setdefault((read.event_type, str(read.facet)), {})
            known.update(dict.fromkeys(read.fields))
    return [
        EventRead(name, tuple(wanted), facets[name, str(facet)]) for (name, facet), wanted in fields.items()
    ]


def ref_range(first: int, last: int, bits: int) -> tuple[bytes, bytes | None]:
    """Handles of buckets [first, last] as a half-open range."""
    step = 1 << (16 - bits)
    end = (last + 1) * step
    return (first * step).to_bytes(2, "big"), None if end > 0xFFFF else end.to_bytes(2, "big")


def buckets_of(low: bytes, high: bytes | None, bits: int) -> range:
    """Buckets whose handles lie in such a half-open range of whole ones."""
    step = 1 << (16 - bits)
    end = 1 << bits if high is None else int.from_bytes(high, "big") // step
    return range(int.from_bytes(low, "big") // step, end)


def spans(buckets: Iterable[int], most: int) -> list[tuple[int, int]]:
    """(first, last) of spans of at most so many buckets that cover these.

    A span goes on over a small gap: to derive a few buckets for nothing costs less than one more scan, and
    people who are erased together lie in buckets all over.
    """
    gap = most // _GAPS_PER_TASK
    found: list[tuple[int, int]] = []
    for bucket in sorted(buckets):
        if found and bucket - found[-1][1] <= gap + 1 and bucket - found[-1][0] < most:
            found[-1] = (found[-1][0], bucket)
        else:
            found.append((bucket, bucket))
    return found


def _covering(wanted: EventRead, events: dict[EventRead, Events]) -> EventRead:
    for read in events:
        if (read.event_type, read.facet) == (wanted.event_type, wanted.facet):
            return read
    raise KeyError(wanted.event_type)
