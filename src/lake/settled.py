"""Lists of settled sources: files beside the table's metadata, so that no summary grows with them.

A list is JSON Lines, sorted by name: `["file:…", next line, events, dead, suppressed, blank]`. It is written
before the commit whose summary names it, with its digest, and never changed; one that no kept summary names
is swept like any other file.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from attrs import astuple
from pyiceberg.table.metadata import TableMetadata

from lake.errors import AccountDamaged
from lake.letterkeys import LetterKey
from lake.objects import SETTLED_END
from lake.offsets import (
    Account,
    Accounts,
    Range,
    SettledList,
    accounts_of,
    ingest_summary,
    lists_to_join,
    settled_of,
    settled_summary,
    to_settle,
)
from lake.table import IcebergTable, summary_of

_KEPT_LISTS: Final = 16


class SourceBook:
    """What the table knows of its sources, settled ones included.

    Args:
        table: the events table.
    """

    def __init__(self, table: IcebergTable) -> None:
        self._table = table
        self._read: OrderedDict[str, bytes] = OrderedDict()

    def settled(self, lists: Sequence[SettledList], names: Collection[str] | None = None) -> Accounts:
        """What the lists say of these sources; default: of all.

        Raises:
            AccountDamaged: a list is not what the summary says.
            StorageFailed: it cannot be read.
        """
        found: dict[str, Account] = {}
        for one in reversed(lists):
            content = self._content(one)
            lines = content.splitlines() if names is None else _lines_of(content, names)
            found = _parsed(lines) | found
        return found

    def next_line(self, name: str) -> int:
        """Where a source stands, by the table's head. Raises as `settled`."""
        head = self._table.snapshot()
        if head is None:
            return 0
        summary = summary_of(head)
        known = accounts_of(summary).get(name) or self.settled(settled_of(summary), {name}).get(name)
        return known.next if known is not None else 0

    def summary(
        self,
        metadata: TableMetadata,
        ranges: Sequence[Range],
        *,
        sealed_epoch: int,
        epoch: int,
        letters: LetterKey | None = None,
    ) -> dict[str, str]:
        """The summary of a batch on this metadata; writes a list first where it is time for one.

        Raises:
            AlreadyLanded, Fenced, EpochMoved: see `ingest_summary`.
            AccountDamaged, StorageFailed: see `settled`.
        """
        ancestors = [summary_of(one) for one in self._table.history(metadata)]
        head = ancestors[0] if ancestors else {}
        lists = settled_of(head)
        elsewhere = {one.source for one in ranges} - accounts_of(head).keys()
        summary = ingest_summary(
            ancestors,
            ranges,
            sealed_epoch=sealed_epoch,
            epoch=epoch,
            settled=self.settled(lists, elsewhere) if elsewhere else {},
            letters=letters,
        )
        if leaving := to_settle(head):
            summary = settled_summary(summary, leaving, self._settle(lists, leaving))
        return summary

    def _settle(self, lists: Sequence[SettledList], accounts: Accounts) -> list[SettledList]:
        """The lists with these sources in a new one, which small ones are joined with."""
        count = lists_to_join(lists, len(accounts))
        kept, joined = lists[: len(lists) - count], lists[len(lists) - count :]
        return [*kept, self._write({**self.settled(joined), **accounts})]

    def _write(self, accounts: Accounts) -> SettledList:
        lines = (json.dumps([name, *astuple(one)]) for name, one in sorted(accounts.items()))
        content = "".join(f"{line}\n" for line in lines).encode()
        name = f"{uuid.uuid4().hex}{SETTLED_END}"
        self._table.write_beside(name, content)
        self._remember(name, content)
        return SettledList(name, hashlib.sha256(content).hexdigest(), len(accounts))

    def _content(self, one: SettledList) -> bytes:
        if one.name not in self._read:
            content = self._table.read_beside(one.name)
            if hashlib.sha256(content).hexdigest() != one.sha256:
                raise AccountDamaged("a list of settled sources is not the one that the table names")
            self._remember(one.name, content)
        self._read.move_to_end(one.name)
        return self._read[one.name]

    def _remember(self, name: str, content: bytes) -> None:
        self._read[name] = content
        while len(self._read) > _KEPT_LISTS:
            self._read.popitem(last=False)


def _lines_of(content: bytes, names: Iterable[str]) -> Iterator[bytes]:
    """The lines of these names; parsing all of them takes a hundred times as long as looking for one."""
    for name in names:
        at = content.find(f"[{json.dumps(name)}, ".encode())
        if at >= 0:
            yield content[at : content.index(b"\n", at)]


def _parsed(lines: Iterable[bytes]) -> dict[str, Account]:
    return {name: Account(*counts) for name, *counts in map(json.loads, lines)}
