"""Which partitions are stuck, why and since when, noticed within seconds. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from attrs import define

from lake.backlog import Partition
from lake.kafkaprogress import StuckPartition

ASK_SECONDS: Final = 5.0


@define
class _Seen:
    end: int
    asked_at: float
    has_more: bool = False


class Standstill:
    """Remembers what was stuck when it was looked at last. Times are of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._seen: dict[Partition, _Seen] = {}
        self._left: dict[Partition, str] = {}
        self._stuck: dict[Partition, StuckPartition] = {}

    def to_ask(self, places: Mapping[Partition, int], now: float, waits: bool) -> list[Partition]:
        """Partitions that stand where they stood five seconds ago: the brokers know whether they have more.

        Args:
            places: the next offset to read of each of our partitions.
            waits: nothing is read now, on purpose.
        """
        for one in self._seen.keys() - places.keys():
            del self._seen[one]
        for one, end in places.items():
            if waits or one not in self._seen or self._seen[one].end != end:
                self._seen[one] = _Seen(end, now)
        return [one for one, seen in self._seen.items() if now - seen.asked_at >= ASK_SECONDS]

    def told(self, ends: Mapping[Partition, int], now: float) -> None:
        """What the brokers have, of those that were asked about."""
        for one, end in ends.items():
            if (seen := self._seen.get(one)) is not None:
                seen.asked_at, seen.has_more = now, end > seen.end

    def not_begun(self, partitions: Mapping[Partition, str]) -> None:
        """These could not be begun, each for an error; what was said before is forgotten."""
        self._left = dict(partitions)

    def taken(self, partitions: Iterable[Partition]) -> None:
        """These are another member's from now on."""
        for one in partitions:
            self._left.pop(one, None)
            self._seen.pop(one, None)

    def stuck(
        self, waiting: Mapping[Partition, int], cause: str | None, now_epoch: float
    ) -> tuple[StuckPartition, ...]:
        """All that is stuck.

        Args:
            waiting: partitions of the batch that waits, each with the offset that the table lacks.
            cause: the type of the error that it waits for.
            now_epoch: seconds since the epoch.
        """
        found: dict[Partition, tuple[int | None, str]] = {
            one: (seen.end, "PartitionStalled") for one, seen in self._seen.items() if seen.has_more
        }
        found |= {one: (None, error) for one, error in self._left.items()}
        found |= {one: (offset, cause) for one, offset in waiting.items() if cause is not None}
        self._stuck = {
            one: StuckPartition(*one, offset, error, self._since(one, now_epoch))
            for one, (offset, error) in sorted(found.items())
        }
        return tuple(self._stuck.values())

    def _since(self, one: Partition, now_epoch: float) -> float:
        return self._stuck[one].since if one in self._stuck else now_epoch
