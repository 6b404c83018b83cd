"""Moves the heads of views' tables, which every other engine reads, to what is published.

A head is a snapshot of its own whose files are those of the published build, in the same table. Its summary
says the release, the build and the fence sequence. It is moved by a guarded commit: inside every attempt the
intent is read anew, a head that knows a later fence is left alone, and rows from before an erasure that came
meanwhile are not brought forward. What is behind the fence and marked stale, or withdrawn, is no head: an
engine that reads tables sees no mark. The head before goes in the same commit: the branch has no past.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Final, Literal

from attrs import frozen
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.snapshots import TOTAL_RECORDS, Snapshot

from lake import CommitConflict, IcebergTable, SnapshotGone
from lake.branches import Branched
from lake.offsets import BUILD, EPOCH, KIND, RELEASE
from lake.table import MAX_ATTEMPTS, summary_of
from projections.errors import HeadAhead, StaleEpoch
from projections.headbook import HeadBook, Wanted, table_of
from projections.ledger import Ledger, Publication
from projections.switching import is_behind
from projections.tables import ViewTables

HEAD: Final = "head"


@frozen
class TableHead:
    """What a table's head is, against what it should be.

    Attributes:
        state: `published`, `empty` (as it should be), `waits` (for a head that is to be moved) or `foreign`
            (somebody else has moved it).
        snapshot_id: of the head; None where there is none.
        publication_id: whose rows it should show; None for none.
        epoch: the fence sequence in the head's summary.
    """

    table: str
    state: Literal["published", "empty", "waits", "foreign"]
    snapshot_id: int | None
    publication_id: int | None
    epoch: int


class Heads:
    """The heads of the tables of one lake's views.

    Args:
        epoch: reads the fence log.
    """

    def __init__(self, ledger: Ledger, tables: ViewTables, epoch: Callable[[], int]) -> None:
        self._ledger = ledger
        self._book: HeadBook = ledger.heads
        self._tables = tables
        self._epoch = epoch

    def is_due(self) -> bool:
        """Whether an intent waits; asks the ledger alone."""
        return not self._book.is_adopted() or bool(self._book.pending())

    def settle(self) -> None:
        """Fulfils every intent; repeating it is success.

        Raises:
            StaleEpoch: somebody was erased since one was decided; the views are to be built again.
            HeadAhead: a head knows a later fence than this lake's fence log.
            CatalogUnavailable, StorageFailed, CommitConflict: what is left stays written down.
        """
        self._adopt()
        behind = []
        for one in self._book.pending():
            try:
                self._move(one.table)
            except _FenceCame:
                behind.append(one.table)
        if behind:
            raise StaleEpoch(f"somebody was erased before the head of {', '.join(behind)} was moved")

    def look(self) -> list[TableHead]:
        """How every head stands, by the catalog."""
        return [self._standing(name) for name in sorted(self._tables.own_names())]

    def repair(self, tables: Collection[str]) -> None:
        """Moves heads back that somebody else has moved; errors as `settle`."""
        self._book.ask_again(tables)
        self.settle()

    def enforce(self) -> None:
        """Fulfils every intent, also where somebody else has written to a table of rows derived from people.

        Errors as `settle`.
        """
        self.repair([one.table for one in self.look() if one.state == "foreign" and self._is_of_people(one)])

    def oldest_fence(self, default: int) -> int:
        """The oldest fence sequence that a head with rows derived from people says, by the catalog.

        A table that should show nothing, or that somebody else has written to, counts as of before any fence
        while it shows rows.
        """
        found = [default]
        there = set(self._tables.own_names())
        for one in self._book.all():
            head = self._tables.table(one.table).snapshot() if one.table in there else None
            publication = self._publication(one)
            if head is None or (publication is not None and not publication.personal):
                continue
            if publication is not None or summary_of(head).get(TOTAL_RECORDS) != "0":
                found.append(int(summary_of(head).get(EPOCH, "-1")))
        return min(found)

    # -- inner -------------------------------------------------------------------------------------

    def _move(self, name: str) -> None:
        for _ in range(MAX_ATTEMPTS):
            wanted = self._book.of(name)
            if wanted is None or wanted.is_moved:
                return
            publication = self._publication(wanted)
            if publication is None and name not in self._tables.own_names():
                self._book.moved(wanted)  # it was withdrawn before it had a table
                return
            table, source = self._tables.table(name), None
            if publication is not None:
                source = self._tables.in_own_table(publication)
            rows = _Rows(*_files_of(table, source), publication)
            try:
                table.put(MAIN_BRANCH, partial(self._choose, wanted, rows))
            except _Overtaken:
                continue
            except (_There, SnapshotGone):  # the latter: a later head has replaced ours already
                pass
            if self._book.of(name) == wanted and _shows(table, wanted, rows):
                self._book.moved(wanted)
                return
        raise CommitConflict(f"{name}: somebody else moved its head {MAX_ATTEMPTS} times")

    def _choose(self, wanted: Wanted, rows: _Rows, metadata: TableMetadata) -> Branched:
        """The new head, by the newest metadata and the newest intent."""
        if self._book.of(wanted.table) != wanted:
            raise _Overtaken
        head = metadata.current_snapshot()
        if _is_head(head, wanted, rows.build_id):
            raise _There
        if head is not None and int(summary_of(head).get(EPOCH, "0")) > max(wanted.epoch, self._epoch()):
            raise HeadAhead(f"the head of {wanted.table} knows a later erasure than the fence log at hand")
        if rows.publication is not None and is_behind(rows.publication, wanted.epoch, self._epoch()):
            raise _FenceCame
        summary = {
            KIND: HEAD,
            RELEASE: str(wanted.release_id),
            EPOCH: str(wanted.epoch),
            **({BUILD: rows.build_id} if rows.build_id else {}),
        }
        return Branched(rows.files, summary, rows.schema, tuple(_old_heads(metadata)))

    def _standing(self, name: str) -> TableHead:
        table = self._tables.table(name)
        head = table.snapshot()
        wanted = self._book.of(name)
        publication = None if wanted is None else self._publication(wanted)
        build_id = "" if publication is None else publication.build_id
        state: Literal["published", "empty", "waits", "foreign"]
        if wanted is not None and not wanted.is_moved:
            state = "waits"
        elif wanted is None:
            state = "empty" if head is None else "foreign"
        elif not _is_head(head, wanted, build_id):
            state = "foreign"
        else:
            state = "empty" if publication is None else "published"
        return TableHead(
            name,
            state,
            None if head is None else head.snapshot_id,
            None if publication is None else publication.publication_id,
            0 if head is None else int(summary_of(head).get(EPOCH, "0")),
        )

    def _is_of_people(self, head: TableHead) -> bool:
        if head.publication_id is None:
            return True
        return self._ledger.publication(head.publication_id).personal

    def _publication(self, wanted: Wanted) -> Publication | None:
        if wanted.publication_id is None:
            return None
        return self._ledger.publication(wanted.publication_id)

    def _adopt(self) -> None:
        """Gives intents to a lake of the time when builds moved heads.

        Tables of single versions show nothing from now on: what is derived anew after an erasure does not
        come to them.
        """
        if self._book.is_adopted():
            return
        release, aside, epoch = self._ledger.current(), self._ledger.aside(), self._epoch()
        heads: list[tuple[str, int | None, int, int]] = []
        at = 0 if release is None else release.release_id
        for view, publication_id in (release.entries if release is not None else {}).items():
            one = self._ledger.publication(publication_id)
            is_shown = view not in aside and not is_behind(one, one.epoch, epoch)
            heads.append((table_of(view), publication_id if is_shown else None, at, epoch))
        known = {name for name, *_ in heads}
        heads += [(name, None, at, epoch) for name in self._tables.own_names() if name not in known]
        self._book.adopt(heads)


@frozen
class _Rows:
    """What a head is to show: files of this table, as they were written; none for an empty one."""

    files: list[DataFile]
    schema: Schema
    publication: Publication | None

    @property
    def build_id(self) -> str:
        """Of the publication; empty without one."""
        return "" if self.publication is None else self.publication.build_id


class _Overtaken(Exception):
    """Another intent has replaced this one."""


class _There(Exception):
    """The head is as it should be."""


class _FenceCame(Exception):
    """Somebody was erased since the release."""


def _files_of(table: IcebergTable, snapshot_id: int | None) -> tuple[list[DataFile], Schema]:
    metadata = table.metadata()
    if snapshot_id is None:
        return [], metadata.schema()
    snapshot = table.snapshot(snapshot_id)
    schema_id = metadata.current_schema_id if snapshot is None else snapshot.schema_id
    schema = next((one for one in metadata.schemas if one.schema_id == schema_id), metadata.schema())
    return table.files(snapshot_id), schema


def _is_head(head: Snapshot | None, wanted: Wanted, build_id: str) -> bool:
    summary = {} if head is None else summary_of(head)
    said = summary.get(KIND), summary.get(RELEASE), summary.get(EPOCH), summary.get(BUILD, "")
    return said == (HEAD, str(wanted.release_id), str(wanted.epoch), build_id)


def _shows(table: IcebergTable, wanted: Wanted, rows: _Rows) -> bool:
    """Whether the catalog's newest head is the wanted one, with its very files."""
    head = table.snapshot()
    if head is None or not _is_head(head, wanted, rows.build_id):
        return False
    shown = sorted(one.file_path for one in table.files(head.snapshot_id))
    return shown == sorted(one.file_path for one in rows.files)


def _old_heads(metadata: TableMetadata) -> Iterator[int]:
    """Heads of before, less those that somebody has named."""
    named = {ref.snapshot_id for name, ref in metadata.refs.items() if name != MAIN_BRANCH}
    for snapshot in metadata.snapshots:
        if summary_of(snapshot).get(KIND) == HEAD and snapshot.snapshot_id not in named:
            yield snapshot.snapshot_id
