"""Cutting a read into pieces that fit into memory. Pure.

What an event costs is not known before some were read, so a `Pace` learns it from piece to piece, and the
next piece is cut when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from attrs import define, field, frozen
from pyiceberg.manifest import DataFile

_FIRST_SHARE: Final = 8
"""The first piece, of which nothing is known, gets one part of so many."""
_GROWTH: Final = 4
"""A piece has at most so many times the events of the largest before: the first may have been tiny."""


@define
class Pace:
    """How many events fit.

    Attributes:
        memory_bytes: that the blocks and events of a piece may take, at the peak of reading it.
    """

    memory_bytes: int
    _event_bytes: float = field(default=1.0)
    _largest: int = field(default=0)

    def guess(self, files: Sequence[DataFile], events: int) -> None:
        """While nothing was read: from the files that hold so many events."""
        if not self._largest:
            stored_bytes = sum(file.file_size_in_bytes for file in files)
            self._event_bytes = _FIRST_SHARE * max(stored_bytes / max(events, 1), 1.0)

    @property
    def most_events(self) -> int:
        """For the next piece, one at least."""
        fitting = max(1, int(self.memory_bytes / self._event_bytes))
        return min(fitting, _GROWTH * self._largest) if self._largest else fitting

    def note(self, events: int, peak_bytes: int) -> None:
        """What a piece took. The dearest piece so far decides: people are spread evenly, or nearly so."""
        if events == 0:
            return
        each = peak_bytes / events
        self._event_bytes = max(self._event_bytes, each) if self._largest else each
        self._largest = max(self._largest, events)


@frozen
class Cell:
    """What is not cut further at one level: handles in [low, high), and how many events they have."""

    low: bytes
    high: bytes | None
    events: int


def packed(cells: Sequence[Cell], pace: Pace) -> Iterator[Cell]:
    """Neighbours put together as far as they fit; a cell that does not fit comes alone.

    Args:
        pace: asked anew for every piece.
    """
    at = 0
    while at < len(cells):
        end, events = at + 1, cells[at].events
        while end < len(cells) and events + cells[end].events <= pace.most_events:
            events += cells[end].events
            end += 1
        yield Cell(cells[at].low, cells[end - 1].high, events)
        at = end


def cuts(counts: Sequence[int], most: int) -> list[int]:
    """Where runs of at most so many begin, and the end; one that has more by itself is a run of its own."""
    ends = np.cumsum(np.asarray(counts, dtype=np.int64))
    found = [0]
    while found[-1] < len(ends):
        before = int(ends[found[-1] - 1]) if found[-1] else 0
        found.append(max(found[-1] + 1, int(np.searchsorted(ends, before + most, side="right"))))
    return found
