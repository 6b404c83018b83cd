"""Whether the lake's tables and the record of publications are of one time, asked when they are used.

Each store remembers something of the others: the record of publications names snapshots of the lake's tables,
and the transparency log names publications and erasures that were carried through. A store that went back to
an older copy lacks what the others name. The restore gate asks the same of fence log and key pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from lake import Lake, SnapshotGone
from projections.errors import LakeBehind, LedgerBehind, PublicationExpired
from projections.ledger import Ledger, Publication
from projections.switching import is_behind
from projections.tables import ViewTables


class Restored:
    """Asks the stores of one lake about each other.

    Attributes:
        newest_logged: view → build of its newest publication, by the transparency log.
        newest_settled: the fence sequence that every publication has reached which readers see now: views
            are derived anew before an erasure ends.
    """

    def __init__(self, lake: Lake, ledger: Ledger, tables: ViewTables) -> None:
        self.newest_logged: Callable[[], Mapping[str, str]] = dict
        self.newest_settled: Callable[[], int] = int
        self._lake = lake
        self._ledger = ledger
        self._tables = tables

    def refuse_older_record(self, name: str) -> None:
        """Raises `LedgerBehind` where the log has a later publication of the view than the record."""
        newest = self.newest_logged().get(name)
        if newest is not None and self._ledger.by_build(newest) is None:
            raise LedgerBehind(f"a later publication of `{name}` is in the transparency log than on record")

    def refuse_before_erasure(self, publication: Publication) -> None:
        """Of what readers see now: raises `LedgerBehind` where it is of before an erasure that has ended.

        An erasure that could not derive a view anew withdraws it, which the record alone says.
        """
        name = publication.view
        settled = min(self.newest_settled(), self._lake.keyring.epoch())  # fences may have been given up
        if not is_behind(publication, publication.epoch, settled):
            return
        aside, release = self._ledger.aside().get(name), self._ledger.current()
        if aside is not None and aside.is_served:
            return
        if release is None or release.entries.get(name) != publication.publication_id:
            return  # an erasure ended since it was looked up
        raise LedgerBehind(
            f"on record `{name}` is of before fence {settled}, which no open request waits for: the record"
            " lacks what was published or withdrawn since"
        )

    def refuse_older_lake(self, names: Iterable[str] | None = None, *, events: bool = True) -> None:
        """Raises `LakeBehind` where tables of the lake lack the newest publication of a view.

        It is asked of withdrawn views as well: they are not to come back from an older input.

        Args:
            names: of views; all that were ever published where None are given.
            events: ask the table of events too, which builds that may read an older input do not need.

        Raises:
            LakeError: the catalog does not answer.
        """
        wanted = None if names is None else set(names)
        seen = [one for one in self._ledger.newest() if wanted is None or one.view in wanted]
        lacking = [one.view for one in seen if not self._tables.has(one.table, one.snapshot_id)]
        if lacking:
            raise lake_behind(lacking)
        if seen and events:
            newest = max(seen, key=lambda one: one.input_sequence)
            if self._parted(newest):
                raise LakeBehind(
                    f"the lake's events do not reach what `{newest.view}` was built from (commit"
                    f" {newest.input_sequence})"
                )

    @contextmanager
    def on_record(self, publication: Publication) -> Iterator[None]:
        """Reads rows that are on record; says why where they are missing.

        Raises:
            LakeBehind: the lake's tables are older than the record.
            PublicationExpired: a later publication is in the same table: somebody has expired this one.
        """
        try:
            yield
        except SnapshotGone:
            for later in self._ledger.history(publication.view):
                if later.publication_id <= publication.publication_id or later.table != publication.table:
                    continue
                if self._tables.has(later.table, later.snapshot_id):
                    raise PublicationExpired(
                        f"the rows of publication {publication.publication_id} of `{publication.view}` are"
                        f" gone: its snapshot in {publication.table} was expired, and not by Shredlake"
                    ) from None
            raise lake_behind([publication.view]) from None

    def _parted(self, publication: Publication) -> bool:
        """Whether the table of events went back behind a publication's input, however far it grew again."""
        metadata = self._lake.events.metadata()
        newest = max((one.sequence_number or 0 for one in metadata.snapshots), default=0)
        if newest < publication.input_sequence:
            return True
        return any(
            one.sequence_number == publication.input_sequence
            and one.snapshot_id != publication.input_snapshot
            for one in metadata.snapshots
        )


def lake_behind(views: Iterable[str]) -> LakeBehind:
    """What is raised where the tables of these views lack what readers see of them."""
    names = ", ".join(f"`{one}`" for one in views)
    return LakeBehind(f"the lake's tables lack publications that are on record of {names}")
