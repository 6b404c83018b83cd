"""Partitions of which nothing comes although the brokers have more. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import define

from lake.backlog import Partition

STALL_SECONDS: Final = 60.0


@define
class _Seen:
    end: int
    since: float
    patience_seconds: float = STALL_SECONDS


class Stalls:
    """Remembers since when each partition stands where it stands.

    A partition that was begun anew in vain is given twice the time before it is begun anew again: where a
    fetch is slow, beginning anew throws away what is under way.
    """

    def __init__(self) -> None:
        self._seen: dict[Partition, _Seen] = {}

    def look(self, places: Mapping[Partition, int], now: float, waits: bool) -> list[Partition]:
        """Partitions that have stood for long, whatever the brokers have.

        Args:
            places: the next offset to read of each of our partitions.
            waits: nothing is read now, on purpose.
        """
        for one, end in places.items():
            if one not in self._seen or end > self._seen[one].end:
                self._seen[one] = _Seen(end, now)
        for one, seen in self._seen.items():
            if waits or one not in places:
                seen.since = now
        return [one for one, seen in self._seen.items() if now - seen.since >= seen.patience_seconds]

    def stalled(
        self, idle: Mapping[Partition, int], ends: Mapping[Partition, int], now: float
    ) -> list[Partition]:
        """Those of `idle` that the brokers have more of; the time of all begins anew."""
        found = []
        for one, place in idle.items():
            seen = self._seen[one]
            seen.since = now
            if ends.get(one, 0) > place:
                found.append(one)
                seen.patience_seconds *= 2
        return found

    def forget(self) -> None:
        """What was seen is of a topic that is another one by now."""
        self._seen.clear()
