"""`build(views)`: the one primitive behind first build, catch-up, re-derivation and rebuild.

Per view and bucket the plan is one of: nothing to do; merge what is new; derive anew. A bucket is
derived anew when it has no state, when somebody in it was erased since, when a correction or a Fold
asks for it, or when the way from its snapshot to the target is not kept any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import polars as pl
from attrs import evolve
from pyiceberg.manifest import DataFile
from pyiceberg.table.snapshots import Snapshot

from keys import LeaseExpired
from lake import DEFAULT_MEMORY_BYTES, EventRead, Events, Lake, Pace, SnapshotGone, bucket_of
from lake.inputs import keeper_of
from lake.offsets import offsets_of
from lake.pieces import Cell, packed
from lake.table import summary_of
from projections.built import Built, Order, ViewPlan, build_id_of, schema_ids_of, watermark_of
from projections.codewatch import CodeWatch
from projections.compute import BUCKET, STATE_COLUMNS, Partial, forget, merge, novelty, result
from projections.definition import SUBJECT, Fold, View, event_reads, grain
from projections.derive import (
    DeriveTask,
    buckets_of,
    checked_version,
    derive_view,
    ref_range,
    shared_reads,
    spans,
    tasks_of,
    types_of,
    view_is_personal,
)
from projections.differencing import Guarded
from projections.errors import StateDamaged, StateMoved
from projections.executors import Executor
from projections.exposure import shown_columns
from projections.fingerprint import git_state, library_versions
from projections.gates import check_conservation, check_result
from projections.guarding import Candidate, DifferencingGuard, is_guarded, told_counts
from projections.keptsource import bundle, digest_of
from projections.ledger import Ledger, Publication
from projections.rebuilds import RebuildCheck, each_finished
from projections.registry import ViewRegistry
from projections.state import StateStore
from projections.tables import ViewTables, column_types
from projections.viewrows import row_purposes

DEFAULT_BITS = 8
EVENTS_PER_TASK = 2_000_000
_MOST_MOVES = 50
_DAMAGED_TRIES = 3
Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""
News = Mapping[EventRead, tuple[Events, pl.DataFrame]]
"""Per read the new events, and `bucket`, `stored`."""


class Builder:
    """Builds views of one lake.

    Args:
        watch: ends calls of a view's code that do not end by themselves.
        bits: 2^bits buckets per view.
        memory_bytes: that the events read at once may take while catching up.
        code_folder: whose git state is recorded.
    """

    def __init__(
        self,
        lake: Lake,
        views: ViewRegistry,
        states: StateStore,
        tables: ViewTables,
        ledger: Ledger,
        executor: Executor,
        watch: CodeWatch,
        *,
        bits: int = DEFAULT_BITS,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        code_folder: Path | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._lake = lake
        self._views = views
        self._states = states
        self._tables = tables
        self._ledger = ledger
        self._executor = executor
        self.watch = watch
        self._bits = bits
        self._memory_bytes = memory_bytes
        self._code_folder = code_folder
        self._clock = clock
        self._replay = lake.replay()
        self._guard = DifferencingGuard(ledger, tables, self._recomputed_state)
        self._rebuilds = RebuildCheck(ledger, tables)

    def version_of(self, view: View) -> str:
        """Fingerprint of a view as it is now."""
        return checked_version(self._lake.types, view)

    def build(
        self,
        wanted: Sequence[str | View],
        *,
        snapshot_id: int | None = None,
        rebuild: bool = False,
        accept_changed: bool = False,
        who: str = "",
        why: str = "",
        progress: Progress = lambda what, done, total: None,
    ) -> list[Built]:
        """Builds views up to one snapshot, in one shared scan.

        Args:
            wanted: names, or views as they were read: a file that changes meanwhile changes nothing.
            snapshot_id: of `lake.events`; the head where none is named.
            rebuild: derive every bucket anew.
            accept_changed: keep a result that differs from the one of before over the same input.

        Raises:
            ResultChanged: a result differs from the one of before, by the same code over the same input,
                erasures and holds; on record as an alarm.
            ViewHangs: a call of a view's code did not end; a process that cannot end it ends itself.
            GateClosed: a conservation or view check failed; states stay, nothing is published.
            SnapshotGone: there is no such snapshot, or no event at all.
        """
        views = [self._views.get(one) if isinstance(one, str) else one for one in wanted]
        target = self._lake.events.snapshot(snapshot_id)
        if target is None:
            raise SnapshotGone("the lake holds no event yet", next_step="Ingest some first.")
        self._states.note(target.snapshot_id, target.sequence_number or 0)
        order = Order(who, why, accept_changed)
        moved = 0
        with self.watch.on() as watched:
            while True:
                epoch = self._lake.keyring.epoch()
                try:
                    plans = [self._plan(view, target, rebuild, epoch) for view in views]
                    watched.versions |= {plan.view.name: plan.version for plan in plans}
                    plans, merged = self._merge_news(plans, target, epoch)
                    self._derive(plans, target, epoch, progress)
                    if self._lake.keyring.epoch() == epoch:
                        finish = partial(self._finish, target=target, epoch=epoch, merged=merged, order=order)
                        built = each_finished(plans, finish)
                        self.watch.forgive([view.name for view in views])
                        return built
                    # Otherwise somebody was erased meanwhile: their buckets are derived again.
                except LeaseExpired:  # what an erasure does to the lease of an agent's workers
                    if self._lake.keyring.epoch() == epoch:
                        raise
                except (StateMoved, StateDamaged) as error:  # an erasure forgets them behind its fence
                    moved += 1
                    if moved >= (_MOST_MOVES if isinstance(error, StateMoved) else _DAMAGED_TRIES):
                        raise

    def recompute_guarded(self, view: View, publication: Publication) -> Guarded:
        """A publication's input with today's keys, less rows that fewer than k erased people explain."""
        state = self._recomputed_state(view, publication)
        if not is_guarded(view, publication.personal):
            return Guarded(result(view, state), {})
        mark = f"{self._lake.keyring.epoch()}/{self._lake.keyring.hold_changes()}"
        return self._guard.recomputed(view, publication, state, mark)

    def _recomputed_state(self, view: View, publication: Publication) -> pl.DataFrame:
        """From the publication's input, or from a later snapshot cut to it: the same less who was erased."""
        partials: list[Partial] = []
        made_of = (publication.input_snapshot, publication.input_sequence)
        snapshot_id, until = keeper_of(self._lake.events, *made_of)
        views = [(view, self.version_of(view))]
        for task in self._tasks(views, snapshot_id, range(1 << self._bits), until):
            partials.extend(done[view.name] for done in self._executor.map([task]))
        return pl.concat([p.rows for p in partials if p.rows.height] or [partials[0].rows])

    def forget_people(self, refs: Sequence[bytes]) -> list[int]:
        """See `Views.forget_people`."""
        buckets = sorted({int.from_bytes(ref[:2], "big") >> (16 - self._bits) for ref in refs})
        for version in self._states.versions():
            bits = int(version.rpartition("/")[2])
            own = {int.from_bytes(ref[:2], "big") >> (16 - bits) for ref in refs}
            self._states.forget(version, own)
        # A try that failed may have left keys of versions that have no state any more.
        self._states.drop_doomed()
        return buckets

    def _state_version(self, version: str) -> str:
        """States of another number of buckets, or of other state columns, are states of another version."""
        return f"{version}/{STATE_COLUMNS}/{self._bits}"

    def close(self) -> None:
        """Closes the states."""
        self._states.close()

    # -- planning ----------------------------------------------------------------------------------

    def _plan(self, view: View, target: Snapshot, rebuild: bool, epoch: int) -> ViewPlan:
        version = self.version_of(view)
        personal = view_is_personal(self._lake.types, view)
        known = {} if rebuild else self._states.known(self._state_version(version))
        missing = set(range(1 << self._bits)) - known.keys()
        stale: set[int] = set()
        if personal and known:
            oldest = min(state.epoch for state in known.values())
            for fence in self._lake.keyring.fences.after(oldest):
                bucket = fence.bucket(self._bits)
                if bucket in known and known[bucket].epoch < fence.epoch:
                    stale.add(bucket)
        behind: dict[int, set[int]] = {}
        for bucket, state in known.items():
            if bucket not in stale and state.snapshot_id != target.snapshot_id:
                behind.setdefault(state.snapshot_id, set()).add(bucket)
        return ViewPlan(
            view,
            version,
            personal,
            frozenset(missing | stale),
            {at: frozenset(buckets) for at, buckets in behind.items()},
        )

    def _tasks(
        self,
        views: Sequence[tuple[View, str]],
        snapshot_id: int,
        buckets: Iterable[int],
        until: int | None = None,
    ) -> list[DeriveTask]:
        """Tasks of about EVENTS_PER_TASK events each, over runs of buckets."""
        head = self._lake.events.snapshot(snapshot_id)
        total = int(summary_of(head).get("total-records", "0")) if head else 0
        per_task = max(1, (1 << self._bits) * EVENTS_PER_TASK // max(total * 4, 1))
        return tasks_of(views, snapshot_id, spans(buckets, per_task), self._bits, until)

    # -- deriving ----------------------------------------------------------------------------------

    def _derive(self, plans: list[ViewPlan], target: Snapshot, epoch: int, progress: Progress) -> None:
        """Derives every planned bucket; views with the same buckets share their scan."""
        groups: dict[frozenset[int], list[ViewPlan]] = {}
        for plan in plans:
            if plan.derive:
                groups.setdefault(plan.derive, []).append(plan)
        for buckets, together in groups.items():
            names = [plan.view.name for plan in together]
            views = [(plan.view, plan.version) for plan in together]
            tasks = self._tasks(views, target.snapshot_id, buckets)
            for done, (task, partials) in enumerate(zip(tasks, self._executor.map(tasks), strict=True)):
                span = [b for b in range(task.first, task.last + 1) if b in buckets]
                for plan in together:
                    partial = partials[plan.view.name]
                    self._states.save(
                        self._state_version(plan.version), partial, span, target.snapshot_id, epoch
                    )
                progress(", ".join(names), done + 1, len(tasks))

    # -- catching up -------------------------------------------------------------------------------

    def _merge_news(
        self, plans: list[ViewPlan], target: Snapshot, epoch: int
    ) -> tuple[list[ViewPlan], dict[str, int]]:
        """Merges what is new into the buckets behind; returns plans that say what is left to derive."""
        merged: dict[str, int] = {}
        left = []
        for plan in plans:
            todo = set(plan.derive)
            for after, buckets in plan.behind.items():
                try:
                    files = self._replay.files_between(
                        after, target.snapshot_id, self._states.sequence_of(after)
                    )
                except SnapshotGone:
                    todo |= buckets
                    continue
                reads = shared_reads(self._lake.types, [plan.view])
                stored = {read: self._replay.stored(files, read, self._bits) for read in reads}
                touched = {b for totals in stored.values() for b in totals["bucket"].to_list()} & buckets
                self._states.advance(
                    self._state_version(plan.version), buckets - touched, target.snapshot_id, epoch
                )
                if isinstance(plan.view, Fold):
                    todo |= touched
                elif touched:
                    corrected: set[int] = set()
                    for some, news in self._news(files, stored, touched):
                        corrected |= self._merge(plan, news, some, target, epoch)
                    todo |= corrected
                    merged[plan.view.name] = merged.get(plan.view.name, 0) + len(touched - corrected)
            left.append(evolve(plan, derive=frozenset(todo)))
        return left, merged

    def _news(
        self, files: Sequence[DataFile], stored: Mapping[EventRead, pl.DataFrame], touched: set[int]
    ) -> Iterator[tuple[set[int], News]]:
        """New events of as many touched buckets as fit into memory at a time."""
        counts = pl.concat(stored.values()).group_by("bucket").agg(pl.col("stored").sum()).sort("bucket")
        cells = [
            Cell(*ref_range(bucket, bucket, self._bits), events)
            for bucket, events in counts.iter_rows()
            if bucket in touched
        ]
        pace = Pace(self._memory_bytes)
        pace.guess(files, sum(cell.events for cell in cells))
        for cell in packed(cells, pace):
            some = touched.intersection(buckets_of(cell.low, cell.high, self._bits))
            span = (cell.low, cell.high)
            news = {read: (self._replay.events(files, read, ref_range=span), stored[read]) for read in stored}
            pace.note(cell.events, sum(events.peak_bytes for events, _ in news.values()))
            yield some, news

    def _merge(
        self,
        plan: ViewPlan,
        news: News,
        touched: set[int],
        target: Snapshot,
        epoch: int,
    ) -> set[int]:
        """Merges news into touched buckets; returns those that a correction asks to derive anew."""
        older = self._states.load(self._state_version(plan.version), touched)
        corrected: set[int] = set()
        fresh: dict[EventRead, Events] = {}
        totals: dict[EventRead, pl.DataFrame] = {}
        for read, (events, stored) in news.items():
            window_days = self._lake.types.get(read.event_type).dedup_window_days
            placed = events.frame.with_columns(bucket_of(pl.col(SUBJECT), self._bits).alias(BUCKET))
            split = novelty(placed.filter(pl.col(BUCKET).is_in(list(touched))), older.tags, window_days)
            corrected |= split.corrected
            fresh[read] = evolve(events, frame=split.fresh.drop(BUCKET))
            totals[read] = stored.filter(pl.col("bucket").is_in(list(touched)))
        newer = derive_view(self._lake.types, plan.view, fresh, totals, self._bits)
        if self.version_of(plan.view) != plan.version:
            raise StateMoved(f"event types of `{plan.view.name}` changed while it was built")
        keep = sorted(touched - corrected)
        if keep:
            both = merge(plan.view, older, newer)
            window_days = max(self._lake.types.get(r.event_type).dedup_window_days for r in news)
            both = evolve(both, tags=forget(both.tags, self._clock().date(), window_days))
            self._states.save(self._state_version(plan.version), both, keep, target.snapshot_id, epoch)
        return corrected

    # -- finishing ---------------------------------------------------------------------------------

    def _finish(
        self, plan: ViewPlan, target: Snapshot, epoch: int, merged: Mapping[str, int], order: Order
    ) -> Built:
        version = self._state_version(plan.version)
        states = self._states.known(version)
        if any(state.snapshot_id != target.snapshot_id for state in states.values()):
            raise StateMoved(f"another build has taken the states of `{plan.view.name}` elsewhere")
        if len(states) < 1 << self._bits:
            raise StateMoved(f"states of `{plan.view.name}` were forgotten while it was built")
        whole = self._states.load(version, states)
        if self._states.known(version) != states:
            raise StateMoved(f"the states of `{plan.view.name}` were replaced while they were read")
        rows = result(plan.view, whole.rows)
        counts = whole.counts
        stored = self._stored(plan.view, target.snapshot_id)
        check_conservation(plan.view, counts, stored, len(states) == 1 << self._bits)
        check_result(plan.view, rows, self._published_rows(plan.view))
        people = f"{epoch}/{self._lake.keyring.hold_changes()}" if plan.personal else ""
        guarded, basis = Guarded(rows, {}), ""
        if is_guarded(plan.view, plan.personal):
            live, sequence = self._lake.events.sequenced_of(target), target.sequence_number or 0
            new = Candidate(plan.version, target.snapshot_id, sequence, people, whole.rows, rows, live)
            guarded, basis = self._guard.candidate(plan.view, new)
        rows = guarded.rows
        name = self._tables.table_name(plan.view.name)
        first_id = build_id_of(plan, target.snapshot_id, f"{people}{basis}", self._bits)
        build_id = self._rebuilds.checked_id(plan, name, first_id, rows, order.who, accept=order.accepts)
        self._ledger.withhold(build_id, guarded.withheld)
        purposes = row_purposes(plan.view, self._lake.types)
        sealed = purposes if grain(plan.view).subject else None
        written = self._tables.write(name, plan.version, build_id, rows, sealed, epoch)
        last_day = counts["last_day"].max()
        sha, dirty = git_state(self._code_folder)
        publication = Publication(
            build_id=build_id,
            view=plan.view.name,
            grain=str(grain(plan.view)),
            personal=plan.personal,
            table=name,
            snapshot_id=written.snapshot_id,
            version=plan.version,
            input_snapshot=target.snapshot_id,
            input_sequence=target.sequence_number or 0,
            offsets=offsets_of(summary_of(target)),
            watermark=watermark_of(last_day, plan.view.lateness),
            schemas=tuple(schema_ids_of(self._lake, plan.view)),
            epoch=epoch,
            columns=column_types(rows),
            rows=rows.height,
            events_stored=int(counts["stored"].sum()),
            **told_counts(plan.view, plan.personal, counts),
            digest=written.digest,
            git_sha=sha,
            git_dirty=dirty,
            libraries=library_versions(),
            built_at=self._clock().astimezone(UTC).isoformat(timespec="milliseconds"),
            who=order.who,
            why=order.why,
            people_mark=people,
            withheld_rows=len(guarded.withheld),
            exposes=shown_columns(plan.view, types_of(self._lake.types, plan.view), rows.columns),
            floor=plan.view.min_subjects,
            purposes=purposes,
            source=digest_of(source := bundle(plan.view)),
            holds_ids=plan.view.holds_ids,
        )
        took_in, derived = merged.get(plan.view.name, 0), len(plan.derive)
        return Built(publication, derived, took_in, len(states) - derived - took_in, source)

    def _stored(self, view: View, snapshot_id: int) -> int:
        """Events of the types that a view reads, in the lake's files."""
        files = self._replay.files(snapshot_id)
        reads = event_reads(view, self._lake.types)
        return sum(int(self._replay.stored(files, read, self._bits)["stored"].sum()) for read in reads)

    def _published_rows(self, view: View) -> pl.DataFrame | None:
        release = self._ledger.current()
        if release is None or view.name not in release.entries or grain(view).subject:
            return None
        old = self._ledger.publication(release.entries[view.name])
        return self._tables.read_aggregate(old.table, old.snapshot_id)
