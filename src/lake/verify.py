"""`lake verify`: what can be proven from metadata alone, and what from the data.

The newest summary holds the whole account, so the proof does not need the snapshots that expired: every
source's lines add up, the sources add up to the totals, and the totals say how many events there must be.
Kept snapshots show besides that no commit ever began where it should not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import asdict, define, field, frozen
from pyiceberg.table.snapshots import Snapshot

from lake.lakehouse import Lake
from lake.offsets import (
    INGEST,
    KIND,
    Account,
    Accounts,
    Range,
    Totals,
    accounts_of,
    ranges_of,
    settled_of,
    totals_of,
)
from lake.selection import block_rows
from lake.settled import SourceBook
from lake.table import IcebergTable, summary_of

_SOURCES_SHOWN = 5
_TAKEN_AWAY = ("superseded", "redacted", "expired")


@frozen
class Verified:
    """Findings of a check; empty `problems` means all is well.

    Attributes:
        snapshots, ranges: looked at; `expired` snapshots are gone, and with them their ranges alone.
        sources: that were ever ingested.
        events: ingested so far; `superseded` were duplicates, and compaction dropped them.
        stored: events and letters counted in the data, where `deep`.
        future: of `events`, those dated further ahead than their type's `future_days` when they came, and the
            sources with the most of them: a clock or a field of theirs is wrong.
    """

    snapshots: int
    expired: int
    ranges: int
    sources: int
    events: int
    superseded: int
    stored: int | None
    problems: tuple[str, ...]
    future: int = 0
    future_sources: tuple[tuple[str, int], ...] = ()


def verify(lake: Lake, deep: bool = False) -> Verified:
    """Proves that every line of every source was taken once, and that no event is missing since.

    Args:
        deep: also reads every data file to its end, and counts the events in it.

    Raises:
        AccountDamaged: a list of settled sources is not the one that the table names.
        StorageFailed: a file cannot be read.
    """
    history = list(reversed(lake.events.history()))
    walk = _Walk()
    for snapshot in history:
        walk.take(snapshot)
    if not history:
        return Verified(0, 0, 0, 0, 0, 0, None, ())
    head = history[-1]
    summary = summary_of(head)
    accounts = {**SourceBook(lake.events).settled(settled_of(summary)), **accounts_of(summary)}
    totals = totals_of(summary)
    ahead = [(name, one.future) for name, one in accounts.items() if one.future]
    problems = [*walk.problems, *_unproven(list(accounts.values()), totals)]
    stored = None
    if deep:
        stored, more = _counted(lake.events, head.snapshot_id, totals)
        problems += more
    return Verified(
        len(history),
        walk.expired,
        walk.ranges,
        len(accounts),
        totals.events,
        totals.superseded,
        stored,
        tuple(problems),
        totals.future,
        tuple(sorted(ahead, key=lambda one: -one[1])[:_SOURCES_SHOWN]),
    )


@define
class _Walk:
    """From snapshot to snapshot, oldest first."""

    at: dict[str, int] = field(factory=dict)
    totals: Totals = field(factory=Totals)
    last: int = 0
    expired: int = 0
    ranges: int = 0
    problems: list[str] = field(factory=list)

    def take(self, snapshot: Snapshot) -> None:
        """Looks at the next one."""
        summary = summary_of(snapshot)
        sequence = snapshot.sequence_number or 0
        missing = sequence - self.last - 1
        self.expired += missing
        self.last = sequence
        ranges = ranges_of(summary) if summary.get(KIND) == INGEST else []
        self.ranges += len(ranges)
        self._follow(ranges, accounts_of(summary), known=not missing)
        self._add_up(ranges, totals_of(summary), known=not missing)

    def _follow(self, ranges: Sequence[Range], accounts: Accounts, *, known: bool) -> None:
        """No range begins elsewhere than where its source stood, and the source adds up behind it."""
        for one in ranges:
            expected = self.at.get(one.source, 0)
            # A source that is not known may have gone on in a snapshot that expired.
            gap = one.start > expected and (not self.expired or (known and one.source in self.at))
            if one.start < expected or gap:
                kind = "gap" if gap else "overlap"
                self.problems.append(f"{kind} in a source: line {expected} was next, {one.start} came")
            if not one.adds_up():
                self.problems.append(f"a range of {one.end - one.start} lines does not add up")
            account = accounts.get(one.source, Account())
            if account.next != one.end or not account.adds_up():
                self.problems.append(f"a source's account does not add up behind line {one.end}")
            self.at[one.source] = one.end
        if not known:
            self.at = {one.source: one.end for one in ranges}

    def _add_up(self, ranges: Sequence[Range], totals: Totals, *, known: bool) -> None:
        """The totals grow by what came in, and otherwise by what compaction and redaction took away."""
        least = self.totals
        for one in ranges:
            least = least.plus(one)
        grown = {name: count - asdict(least)[name] for name, count in asdict(totals).items()}
        exact = known and any(count for name, count in grown.items() if name not in _TAKEN_AWAY)
        if exact or min(grown.values()) < 0:
            self.problems.append(f"totals do not follow from those before, at commit {self.last}")
        self.totals = totals


def _unproven(accounts: Sequence[Account], totals: Totals) -> Iterator[str]:
    """What the head's own account does not prove."""
    wrong = sum(not one.adds_up() for one in accounts)
    if wrong:
        yield f"{wrong} source(s) do not add up"
    sums = Totals(
        sum(one.next for one in accounts),
        sum(one.events for one in accounts),
        sum(one.dead for one in accounts),
        sum(one.suppressed for one in accounts),
        sum(one.blank for one in accounts),
        totals.superseded,
        totals.redacted,
        totals.expired,
        sum(one.future for one in accounts),
    )
    if sums != totals:
        yield f"the sources hold {sums.lines} lines, the totals say {totals.lines}, or their counts differ"


def _counted(table: IcebergTable, snapshot_id: int, totals: Totals) -> tuple[int, list[str]]:
    """(events and letters in the data, problems); two small columns of one file at a time are read."""
    stored = 0
    problems = []
    for data_file in table.files(snapshot_id):
        if (damage := table.damage_of(data_file)) is not None:
            problems.append(f"{damage.message}. {damage.next_step}")
            continue
        rows = block_rows(table, [data_file], None, columns=("event_count", "primary"))
        stored += int(rows.filter("primary")["event_count"].sum())
        if rows.height != data_file.record_count:
            problems.append(
                f"a data file holds {rows.height} blocks, its manifest says {data_file.record_count}"
            )
    if stored != totals.stored:
        problems.append(f"{stored} events are stored, {totals.stored} must be")
    return stored, problems
