"""What a snapshot's summary says of sources, and the decision whether a batch may land. Pure.

Every summary holds the whole account of the lake so far, so that the newest alone proves it: per source
where it stands and what became of its lines, and the totals. Streams stay in the summary. Files and
batches end, and there is no limit to their number: all but the newest are written down in lists of
settled sources, which the summary names (docs/adr/0026).
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from attrs import asdict, astuple, evolve, frozen

from lake.errors import EpochMoved, Fenced
from lake.letterkeys import LETTERS, LetterKey, LetterKeys, letter_keys_of, taken

KIND: Final = "shredlake.kind"
OFFSETS: Final = "shredlake.offsets"
TOTALS: Final = "shredlake.totals"
SETTLED: Final = "shredlake.settled"
DROPPED: Final = "shredlake.dropped"
RANGES: Final = "shredlake.ranges"
BATCH: Final = "shredlake.batch"
EPOCH: Final = "shredlake.epoch"
COUNTS: Final = "shredlake.counts"
RELEASE: Final = "shredlake.release"
BUILD: Final = "shredlake.build"
INGEST: Final = "ingest"
UPKEEP: Final = "upkeep"
REDACTION: Final = "redaction"
ENDING: Final = ("file:", "http:")
"""What the names of sources begin with that have an end."""
UNSETTLED_SOURCES: Final = 32
"""So many sources that end stay in the summary; it is repeated in every kept snapshot."""

Summary = Mapping[str, str]


class AlreadyLanded(Exception):
    """An ancestor carries this very batch."""


@frozen
class Range:
    """Lines [start, end) of a source, and what became of them.

    Attributes:
        future: of `events`, those dated further ahead than their type's `future_days`.
    """

    source: str
    start: int
    end: int
    events: int
    dead: int
    suppressed: int
    blank: int
    future: int = 0

    def adds_up(self) -> bool:
        """Whether every line is accounted for."""
        return self.events + self.dead + self.suppressed + self.blank == self.end - self.start


@frozen
class Account:
    """A source: the lines before `next`, and what became of them since its first."""

    next: int = 0
    events: int = 0
    dead: int = 0
    suppressed: int = 0
    blank: int = 0
    future: int = 0

    def adds_up(self) -> bool:
        """Whether every line is accounted for."""
        return self.events + self.dead + self.suppressed + self.blank == self.next

    def plus(self, one: Range) -> Account:
        """With the lines that follow."""
        return Account(
            one.end,
            self.events + one.events,
            self.dead + one.dead,
            self.suppressed + one.suppressed,
            self.blank + one.blank,
            self.future + one.future,
        )


Accounts = Mapping[str, Account]


@frozen
class Totals:
    """What became of all lines of all sources, and of the events since.

    Attributes:
        future: of `events`, those dated further ahead than their type's `future_days` when they came.
        superseded: events that the duplicate rule dropped; `redacted` letters that named an erased person;
            `expired` letters of nobody's that were kept for as long as the settings say.
    """

    lines: int = 0
    events: int = 0
    dead: int = 0
    suppressed: int = 0
    blank: int = 0
    superseded: int = 0
    redacted: int = 0
    expired: int = 0
    future: int = 0

    @property
    def stored(self) -> int:
        """Events and letters that the live files hold."""
        return self.events + self.dead - self.superseded - self.redacted - self.expired

    def plus(self, one: Range) -> Totals:
        """With the lines of a range."""
        return evolve(
            self,
            lines=self.lines + one.end - one.start,
            events=self.events + one.events,
            dead=self.dead + one.dead,
            suppressed=self.suppressed + one.suppressed,
            blank=self.blank + one.blank,
            future=self.future + one.future,
        )


@frozen
class SettledList:
    """A file beside the table's metadata that lists sources.

    Attributes:
        name: of the file; `sha256` of its bytes in hex; `sources` in it.
    """

    name: str
    sha256: str
    sources: int


def source_number(name: str) -> int:
    """The number that rows carry in place of a source's name; never 0, which blocks of L1 carry."""
    return zlib.crc32(name.encode()) & 0x7FFFFFFF or 1


def accounts_of(summary: Summary) -> dict[str, Account]:
    """The sources that are in the summary itself."""
    return {name: Account(*counts) for name, counts in json.loads(summary.get(OFFSETS, "{}")).items()}


def offsets_of(summary: Summary) -> dict[str, int]:
    """Next line per source that is in the summary itself, every stream among them."""
    return {name: one.next for name, one in accounts_of(summary).items()}


def totals_of(summary: Summary) -> Totals:
    """The account of the whole lake."""
    return Totals(**json.loads(summary.get(TOTALS, "{}")))


def settled_of(summary: Summary) -> tuple[SettledList, ...]:
    """The lists of settled sources, oldest first; what a later one says of a source holds."""
    return tuple(SettledList(*one) for one in json.loads(summary.get(SETTLED, "[]")))


def dropped_of(summary: Summary) -> int:
    """The newest fence up to which sorted days are known to hold no dead bytes."""
    return int(summary.get(DROPPED, "0"))


def ranges_of(summary: Summary) -> list[Range]:
    """This commit's ranges with their counts."""
    counts = json.loads(summary.get(COUNTS, "{}"))
    return [
        Range(name, start, end, **counts[name])
        for name, (start, end) in json.loads(summary.get(RANGES, "{}")).items()
    ]


def batch_id(ranges: Iterable[Range]) -> str:
    """The same for the same ranges."""
    text = "|".join(f"{r.source}[{r.start},{r.end})" for r in ranges)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def upkeep_summary(
    head: Summary,
    *,
    epoch: int,
    superseded: int = 0,
    redacted: int = 0,
    expired: int = 0,
    dropped: int = 0,
    letters: LetterKeys | None = None,
    kind: str = UPKEEP,
) -> dict[str, str]:
    """The summary of a commit that ingests nothing: the newest head's account goes on.

    Args:
        superseded, redacted, expired: events and letters that this commit takes away.
        dropped: see `dropped_of`; 0 where nobody has looked.
        letters: what holds of letters of nobody's from here on; default: what the head says.
        kind: `REDACTION` where letters that stay were sealed anew, so that this commit alone can show them.
    """
    was = totals_of(head)
    totals = evolve(
        was,
        superseded=was.superseded + superseded,
        redacted=was.redacted + redacted,
        expired=was.expired + expired,
    )
    return {KIND: kind, EPOCH: str(epoch)} | _account(
        accounts_of(head),
        totals,
        settled_of(head),
        max(dropped, dropped_of(head)),
        letters or letter_keys_of(head),
    )


def to_settle(head: Summary) -> dict[str, Account]:
    """Sources of the head that the next batch should leave to a list; mostly none."""
    ending = {name: one for name, one in accounts_of(head).items() if name.startswith(ENDING)}
    return ending if len(ending) >= UNSETTLED_SOURCES else {}


def lists_to_join(lists: Sequence[SettledList], sources: int) -> int:
    """How many of the newest lists are written anew together with so many more sources.

    A list is joined with what is at least as large, so that there are few, and each source is written
    anew as often as there are lists.
    """
    count = 0
    for one in reversed(lists):
        if one.sources > sources:
            break
        count, sources = count + 1, sources + one.sources
    return count


def ingest_summary(
    ancestors: Sequence[Summary],
    ranges: Sequence[Range],
    *,
    sealed_epoch: int,
    epoch: int,
    settled: Accounts | None = None,
    letters: LetterKey | None = None,
) -> dict[str, str]:
    """The summary of a batch that may land on this history, newest ancestor first.

    Args:
        settled: what the lists say of sources of this batch.
        letters: the key that its letters of nobody's are sealed under, where there are such.

    Raises:
        AlreadyLanded: it is there already.
        Fenced: a source's next line is not where this batch starts.
        EpochMoved: somebody was erased after the batch was sealed, or its letters' key was replaced.
    """
    batch = batch_id(ranges)
    if any(summary.get(BATCH) == batch for summary in ancestors):
        raise AlreadyLanded
    head = ancestors[0] if ancestors else {}
    accounts, totals = accounts_of(head), totals_of(head)
    for one in ranges:
        account = accounts.get(one.source) or (settled or {}).get(one.source, Account())
        if account.next != one.start:
            raise Fenced(f"the source stands at line {account.next}, this batch starts at {one.start}")
        accounts[one.source] = account.plus(one)
        totals = totals.plus(one)
    if sealed_epoch != epoch:
        raise EpochMoved(f"sealed at epoch {sealed_epoch}, now {epoch}")
    counts = {
        one.source: {
            "events": one.events,
            "dead": one.dead,
            "suppressed": one.suppressed,
            "blank": one.blank,
            "future": one.future,
        }
        for one in ranges
    }
    return {
        KIND: INGEST,
        RANGES: json.dumps({one.source: [one.start, one.end] for one in ranges}, sort_keys=True),
        BATCH: batch,
        EPOCH: str(epoch),
        COUNTS: json.dumps(counts, sort_keys=True),
        **_account(
            accounts, totals, settled_of(head), dropped_of(head), taken(letter_keys_of(head), letters)
        ),
    }


def settled_summary(summary: Summary, gone: Iterable[str], lists: Sequence[SettledList]) -> dict[str, str]:
    """A summary without the sources that were written into a list, unless its own batch goes on with them."""
    left = accounts_of(summary)
    for name in set(gone) - {one.source for one in ranges_of(summary)}:
        left.pop(name, None)
    return {
        **summary,
        **_account(left, totals_of(summary), lists, dropped_of(summary), letter_keys_of(summary)),
    }


def _account(
    accounts: Accounts,
    totals: Totals,
    lists: Sequence[SettledList],
    dropped: int = 0,
    letters: LetterKeys = LetterKeys(),
) -> dict[str, str]:
    return {
        OFFSETS: json.dumps({name: astuple(one) for name, one in accounts.items()}, sort_keys=True),
        TOTALS: json.dumps(asdict(totals)),
        SETTLED: json.dumps([astuple(one) for one in lists]),
        DROPPED: str(dropped),
        LETTERS: letters.text(),
    }
