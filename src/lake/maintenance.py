"""One round of upkeep: what keeps a table fast for years, in an order that lets each step help the next.

Tags first, so that expiry knows what to keep; then L0 files of today are put together and closed days
become L1; then snapshots expire and their files go. Each step is a guarded commit of its own: a round
that is killed anywhere is finished by the next. On a full disk no commit succeeds, but a sweep does: it
makes the room that the round then needs.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from typing import Any

from attrs import asdict, frozen

from lake.errors import CatalogUnavailable, StorageFailed
from lake.housekeeping import KEEP_SNAPSHOTS, SWEEP_GRACE_SECONDS, Housekeeping
from lake.lakehouse import Lake
from lake.levels import Level, Sequenced, origin
from lake.merging import L0_FILE_BYTES, L1_FILE_BYTES, MERGE_FILES, day_of, mergeable
from lake.resting import Rests
from lake.upkeep import Upkeep


@frozen
class UpkeepPolicy:
    """When upkeep does something, and how much.

    Attributes:
        merge_files: so many small L0 files of a day are put together.
        l1_file_bytes: about how large a file of a closed day becomes; one is in memory at a time.
        keep_snapshots, keep_seconds: snapshots without a tag stay while they are among the newest, or young.
        grace_seconds: files that nothing refers to stay for so long: a writer may be about to commit them.
        rest_ratio: seconds of rest per second of work, to leave a shared disk to others.
    """

    merge_files: int = MERGE_FILES
    l1_file_bytes: int = L1_FILE_BYTES
    keep_snapshots: int = KEEP_SNAPSHOTS
    keep_seconds: float = 600.0
    grace_seconds: float = SWEEP_GRACE_SECONDS
    rest_ratio: float = 0.0


@frozen
class Step:
    """Something that a round did, or would do.

    Attributes:
        what: `tag`, `merge`, `compact`, `expire` or `sweep`.
        day: the ingest day, where it is about one.
        before, after: files, snapshots or tags; `bytes` of them.
        severed: blocks of erased people that lost their dead bytes.
    """

    what: str
    day: date | None = None
    before: int = 0
    after: int = 0
    bytes: int = 0
    severed: int = 0

    def as_row(self) -> dict[str, Any]:
        """For a table or JSON."""
        return asdict(self) | {"day": self.day.isoformat() if self.day else ""}


def closed_days(live: list[Sequenced], today: date) -> list[date]:
    """Days before today that are not all L1, oldest first. Pure."""
    return sorted(
        {
            day_of(file)
            for file, sequence in live
            if origin(file, sequence).level is not Level.SORTED and day_of(file) < today
        }
    )


def days_to_merge(live: list[Sequenced], today: date, at_least: int) -> list[date]:
    """Days with enough small files to put together, those that L1 takes left out. Pure."""
    days: dict[date, list[Sequenced]] = {}
    for one in live:
        if day_of(one[0]) >= today:
            days.setdefault(day_of(one[0]), []).append(one)
    return sorted(day for day, files in days.items() if mergeable(files, (), at_least, L0_FILE_BYTES))


class Maintenance:
    """Rounds of upkeep of one lake.

    Args:
        policy: when to do what.
        rests: how it rests; default: by the policy.
    """

    def __init__(self, lake: Lake, policy: UpkeepPolicy | None = None, rests: Rests | None = None) -> None:
        self._lake = lake
        self._policy = policy or UpkeepPolicy()
        self._rests = rests or Rests(self._policy.rest_ratio)
        self._upkeep = Upkeep(lake)
        self._housekeeping = Housekeeping(lake)

    def plan(self, now: datetime) -> list[Step]:
        """What a round would do now; the sizes of what comes out are not known before."""
        live = self._lake.events.sequenced_files()
        steps = []
        for what, days in (
            ("merge", days_to_merge(live, now.date(), self._policy.merge_files)),
            ("compact", closed_days(live, now.date())),
        ):
            for day in days:
                files = [file for file, _ in live if day_of(file) == day]
                steps.append(Step(what, day, len(files), bytes=sum(f.file_size_in_bytes for f in files)))
        would_go = self._housekeeping.expendable(self._policy.keep_snapshots, self._policy.keep_seconds)
        if would_go:
            steps.append(Step("expire", before=len(would_go)))
        orphans = self._housekeeping.sweep(self._policy.grace_seconds, dry_run=True)
        if orphans:
            steps.append(Step("sweep", before=len(orphans), bytes=sum(one.bytes for one in orphans)))
        return steps

    def run(
        self,
        now: datetime,
        progress: Callable[[str], None] = lambda text: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Step]:
        """Does a round; returns what was done.

        Raises:
            StorageFailed, CatalogUnavailable, CommitConflict: what was committed stays; run it again.
            ConservationBroken: see `Upkeep.compact`.
        """
        try:
            return self._round(now, progress, should_stop)
        except (StorageFailed, CatalogUnavailable):  # the latter where the catalog's own file is on that disk
            progress("sweeping first")
            if not (swept := self._sweep()):
                raise
        return [*swept, *self._round(now, progress, should_stop)]

    def _round(
        self, now: datetime, progress: Callable[[str], None], should_stop: Callable[[], bool]
    ) -> list[Step]:
        done: list[Step] = []
        policy = self._policy
        self._rests.begin()
        changes = self._housekeeping.climb(now)
        if changes.any:
            done.append(Step("tag", before=len(changes.remove), after=len(changes.tags)))
        live = self._lake.events.sequenced_files()
        for day in days_to_merge(live, now.date(), policy.merge_files):
            if should_stop():
                return done
            progress(f"merging {day}")
            merged = self._upkeep.merge(day, policy.merge_files, should_stop=should_stop, rests=self._rests)
            if merged.files_before:
                done.append(Step("merge", day, merged.files_before, merged.files_after))
        closed = {*closed_days(live, now.date()), *self._upkeep.days_with_dead(live, now.date())}
        for day in sorted(closed):
            if should_stop():
                return done
            progress(f"compacting {day}")
            compacted = self._upkeep.compact(day, progress, policy.l1_file_bytes, self._rests, should_stop)
            saved = compacted.bytes_before - compacted.bytes_after
            done.append(
                Step(
                    "compact",
                    day,
                    compacted.files_before,
                    compacted.files_after,
                    saved,
                    compacted.severed_blocks,
                )
            )
        progress("expiring")
        gone = self._housekeeping.expire(policy.keep_snapshots, policy.keep_seconds)
        if gone:
            done.append(Step("expire", before=len(gone)))
        progress("sweeping")
        return [*done, *self._sweep()]

    def _sweep(self) -> list[Step]:
        swept = self._housekeeping.sweep(self._policy.grace_seconds, rests=self._rests)
        return [Step("sweep", before=len(swept), bytes=sum(one.bytes for one in swept))] if swept else []
