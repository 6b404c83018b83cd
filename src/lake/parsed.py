"""What came out of lines of a source: typed events, and the lines that did not fit. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from attrs import field, frozen

from lake.eventtypes import EventType
from lake.validate import Flaw


@frozen
class Rejected:
    """An event that did not fit; `raw` goes to the dead letters, sealed."""

    line: int
    flaw: Flaw
    raw: bytes = field(repr=False)
    subject: str | None = field(default=None, repr=False)


@frozen
class Parsed:
    """Lines [start, end) of a source.

    Attributes:
        accepted: per event type a frame of `subject`, `source`, `event_id`, `occurred_at`, `revision`,
            `position` (the line) and its fields.
        rejected: what goes to the dead letters.
        blank: empty lines and the header: neither events nor errors.
        sealed: block rows that a producer has sealed, `source_from` being their line.
    """

    start: int
    end: int
    accepted: tuple[tuple[EventType, pl.DataFrame], ...] = field(repr=False)
    rejected: tuple[Rejected, ...]
    blank: int
    sealed: pl.DataFrame | None = field(default=None, repr=False)


def joined(pieces: Sequence[Parsed]) -> Parsed:
    """Consecutive pieces as one; at least one."""
    frames: dict[tuple[str, int], list[tuple[EventType, pl.DataFrame]]] = {}
    for piece in pieces:
        for event_type, frame in piece.accepted:
            frames.setdefault((event_type.name, event_type.version), []).append((event_type, frame))
    sealed = [piece.sealed for piece in pieces if piece.sealed is not None]
    return Parsed(
        pieces[0].start,
        pieces[-1].end,
        tuple((parts[0][0], pl.concat(frame for _, frame in parts)) for parts in frames.values()),
        tuple(rejected for piece in pieces for rejected in piece.rejected),
        sum(piece.blank for piece in pieces),
        pl.concat(sealed) if sealed else None,
    )
