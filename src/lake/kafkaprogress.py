"""How a consumer of topics stands. Pure."""

from __future__ import annotations

from attrs import frozen


@frozen
class Progress:
    """How a consumer stands.

    Attributes:
        lag: messages that the broker has and the table has not, over our partitions.
        held_bytes: about what was read and is not in the table takes in memory.
        committed_at: seconds since the epoch of the last commit; None before the first.
        waits_for: the type of the error that what was read waits for, or None.
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
