"""As of a moment: which commit was the head then, or that its snapshot has expired. Pure.

Sequence numbers count commits without a gap, so a missing number is a commit whose snapshot has expired.
An expiry remembers, for every kept snapshot, how many commits behind it have expired and when the earliest
of them landed: until then the kept one was the head. Where fewer are remembered than are missing (another
engine forgot some, or a lake is older than this record) nobody knows, and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from attrs import frozen
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot

from lake.errors import MomentRefused, SnapshotExpired, SnapshotGone
from lake.offsets import KIND, TOTALS, UPKEEP

EXPIRED_PROPERTY: Final = "shredlake.expired"
"""Of the table: `sequence:count:earliest` of every run of expired commits, separated by commas.

The sequence number of the kept commit before the run (0: none), how many of the run are remembered, and when
the earliest of these landed that showed anything else than the one before it, in Unix ms (`NEVER_MS`: none
did). Numbers alone.
"""

NEVER_MS: Final = 9_999_999_999_999


class Nearest(StrEnum):
    """Which kept neighbour is taken where the state of a moment has expired."""

    BEFORE = "before"
    AFTER = "after"


@frozen
class Commit:
    """A kept snapshot: its id, the number of its commit and when it landed, in Unix ms."""

    snapshot_id: int
    sequence: int
    at_ms: int


@frozen
class Run:
    """Expired commits between two kept ones: how many are remembered, and when the earliest landed."""

    count: int
    earliest_ms: int


@frozen
class Found:
    """The answer to a moment.

    Attributes:
        commit: the one that was the head then; another where it is not `exact`.
        nearest: which neighbour was taken, where that of the moment has expired.
    """

    commit: Commit
    moment: datetime
    nearest: Nearest | None = None

    @property
    def is_exact(self) -> bool:
        """Whether it is the state of that moment."""
        return self.nearest is None

    def sentence(self) -> str:
        """What was taken, for people."""
        if self.nearest is None:
            return f"as of {_shown(self.moment)}: {_named(self.commit)}"
        return (
            f"the state of {_shown(self.moment)} has expired; taken is the nearest kept one"
            f" {self.nearest.value} it: {_named(self.commit)}"
        )

    def as_dict(self) -> dict[str, str | bool | None]:
        """For JSON."""
        return {
            "as_of": self.moment.isoformat(),
            "exact": self.is_exact,
            "nearest": self.nearest.value if self.nearest else None,
            "committed_at": _at(self.commit.at_ms).isoformat(),
        }


def checked_moment(moment: datetime, now: datetime) -> datetime:
    """A moment of the past, in UTC: the one door of everything that is asked "as of".

    Raises:
        MomentRefused: it has no time zone, or has not come yet.
    """
    if moment.tzinfo is None:
        raise MomentRefused("a moment needs a time zone", next_step="Write it like 2026-01-31T10:00+01:00.")
    try:
        at = moment.astimezone(UTC)
    except OverflowError:
        raise MomentRefused("that moment is no date of our calendar in UTC") from None
    if at > now:
        raise MomentRefused(
            f"{_shown(at)} has not come yet: nobody knows what will be there then; it is {_shown(now)}"
        )
    return at


def head_at(
    kept: Sequence[Commit],
    last_sequence: int,
    remembered: Mapping[int, Run],
    moment: datetime,
    nearest: Nearest | None = None,
) -> Found:
    """The commit that was the head at a moment.

    Args:
        kept: newest first.
        last_sequence: number of the newest commit there ever was.
        remembered: by the sequence number of the kept commit before; see `EXPIRED_PROPERTY`.
        nearest: what is taken where that one has expired; None: nothing.

    Raises:
        SnapshotExpired: it has expired, or may have; names both neighbours.
        SnapshotGone: nothing had been committed then.
    """
    until_ms = (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000
    after: Commit | None = None
    above = last_sequence + 1
    for one in (*kept, None):
        sequence = 0 if one is None else one.sequence
        missing = above - sequence - 1
        if missing:
            run = remembered.get(sequence)
            is_known = run is not None and run.earliest_ms <= until_ms
            is_unclear = (run is None or run.count < missing) and (one is None or one.at_ms <= until_ms)
            if is_known or is_unclear:
                return _neighbour(moment, one, after, nearest, is_known)
        if one is None:
            break
        if one.at_ms <= until_ms:
            return Found(one, moment)
        after, above = one, sequence
    if after is None:
        raise SnapshotGone("the lake holds no event yet", next_step="Ingest some first.")
    first = min(
        [after.at_ms, *([remembered[0].earliest_ms] if 0 in remembered and after.sequence > 1 else [])]
    )
    raise SnapshotGone(
        f"nothing was in the lake at {_shown(moment)}: its first commit is of {_shown(_at(first))}",
        next_step="Ask for a later moment.",
    )


def _neighbour(
    moment: datetime, before: Commit | None, after: Commit | None, nearest: Nearest | None, is_known: bool
) -> Found:
    if nearest is Nearest.BEFORE and before is not None:
        return Found(before, moment, nearest)
    if nearest is Nearest.AFTER and after is not None:
        return Found(after, moment, nearest)
    what = (
        f"the lake's snapshot of {_shown(moment)} has expired"
        if is_known
        else f"whether the lake's snapshot of {_shown(moment)} has expired is not known: others forgot"
        " commits of that time, or they were forgotten before expiries were remembered"
    )
    neighbours = [
        f"nearest kept before: {_named(before)}" if before else "no older one is kept",
        f"nearest kept after: {_named(after)}" if after else "no newer one is kept",
    ]
    ways = [way.value for way, there in ((Nearest.BEFORE, before), (Nearest.AFTER, after)) if there]
    raise SnapshotExpired(
        f"{what}; {'; '.join(neighbours)}",
        next_step=f"Ask for one of them (`--nearest {'|'.join(ways)}`, or by its id with --to-snapshot)."
        " What is tagged is kept; `[upkeep]` says for how long the rest is.",
        before=None if before is None else before.snapshot_id,
        after=None if after is None else after.snapshot_id,
    )


# -- what an expiry remembers ----------------------------------------------------------------------


def is_rewrite(snapshot: Snapshot, before: Snapshot | None) -> bool:
    """Whether a snapshot shows just what a kept one before it does, and nothing in between showed more."""
    if before is None or snapshot.summary is None or before.summary is None:
        return False
    mine, theirs = snapshot.summary.additional_properties, before.summary.additional_properties
    return mine.get(KIND) == UPKEEP and TOTALS in mine and mine[TOTALS] == theirs.get(TOTALS)


def remembering(metadata: TableMetadata, forgotten: Collection[int]) -> str:
    """The property once these snapshots are forgotten; see `EXPIRED_PROPERTY`."""
    gone = set(forgotten)
    runs: dict[int, Run] = {}
    old = remembered_of(metadata)
    below = 0
    _add(runs, below, old.get(0))
    before: Snapshot | None = None
    for one in sorted(metadata.snapshots, key=lambda one: one.sequence_number or 0):
        sequence = one.sequence_number or 0
        if one.snapshot_id in gone:
            _add(runs, below, Run(1, NEVER_MS if is_rewrite(one, before) else one.timestamp_ms))
        else:
            below = sequence
        _add(runs, below, old.get(sequence))
        before = one
    return ",".join(f"{sequence}:{run.count}:{run.earliest_ms}" for sequence, run in sorted(runs.items()))


def remembered_of(metadata: TableMetadata) -> dict[int, Run]:
    """What expiries remembered; what is not of the form is not there."""
    found = {}
    for text in metadata.properties.get(EXPIRED_PROPERTY, "").split(","):
        numbers = text.split(":")
        if len(numbers) == 3 and all(one.isdecimal() for one in numbers):
            sequence, count, earliest_ms = map(int, numbers)
            found[sequence] = Run(count, earliest_ms)
    return found


def commits_of(metadata: TableMetadata) -> list[Commit]:
    """Every kept snapshot, newest first."""
    found: Iterable[Commit] = (
        Commit(s.snapshot_id, s.sequence_number or 0, s.timestamp_ms) for s in metadata.snapshots
    )
    return sorted(found, key=lambda one: one.sequence, reverse=True)


def _add(runs: dict[int, Run], below: int, more: Run | None) -> None:
    if more is not None:
        before = runs.get(below, Run(0, more.earliest_ms))
        runs[below] = Run(before.count + more.count, min(before.earliest_ms, more.earliest_ms))


def _at(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def _shown(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")


def _named(one: Commit) -> str:
    return f"snapshot {one.snapshot_id} of {_shown(_at(one.at_ms))}"
