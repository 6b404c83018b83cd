"""Dead letters: events that did not fit, sealed like any other; listed, and driven again when mended."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from attrs import field, frozen

from lake.eventtypes import DEAD_LETTER
from lake.ingest import IngestSummary
from lake.lakehouse import Lake
from lake.sealer import letter_bytes
from lake.selection import EventRead
from lake.sources import HttpBatch

_FIELDS = ("reason", "field", "feed", "line", "raw", "event_id")


@frozen
class DeadLetter:
    """A rejected event.

    Attributes:
        reason, at_field: the broken rule, and the field that broke it.
        source, line: where it came from.
        raw: what was sent; personal, shown only on request.
        ref: the handle it is sealed under.
    """

    reason: str
    at_field: str | None
    source: str
    line: int
    ref: bytes = field(repr=False)
    raw: bytes = field(repr=False)


def dead_letters(lake: Lake) -> list[DeadLetter]:
    """Every dead letter that can be opened, in ingest order; those of erased people are gone."""
    replay = lake.replay()
    head = replay.resolve(None) if lake.events.snapshot() else None
    if head is None:
        return []
    events = replay.events(replay.files(head.snapshot_id), EventRead(DEAD_LETTER, _FIELDS))
    rows = events.frame.filter(~events.frame["shredded"])
    return [
        DeadLetter(
            row["reason"],
            row["field"],
            row["feed"],
            row["line"],
            row["subject_ref"],
            letter_bytes(row["raw"]),
        )
        for row in rows.iter_rows(named=True)
    ]


def redrive(
    lake: Lake, letters: list[DeadLetter], mend: Callable[[bytes], bytes] = lambda raw: raw
) -> IngestSummary:
    """Sends letters through ingest again, as one batch named by its content, so that twice is once.

    Args:
        mend: turns the raw line into what should have been sent (a registered schema may suffice).
    """
    lines = [mend(letter.raw) for letter in letters]
    digest = hashlib.sha256(b"\0".join(lines))
    for letter in letters:
        digest.update(f"|{letter.source}:{letter.line}".encode())
    return lake.ingestor().run(HttpBatch(lines, f"redrive:{digest.hexdigest()}", lake.types))
