"""What was read from partitions and is not in the table yet, and when it is time to commit it. Pure.

Messages are parsed a piece at a time while more are read: columns are smaller than messages, and pieces
of a few thousand stay in the processor's caches.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from attrs import define, field, frozen

from keys.quiet import no_collections
from lake.messages import Messages
from lake.parsed import Parsed, joined

Partition = tuple[str, int]
"""Topic and number."""
Parse = Callable[[str, int, int, Messages], Parsed]
"""`MessageFormat.parse`."""
PIECE_EVENTS: Final = 20_000
_EVENT_BYTES: Final = 200  # what an event costs beyond its value


@frozen
class CommitRule:
    """A commit is due by time, bytes or events, or when nothing more is there to read; whichever is first.

    Attributes:
        idle_seconds: how long after the last commit the end of all partitions makes one due.
        behind_events, behind_seconds: while the broker has more than so many events for us, time means
            `behind_seconds`: nobody waits for the newest events then, and large commits are cheaper.
    """

    seconds: float = 0.5
    events: int = 400_000
    memory_bytes: int = 256 * 1024 * 1024
    idle_seconds: float = 0.2
    behind_events: int = 100_000
    behind_seconds: float = 10.0


@define
class Pending:
    """What was read of one partition.

    Attributes:
        source: what the table knows the partition by.
        start: where the table stands; `end` is the next offset to read, `parsed_end` the next to parse.
        messages: not parsed yet; `pieces` is what was.
        count: messages read; `size_bytes` is about what they take.
        at_end: whether the broker had nothing more when it was last asked.
    """

    source: str
    start: int
    end: int
    parsed_end: int
    messages: Messages = field(factory=Messages, repr=False)
    pieces: list[Parsed] = field(factory=list, repr=False)
    count: int = 0
    size_bytes: int = 0
    at_end: bool = False


class Backlog:
    """Pending messages of the partitions that this consumer owns.

    Args:
        rule: when a commit is due.
        parse: turns messages of one partition into events.
    """

    def __init__(self, rule: CommitRule, parse: Parse) -> None:
        self._rule = rule
        self._parse = parse
        self._pending: dict[Partition, Pending] = {}
        self._since: float | None = None

    def own(self, partition: Partition, source: str, start: int) -> None:
        """Begins anew at the table's offset."""
        self.disown([partition])
        self._pending[partition] = Pending(source, start, start, start)

    def disown(self, partitions: Iterable[Partition]) -> None:
        """Forgets what was read; whoever owns them next reads it again."""
        for partition in partitions:
            self._pending.pop(partition, None)
        self._look()

    def owned(self) -> Mapping[Partition, Pending]:
        """Every partition of ours."""
        return self._pending

    def add(self, partition: Partition, messages: Messages, now: float) -> None:
        """Messages in the order of their offsets; what was read before is dropped."""
        pending = self._pending.get(partition)
        if pending is None:
            return  # revoked while they were on their way
        messages = messages.part(bisect_left(messages.offsets, pending.end))
        if not messages:
            return
        pending.messages.extend(messages)
        pending.end = messages.offsets[-1] + 1
        pending.at_end = False
        pending.count += len(messages)
        pending.size_bytes += messages.size_bytes() + _EVENT_BYTES * len(messages)
        if self._since is None:
            self._since = now

    def parse_pieces(self) -> None:
        """Parses what has come together.

        Raises:
            LakeError: the format could not; nothing is lost, and it can be tried again.
        """
        for pending in self._pending.values():
            if len(pending.messages) >= PIECE_EVENTS:
                self._digest(pending)

    def reached_end(self, partition: Partition, offset: int, now: float) -> None:
        """The broker has nothing before `offset`: what lies between are markers and holes."""
        pending = self._pending.get(partition)
        if pending is not None:
            pending.end = max(pending.end, offset)
            pending.at_end = True
            if pending.end > pending.start and self._since is None:
                self._since = now

    def is_due(self, now: float, unread: Callable[[], int] = lambda: 0) -> bool:
        """Whether to commit now.

        Args:
            unread: how many events the broker has for us that were not read; asked only where it matters.
        """
        if self._since is None:
            return False
        waited = now - self._since
        pending = self._pending.values()
        return (
            self.held_bytes() >= self._rule.memory_bytes
            or self.events() >= self._rule.events
            or (waited >= self._rule.idle_seconds and all(one.at_end for one in pending))
            or (
                waited >= self._rule.seconds
                and (waited >= self._rule.behind_seconds or unread() <= self._rule.behind_events)
            )
        )

    def waiting(self) -> dict[Partition, int]:
        """The partitions of which something was read that the table lacks, each with its first offset."""
        return {one: pending.start for one, pending in self._pending.items() if pending.end > pending.start}

    def events(self) -> int:
        """Messages that wait."""
        return sum(pending.count for pending in self._pending.values())

    def held_bytes(self) -> int:
        """About what all that waits takes in memory."""
        return sum(pending.size_bytes for pending in self._pending.values())

    def is_empty(self) -> bool:
        """Whether there is nothing to commit, not even holes."""
        return all(pending.end == pending.start for pending in self._pending.values())

    def ready(self) -> list[tuple[str, Parsed]]:
        """(source, what to commit) of every partition with something to commit. Raises as `parse_pieces`."""
        found = []
        for pending in self._pending.values():
            if pending.end > pending.start:
                if pending.end > pending.parsed_end:
                    self._digest(pending)
                pending.pieces = [joined(pending.pieces)]
                found.append((pending.source, pending.pieces[0]))
        return found

    def landed(self) -> None:
        """All of `ready` is in the table."""
        for pending in self._pending.values():
            pending.start, pending.pieces, pending.count, pending.size_bytes = pending.end, [], 0, 0
        self._look()

    def _digest(self, pending: Pending) -> None:
        with no_collections():
            parsed = self._parse(pending.source, pending.parsed_end, pending.end, pending.messages)
        pending.pieces.append(parsed)
        pending.parsed_end, pending.messages = pending.end, Messages()

    def _look(self) -> None:
        if self.is_empty():
            self._since = None
