"""What a round of upkeep does, by rule: its policy, its steps, and the days that they are about. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Final

from attrs import asdict, frozen

from lake.errors import GraceTooShort
from lake.levels import Level, Sequenced, origin, size_bytes
from lake.merging import L0_FILE_BYTES, L1_FILE_BYTES, MERGE_FILES, day_of, mergeable
from lake.sorting import rewrites, sorted_files

KEEP_SNAPSHOTS: Final = 100
SWEEP_GRACE_SECONDS: Final = 3600
LETTER_DAYS: Final = 90
WARNED_DAYS: Final = 14
"""So long before letters of nobody's go, `doctor` says so."""
LEAST_GRACE_SECONDS: Final = 600
"""More than a writer takes, with every attempt and time limit, from a file to the commit that names it."""


@frozen
class UpkeepPolicy:
    """When upkeep does something, and how much.

    Attributes:
        merge_files: so many small L0 files of a day are put together.
        l1_file_bytes: about how large a file of a closed day becomes; about so much is in memory at a time.
        keep_snapshots, keep_seconds: snapshots without a tag stay while they are among the newest, or young.
        grace_seconds: files that nothing refers to stay for so long: a writer may be about to commit them.
        rest_ratio: seconds of rest per second of work, to leave a shared disk to others.
        letter_days: dead letters that name nobody are kept for so many days behind the day of their ingest.
    """

    merge_files: int = MERGE_FILES
    l1_file_bytes: int = L1_FILE_BYTES
    keep_snapshots: int = KEEP_SNAPSHOTS
    keep_seconds: float = 600.0
    grace_seconds: float = SWEEP_GRACE_SECONDS
    rest_ratio: float = 0.0
    letter_days: int = LETTER_DAYS


@frozen
class Step:
    """Something that a round did, or would do.

    Attributes:
        what: `tag`, `merge`, `compact`, `letters`, `expire` or `sweep`.
        day: the ingest day, where it is about one.
        before, after: files of a merge or of a day, letters of nobody's that go, snapshots, or tags
            taken away and set.
        bytes, bytes_after: of such files; what they become is told beforehand as if nothing shrank.
        severed: blocks of erased people that lose their dead bytes.
    """

    what: str
    day: date | None = None
    before: int = 0
    after: int = 0
    bytes: int = 0
    bytes_after: int = 0
    severed: int = 0

    def as_row(self) -> dict[str, Any]:
        """For a table or JSON."""
        return asdict(self) | {"day": self.day.isoformat() if self.day else ""}


@frozen
class Coming:
    """A step to come, and the least number of commits that it takes."""

    step: Step
    commits: int


def first_kept(today: date, letter_days: int) -> date:
    """The oldest ingest day whose letters of nobody's stay."""
    return today - timedelta(days=letter_days)


def closed_days(live: Sequence[Sequenced], today: date) -> list[date]:
    """Days before today that are not all L1, oldest first."""
    return sorted(
        {
            day_of(file)
            for file, sequence in live
            if origin(file, sequence).level is not Level.SORTED and day_of(file) < today
        }
    )


def days_to_merge(live: Sequence[Sequenced], today: date, at_least: int) -> list[date]:
    """Days with enough small files to put together, those that L1 takes left out."""
    days = {day_of(one[0]) for one in live if day_of(one[0]) >= today}
    return sorted(day for day in days if mergeable(of_day(live, day), (), at_least, L0_FILE_BYTES))


def of_day(live: Sequence[Sequenced], day: date) -> list[Sequenced]:
    """The files of an ingest day."""
    return [one for one in live if day_of(one[0]) == day]


def merges_to_come(
    live: Sequence[Sequenced], marks: Collection[int], today: date, policy: UpkeepPolicy
) -> list[Coming]:
    """What will be put together.

    Args:
        marks: sequence numbers of tagged snapshots.
    """
    found = []
    for day in days_to_merge(live, today, policy.merge_files):
        groups = mergeable(of_day(live, day), marks, policy.merge_files, L0_FILE_BYTES)
        size = size_bytes([one for group in groups for one in group])
        if groups:
            step = Step("merge", day, sum(map(len, groups)), len(groups), size, size)
            found.append(Coming(step, len(groups)))
    return found


def days_to_compact(
    live: Sequence[Sequenced], today: date, policy: UpkeepPolicy, dead: Mapping[str, int] | None = None
) -> list[Coming]:
    """What will be sorted.

    Args:
        dead: how many dead blocks files hold, by path, where somebody has looked.
    """
    dead = dead or {}
    stale = {path for path, blocks in dead.items() if blocks}
    days = {day_of(file) for file, _ in live if file.file_path in stale and day_of(file) < today}
    found = []
    for day in sorted({*closed_days(live, today), *days}):
        files = of_day(live, day)
        todo = rewrites(files, policy.l1_file_bytes, stale)
        size = size_bytes(files)
        after = sorted_files(files, policy.l1_file_bytes, stale)
        severed = sum(dead.get(file.file_path, 0) for file, _ in files)
        found.append(Coming(Step("compact", day, len(files), after, size, size, severed), len(todo)))
    return found


def check_grace(grace_seconds: float, nobody_writes: bool) -> None:
    """Whether a sweep with this grace leaves alone what is about to be committed.

    Raises:
        GraceTooShort: it does not, and somebody may be writing.
    """
    if grace_seconds < LEAST_GRACE_SECONDS and not nobody_writes:
        raise GraceTooShort(
            f"with a grace of {grace_seconds:g} s a sweep may delete files that are about to be committed;"
            f" {LEAST_GRACE_SECONDS} s is the least"
        )
