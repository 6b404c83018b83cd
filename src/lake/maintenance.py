"""One round of upkeep: what keeps a table fast for years, in an order that lets each step help the next.

Tags first, so that expiry knows what to keep; then L0 files of today are put together and closed days become
L1; then letters of nobody's go whose time is over; then snapshots expire and their files go. Each step is a
guarded commit of its own: a round that is killed anywhere is finished by the next. On a full disk no commit
succeeds, but a sweep does: it makes the room that the round then needs.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from attrs import astuple

from lake.errors import CatalogUnavailable, StorageFailed
from lake.forecast import Forecast
from lake.housekeeping import Housekeeping
from lake.lakehouse import Lake
from lake.letterretention import LetterRetention
from lake.resting import Rests
from lake.upkeep import Upkeep
from lake.upkeeprules import Step, UpkeepPolicy, closed_days, days_to_merge, first_kept


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
        self._retention = LetterRetention(lake)
        self._forecast = Forecast(lake, self._policy)

    def plan(self, now: datetime) -> list[Step]:
        """What a round would do now; see `Forecast.steps`."""
        return self._forecast.steps(now)

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
                done.append(Step("merge", day, *astuple(merged)[1:]))
        closed = {*closed_days(live, now.date()), *self._upkeep.days_with_dead(live, now.date())}
        for day in sorted(closed):
            if should_stop():
                return done
            progress(f"compacting {day}")
            compacted = self._upkeep.compact(day, progress, policy.l1_file_bytes, self._rests, should_stop)
            if compacted.commits:
                done.append(
                    Step(
                        "compact",
                        day,
                        compacted.files_before,
                        compacted.files_after,
                        compacted.bytes_before,
                        compacted.bytes_after,
                        compacted.severed_blocks,
                    )
                )
        if should_stop():
            return done
        done += self._letters(now, progress)
        progress("expiring")
        self._housekeeping.forward_inputs()  # to what was rewritten, so that what it replaces can go
        gone = self._housekeeping.expire(policy.keep_snapshots, policy.keep_seconds)
        if gone:
            done.append(Step("expire", before=len(gone)))
        progress("sweeping")
        return [*done, *self._sweep()]

    def _letters(self, now: datetime, progress: Callable[[str], None]) -> list[Step]:
        """Letters of nobody's that were kept for long enough."""
        before = first_kept(now.date(), self._policy.letter_days)
        due = self._retention.due(before)
        if not due and not self._retention.owes():
            return []
        done = []
        for day in due:
            progress(f"letters of {day} that name nobody")
            if gone := self._retention.remove(day):
                done.append(Step("letters", day, before=gone))
        self._retention.settle(before, self._lake.intake.letters_in_use())
        return done

    def _sweep(self) -> list[Step]:
        swept = self._housekeeping.sweep(self._policy.grace_seconds, rests=self._rests)
        return [Step("sweep", before=len(swept), bytes=sum(one.bytes for one in swept))] if swept else []
