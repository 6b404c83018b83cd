"""Which key a day's letters of nobody's are sealed under, kept in the table's newest summary. Pure.

It stands there, and nowhere else, so that a commit and the key it counts on are compared in one atomic step:
a batch that was sealed under a key that was replaced meanwhile does not land (docs/adr/0056).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from typing import Final

from attrs import evolve, field, frozen

from lake.errors import EpochMoved

LETTERS: Final = "shredlake.letters"
_DAYS: Final = 3
"""So many ingest days stay on record; who writes with a slow clock is in one of them."""


@frozen
class LetterKeys:
    """What a summary says of letters of nobody's.

    Attributes:
        keys: ingest day → handle of the key that its letters are sealed under.
        until: letters of days before it are gone by age, and so are their keys; None where nobody has looked.
        owes: letters were taken out by age whose keys are still to be destroyed.
    """

    keys: Mapping[date, bytes] = field(factory=dict)
    until: date | None = None
    owes: bool = False

    def with_key(self, day: date, ref: bytes) -> LetterKeys:
        """With another key for a day; the oldest days are forgotten."""
        kept = {**self.keys, day: ref}
        newest = sorted(kept)[-_DAYS:]
        return evolve(self, keys={one: kept[one] for one in newest})

    def text(self) -> str:
        """For a summary."""
        keys = {day.isoformat(): ref.hex() for day, ref in sorted(self.keys.items())}
        until = self.until.isoformat() if self.until else None
        return json.dumps({"keys": keys, "until": until, "owes": self.owes})


@frozen
class LetterKey:
    """The key that a batch's letters of nobody's are sealed under.

    Attributes:
        instead_of: the key that stood there when the batch was sealed; None where there was none.
    """

    day: date
    ref: bytes
    instead_of: bytes | None


def letter_keys_of(summary: Mapping[str, str]) -> LetterKeys:
    """Out of a summary; of one from before there were days' keys, nothing."""
    found = json.loads(summary.get(LETTERS, "{}"))
    until = found.get("until")
    return LetterKeys(
        {date.fromisoformat(day): bytes.fromhex(ref) for day, ref in found.get("keys", {}).items()},
        date.fromisoformat(until) if until else None,
        found.get("owes", False),
    )


def taken(head: LetterKeys, used: LetterKey | None) -> LetterKeys:
    """What follows from a batch whose letters were sealed under a key.

    Raises:
        EpochMoved: the day has another key since: seal them again, under that one.
    """
    if used is None:
        return head
    if head.keys.get(used.day) not in (used.ref, used.instead_of):
        raise EpochMoved("the day's letters are sealed under another key since")
    return head.with_key(used.day, used.ref)
