"""What a round of upkeep would do now; nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import MAIN_BRANCH

from lake.housekeeping import Housekeeping
from lake.inputs import marks_of
from lake.lakehouse import Lake
from lake.letterretention import LetterRetention
from lake.levels import Level, Sequenced, origin
from lake.merging import day_of
from lake.upkeep import Upkeep
from lake.upkeeprules import (
    Step,
    UpkeepPolicy,
    closed_days,
    days_to_compact,
    first_kept,
    merges_to_come,
)


class Forecast:
    """Looks at a lake as a round of upkeep would.

    Args:
        policy: when a round does what.
    """

    def __init__(self, lake: Lake, policy: UpkeepPolicy) -> None:
        self._table = lake.events
        self._policy = policy
        self._upkeep = Upkeep(lake)
        self._housekeeping = Housekeeping(lake)
        self._retention = LetterRetention(lake)

    def steps(self, now: datetime, *, look_for_dead: bool = True) -> list[Step]:
        """The steps in their order.

        As they will be, where nobody writes meanwhile and no day has to be divided (what comes out of
        that is told about). Files that the round itself writes and throws away are not counted; the
        grace period keeps them for the next one.

        Args:
            look_for_dead: for blocks of erased people; three small columns are read, of closed days that
                are not sorted, and of all closed days where somebody was erased since the last look. And for
                letters of nobody's whose time is over.

        Raises:
            StorageFailed, CatalogUnavailable: it could not be looked at.
        """
        policy, metadata = self._policy, self._table.metadata()
        changes = self._housekeeping.tag_changes(metadata, now)
        tags = {name: ref.snapshot_id for name, ref in metadata.refs.items() if name not in changes.remove}
        tags |= changes.tags
        found = [Step("tag", before=len(changes.remove), after=len(changes.tags))] if changes.any else []
        live = self._table.sequenced_files()
        marks = marks_of(metadata, {name: one for name, one in tags.items() if name != MAIN_BRANCH})
        dead = self._dead(live, now) if look_for_dead else {}
        coming = [
            *merges_to_come(live, marks, now.date(), policy),
            *days_to_compact(live, now.date(), policy, dead),
        ]
        found += [one.step for one in coming]
        letters, notes = self._letters(now) if look_for_dead else ([], 0)
        found += letters
        snapshots = sum(one.commits for one in coming) + self._notes(live, dead, now) + len(letters) + notes
        return [*found, *self._farewells(metadata, tags, snapshots, changes.any)]

    def _farewells(
        self, metadata: TableMetadata, tags: dict[str, int], snapshots: int, tagging: bool
    ) -> list[Step]:
        policy, found = self._policy, []
        gone = self._housekeeping.expendable_of(
            metadata, policy.keep_snapshots, policy.keep_seconds, tags, snapshots
        )
        if gone:
            found.append(Step("expire", before=len(gone)))
        commits = snapshots + tagging + bool(gone)
        swept = self._housekeeping.sweep_to_come(policy.grace_seconds, gone, commits)
        if swept:
            found.append(Step("sweep", before=len(swept), bytes=sum(one.bytes for one in swept)))
        return found

    def _dead(self, live: Sequence[Sequenced], now: datetime) -> dict[str, int]:
        open_days = set(closed_days(live, now.date()))
        if self._upkeep.has_unseen_fence():
            open_days |= {day_of(file) for file, _ in live if day_of(file) < now.date()}
        return self._upkeep.dead_blocks(file for file, _ in live if day_of(file) in open_days)

    def _letters(self, now: datetime) -> tuple[list[Step], int]:
        """(letters of nobody's that go, commits that only write down that days are done)."""
        due = self._retention.due(first_kept(now.date(), self._policy.letter_days))
        counts = {day: self._retention.count(day) for day in due}
        return [Step("letters", day, before=count) for day, count in counts.items() if count], int(
            bool(due) or self._retention.owes()
        )

    def _notes(self, live: Sequence[Sequenced], dead: dict[str, int], now: datetime) -> int:
        """Commits that only write down that no sorted day holds dead bytes."""
        held = any(
            dead.get(file.file_path) and origin(file, at).level is Level.SORTED
            for file, at in live
            if day_of(file) < now.date()
        )
        return int(self._upkeep.has_unseen_fence() and not held)
