"""What was read from partitions and is not in the table yet, and when it is time to commit it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import define, field, frozen

from lake.messages import Message

Partition = tuple[str, int]
"""Topic and number."""
_MESSAGE_BYTES: Final = 200  # what a message costs beyond its value


@frozen
class CommitRule:
    """A commit is due by time, bytes or events, or when nothing more is there to read; whichever is first.

    Attributes:
        idle_seconds: how long after the last commit the end of all partitions makes one due.
    """

    seconds: float = 1.0
    events: int = 200_000
    memory_bytes: int = 128 * 1024 * 1024
    idle_seconds: float = 0.2


@define
class Pending:
    """Messages of one partition.

    Attributes:
        source: what the table knows the partition by.
        start: where the table stands; `end` is the next offset to read.
        at_end: whether the broker had nothing more when it was last asked.
    """

    source: str
    start: int
    end: int
    messages: list[Message] = field(factory=list, repr=False)
    at_end: bool = False


class Backlog:
    """Pending messages of the partitions that this consumer owns.

    Args:
        rule: when a commit is due.
    """

    def __init__(self, rule: CommitRule) -> None:
        self._rule = rule
        self._pending: dict[Partition, Pending] = {}
        self._since: float | None = None
        self._bytes = 0

    def own(self, partition: Partition, source: str, start: int) -> None:
        """Begins anew at the table's offset."""
        self.disown([partition])
        self._pending[partition] = Pending(source, start, start)

    def disown(self, partitions: Iterable[Partition]) -> None:
        """Forgets what was read; whoever owns them next reads it again."""
        for partition in partitions:
            self._pending.pop(partition, None)
        self._count()

    def owned(self) -> Mapping[Partition, Pending]:
        """Every partition of ours."""
        return self._pending

    def add(self, partition: Partition, messages: Sequence[Message], now: float) -> None:
        """Messages in the order of their offsets; what was read before is dropped."""
        pending = self._pending.get(partition)
        if pending is None:
            return  # revoked while they were on their way
        fresh = [one for one in messages if one.offset >= pending.end]
        if not fresh:
            return
        pending.messages.extend(fresh)
        pending.end = fresh[-1].offset + 1
        pending.at_end = False
        self._bytes += sum(len(one.value or b"") + _MESSAGE_BYTES for one in fresh)
        if self._since is None:
            self._since = now

    def reached_end(self, partition: Partition, offset: int, now: float) -> None:
        """The broker has nothing before `offset`: what lies between are markers and holes."""
        pending = self._pending.get(partition)
        if pending is not None:
            pending.end = max(pending.end, offset)
            pending.at_end = True
            if pending.end > pending.start and self._since is None:
                self._since = now

    def is_due(self, now: float) -> bool:
        """Whether to commit now."""
        if self._since is None:
            return False
        waited = now - self._since
        return (
            waited >= self._rule.seconds
            or self._bytes >= self._rule.memory_bytes
            or self.events() >= self._rule.events
            or (waited >= self._rule.idle_seconds and all(p.at_end for p in self._pending.values()))
        )

    def events(self) -> int:
        """Messages that wait."""
        return sum(len(pending.messages) for pending in self._pending.values())

    def ready(self) -> list[Pending]:
        """Every partition with something to commit."""
        return [pending for pending in self._pending.values() if pending.end > pending.start]

    def landed(self) -> None:
        """All of `ready` is in the table."""
        for pending in self._pending.values():
            pending.start, pending.messages = pending.end, []
        self._count()

    def _count(self) -> None:
        waiting = [one for pending in self._pending.values() for one in pending.messages]
        self._bytes = sum(len(one.value or b"") + _MESSAGE_BYTES for one in waiting)
        if not self.ready():
            self._since = None
