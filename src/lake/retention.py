"""Which snapshots are kept: a ladder of tags, finer for what is recent. Pure.

The newest snapshot before the end of an hour, a day, a month is tagged with the name of that period, so
"as it was at 10:00" has an exact answer long after the snapshots in between are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from attrs import frozen

_BUILD: Final = "build-"
BUILD_HOURS: Final = 24


@frozen
class Rung:
    """A period of the ladder: the format of its tags, and for how long they stay."""

    name: str
    tag: str
    keep: timedelta


DEFAULT_LADDER: Final = (
    Rung("hour", "hour-%Y-%m-%dT%H", timedelta(hours=48)),
    Rung("day", "day-%Y-%m-%d", timedelta(days=90)),
    Rung("month", "month-%Y-%m", timedelta(days=3653)),
)


@frozen
class TagChanges:
    """Tags to set and to take away."""

    tags: dict[str, int]
    remove: tuple[str, ...]

    @property
    def any(self) -> bool:
        """Whether there is something to do."""
        return bool(self.tags or self.remove)


def ladder(
    snapshots: Iterable[tuple[int, int]],
    tags: Mapping[str, int],
    now: datetime,
    rungs: Iterable[Rung] = DEFAULT_LADDER,
) -> TagChanges:
    """What the tags should become.

    Args:
        snapshots: (id, Unix time in ms) of every kept one.
        tags: name → snapshot id, those of others included; they are left alone.
    """
    moments = sorted((at, snapshot_id) for snapshot_id, at in snapshots)
    wanted: dict[str, int] = {}
    ours: set[str] = set()
    for rung in rungs:
        ours.update(name for name in tags if name.startswith(f"{rung.name}-"))
        for at_ms, snapshot_id in moments:
            at = datetime.fromtimestamp(at_ms / 1000, UTC)
            if now - at <= rung.keep:
                wanted[at.strftime(rung.tag)] = snapshot_id  # a later one of the period replaces it
    oldest_build = build_tag(0, now - timedelta(hours=BUILD_HOURS))
    left_over = {name for name in tags if name.startswith(_BUILD) and name < oldest_build}
    fresh = {name: snapshot_id for name, snapshot_id in wanted.items() if tags.get(name) != snapshot_id}
    return TagChanges(fresh, tuple(sorted((ours - wanted.keys()) | left_over)))


def expendable(
    snapshots: Iterable[tuple[int, int]], tagged: Iterable[int], keep: int, keep_since_ms: float
) -> list[int]:
    """Ids that no tag names, that are not among the newest `keep`, and not younger than a moment.

    Args:
        snapshots: (id, Unix time in ms), newest first.
    """
    named = set(tagged)
    return [
        snapshot_id
        for at, (snapshot_id, time_ms) in enumerate(snapshots)
        if at >= keep and snapshot_id not in named and time_ms < keep_since_ms
    ]


def build_tag(number: int, now: datetime) -> str:
    """Keeps a build's input while it is read; names sort by time."""
    return f"{_BUILD}{now.astimezone(UTC):%Y-%m-%dT%H-%M-%S}-{number:x}"
