"""Records of batches that came over HTTP: on their way, waiting, and what became of them."""

from __future__ import annotations

from typing import Literal, NamedTuple

from attrs import field, frozen


class Note(NamedTuple):
    """An event of a batch, by its place in it, that was not accepted; holds no value of it."""

    at: int
    status: Literal["rejected", "suppressed"]
    reason: str | None
    field: str | None


@frozen
class Outcome:
    """What becomes of a batch's events: counts, and a note per event that is not accepted."""

    accepted: int
    rejected: int
    suppressed: int
    notes: tuple[Note, ...] = ()


@frozen
class Batch:
    """A batch that was taken.

    Attributes:
        received_at, committed_at: seconds since the epoch; None while it waits.
        outcome: None while it waits, and of one whose outcome is not known any more (restored from a copy).
    """

    batch_id: str
    events: int
    received_at: float
    committed_at: float | None
    outcome: Outcome | None

    @property
    def state(self) -> Literal["waiting", "committed", "unknown"]:
        """Unknown: it waits no more, and a restored copy does not tell what became of it."""
        if self.committed_at is None:
            return "waiting"
        return "unknown" if self.outcome is None else "committed"


@frozen
class Arrival:
    """A sealed batch on its way into the spool.

    Attributes:
        size_bytes: of the body before it was sealed.
        key_digest, body_digest: keyed hashes, where the client named an idempotency key.
    """

    batch_id: str
    events: int
    size_bytes: int
    key_ref: bytes = field(repr=False)
    sealed: bytes = field(repr=False)
    key_digest: bytes | None = field(default=None, repr=False)
    body_digest: bytes | None = field(default=None, repr=False)


@frozen
class Waiting:
    """A batch that is not in the table yet: events [start, end) of the spool's source."""

    batch_id: str
    start: int
    events: int
    key_ref: bytes = field(repr=False)
    sealed: bytes = field(repr=False)

    @property
    def end(self) -> int:
        """Number of the event behind its last one."""
        return self.start + self.events


@frozen
class Queue:
    """How much waits.

    Attributes:
        source: what the table knows the spool by; next, settled, intended: numbers of events.
        size_bytes: of the bodies before they were sealed.
        oldest_at: seconds since the epoch; None when nothing waits.
    """

    source: str
    next: int
    settled: int
    intended: int
    batches: int
    events: int
    size_bytes: int
    oldest_at: float | None
