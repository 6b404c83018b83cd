"""What a snapshot's summary says of sources, and the decision whether a batch may land. Pure."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import frozen

from lake.errors import EpochMoved, Fenced

KIND: Final = "shredlake.kind"
OFFSETS: Final = "shredlake.offsets"
RANGES: Final = "shredlake.ranges"
BATCH: Final = "shredlake.batch"
EPOCH: Final = "shredlake.epoch"
COUNTS: Final = "shredlake.counts"
INGEST: Final = "ingest"
UPKEEP: Final = "upkeep"
_TRANSIENT: Final = "http:"  # done in one batch; kept out of the offsets so that they do not grow

Summary = Mapping[str, str]


class AlreadyLanded(Exception):
    """An ancestor carries this very batch."""


@frozen
class Range:
    """Lines [start, end) of a source, and what became of them."""

    source: str
    start: int
    end: int
    events: int
    dead: int
    suppressed: int
    blank: int

    def adds_up(self) -> bool:
        """Whether every line is accounted for."""
        return self.events + self.dead + self.suppressed + self.blank == self.end - self.start


def source_number(name: str) -> int:
    """The number that rows carry in place of a source's name."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF


def offsets_of(summary: Summary) -> dict[str, int]:
    """Next line per source."""
    found: dict[str, int] = json.loads(summary.get(OFFSETS, "{}"))
    return found


def ranges_of(summary: Summary) -> list[Range]:
    """This commit's ranges with their counts."""
    counts = json.loads(summary.get(COUNTS, "{}"))
    return [
        Range(name, start, end, *(counts[name][k] for k in ("events", "dead", "suppressed", "blank")))
        for name, (start, end) in json.loads(summary.get(RANGES, "{}")).items()
    ]


def batch_id(ranges: Iterable[Range]) -> str:
    """The same for the same ranges."""
    text = "|".join(f"{r.source}[{r.start},{r.end})" for r in ranges)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def carried(head: Summary | None) -> dict[str, str]:
    """What every commit that is not an ingest carries on from the newest head."""
    return {OFFSETS: head[OFFSETS]} if head is not None and OFFSETS in head else {}


def ingest_summary(
    ancestors: Sequence[Summary], ranges: Sequence[Range], *, sealed_epoch: int, epoch: int
) -> dict[str, str]:
    """The summary of a batch that may land on this history, newest ancestor first.

    Raises:
        AlreadyLanded: it is there already.
        Fenced: a source's next line is not where this batch starts.
        EpochMoved: somebody was erased after the batch was sealed.
    """
    batch = batch_id(ranges)
    if any(summary.get(BATCH) == batch for summary in ancestors):
        raise AlreadyLanded
    offsets = offsets_of(ancestors[0]) if ancestors else {}
    for one in ranges:
        at = offsets.get(one.source, 0)
        if at != one.start:
            raise Fenced(f"the source stands at line {at}, this batch starts at {one.start}")
    if sealed_epoch != epoch:
        raise EpochMoved(f"sealed at epoch {sealed_epoch}, now {epoch}")
    offsets |= {one.source: one.end for one in ranges if not one.source.startswith(_TRANSIENT)}
    counts = {
        one.source: {"events": one.events, "dead": one.dead, "suppressed": one.suppressed, "blank": one.blank}
        for one in ranges
    }
    return {
        KIND: INGEST,
        OFFSETS: json.dumps(offsets, sort_keys=True),
        RANGES: json.dumps({one.source: [one.start, one.end] for one in ranges}, sort_keys=True),
        BATCH: batch,
        EPOCH: str(epoch),
        COUNTS: json.dumps(counts, sort_keys=True),
    }
