"""How a consumer of topics stands. Pure."""

from __future__ import annotations

from attrs import frozen


@frozen
class StuckPartition:
    """A partition whose messages wait with the brokers, or in a batch that is not committed.

    Attributes:
        offset: of the next message that the table lacks; None where that cannot be known.
        error: the type of what it waits for; its text may quote a message.
        since: seconds since the epoch.
    """

    topic: str
    number: int
    offset: int | None
    error: str
    since: float


@frozen
class Progress:
    """How a consumer stands.

    Attributes:
        lag: messages that the broker has and the table has not, over our partitions.
        held_bytes: about what was read and is not in the table takes in memory.
        committed_at: seconds since the epoch of the last commit; None before the first.
        waits_for: the type of the error that what was read waits for, or None.
        stuck: partitions of which nothing comes into the table.
    """

    partitions: int
    events: int
    dead: int
    suppressed: int
    commits: int
    lag: int
    held_bytes: int
    committed_at: float | None
    waits_for: str | None = None
    stuck: tuple[StuckPartition, ...] = ()
