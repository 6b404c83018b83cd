"""Publications are dropped: their rows are deleted, and the ledger says when and why.

What readers see is never dropped, nor is the newest publication of a view with a floor of people: the next
one is compared with it, so that nobody is learned by subtraction. Such a publication is noted, nobody can
read it any more unless it is served, and its rows go with the next publication.

The ledger is written before rows are touched, and again when they are gone; a process that is killed anywhere
leaves what `settle` goes on with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Final

from attrs import frozen

from keys import ALL_PURPOSES, Effects
from projections.errors import PublicationDropped
from projections.ledger import Ledger, Publication
from projections.tables import ViewTables

EVERY_VIEW: Final = "*"
_AGGREGATE: Final = "aggregate"
Step = Callable[[int, int], None]
"""Called with how many publications are gone, and of how many."""


@frozen
class Chosen:
    """What a choice of old publications comes to.

    Attributes:
        publications: that go, newest first.
        compared: of a view with a floor, that stays until the next publication was compared with it.
    """

    publications: tuple[Publication, ...]
    compared: Publication | None = None


@frozen
class Contribution:
    """What a person gave to the lake: event type → the day on which the first of it came.

    Attributes:
        purpose: whose sealed fields are erased; `*` for all.
    """

    first_days: Mapping[str, date]
    purpose: str = ALL_PURPOSES

    def is_in(self, publication: Publication) -> bool:
        """Whether a publication may count the person, by its event types and by the day it was built."""
        read = publication.purposes
        if self.purpose != ALL_PURPOSES and read is not None and self.purpose not in read:
            return False
        built_on = datetime.fromisoformat(publication.built_at).date()
        types = {schema.rpartition("/v")[0] for schema in publication.schemas}
        return any(day <= built_on for name, day in self.first_days.items() if name in types)


class Dropping:
    """Drops publications of one lake.

    Args:
        floor_of: view → people under whom a row is left out, by its code of now; None without code.
        epoch: erasures so far.
    """

    def __init__(
        self,
        ledger: Ledger,
        tables: ViewTables,
        floor_of: Callable[[str], int | None],
        epoch: Callable[[], int],
        effects: Effects,
    ) -> None:
        self._ledger = ledger
        self._tables = tables
        self._floor_of = floor_of
        self._epoch = epoch
        self._effects = effects

    def choose(self, view: str, *, before: datetime | None = None, keep: int | None = None) -> Chosen:
        """Publications of a view that a command would drop; all but what readers see by default.

        Args:
            before: only those built before.
            keep: so many of the newest stay.
        """
        dropped = self._ledger.dropped()
        history = [one for one in self._ledger.history(view) if one.publication_id not in dropped]
        compared = self._compared(view)
        served = self._served()
        old = [
            one
            for one in history[keep or 0 :]
            if one.publication_id not in served
            and (before is None or datetime.fromisoformat(one.built_at) < before)
        ]
        kept = compared if compared in old else None
        return Chosen(tuple(one for one in old if one != kept), kept)

    def drop(
        self, publications: Sequence[Publication], *, why: str, step: Step = lambda done, total: None
    ) -> list[Publication]:
        """Drops publications; those that are served or compared with go later. Repeating it is success.

        What a killed process has noted and left goes as well. Returns those whose rows are gone.

        Raises:
            StorageFailed, CommitConflict: see `lake.drop_snapshots`; `settle` goes on.
        """
        if publications:
            self._ledger.drop(publications, why=why)
        return self.settle({one.view for one in (*publications, *self.owed())}, step)

    def affected(self, views: Collection[str], contribution: Contribution, epoch: int) -> list[Publication]:
        """Publications of aggregate views that count a person, dropped ones included, by view and id.

        Args:
            views: names; `*` stands for all.
            epoch: of the person's fence.
        """
        return [
            one
            for one in self._ledger.publications()
            if not {one.view, EVERY_VIEW}.isdisjoint(views)
            and one.personal
            and one.grain == _AGGREGATE
            and one.epoch < epoch
            and contribution.is_in(one)
        ]

    def settle(self, views: Collection[str], step: Step = lambda done, total: None) -> list[Publication]:
        """Deletes the rows of noted publications, as far as nothing needs them; returns those now gone.

        Rows that came back, with an older copy of the tables say, are deleted again.
        """
        noted = self._ledger.dropped()
        mine = [self._ledger.publication(i) for i, one in noted.items() if one.view in views]
        needed = self._served()
        for view in views:
            compared = self._compared(view)
            if compared is not None:
                needed.add(compared.publication_id)
        waiting = {one.table for one in self._ledger.heads.pending()}  # their heads may show what goes
        free = [
            one
            for one in mine
            if one.publication_id not in needed and self._tables.table_name(one.view) not in waiting
        ]
        gone: list[Publication] = []
        for done, one in enumerate(free, start=1):
            self._tables.drop_publication(one, self._effects)
            if not noted[one.publication_id].is_gone:
                gone.append(one)
            step(done, len(free))
        if gone:
            self._drop_unpublished({one.view for one in gone if one.personal and one.grain == _AGGREGATE})
            self._ledger.set_gone(gone)
        return gone

    def settle_owed(self, views: Iterable[str]) -> None:
        """`settle` of those of them that a publication may have freed."""
        owed = {one.view for one in self.owed()}.intersection(views)
        if owed:
            self.settle(owed)

    def refuse(self, publication_id: int) -> None:
        """Raises `PublicationDropped` of a noted publication, unless readers see it, served on as stale."""
        noted = self._ledger.dropped().get(publication_id)
        if noted is not None and publication_id not in self._served():
            raise PublicationDropped(noted.words())

    def owed(self) -> list[Publication]:
        """Noted publications whose rows are still there."""
        return [self._ledger.publication(i) for i, one in self._ledger.dropped().items() if not one.is_gone]

    def _drop_unpublished(self, views: Collection[str]) -> None:
        """Builds from before the newest fence, which can never be published, count people as well."""
        for view in sorted(views):
            builds = {one.build_id for one in self._ledger.history(view)}
            for table, snapshots in self._tables.unpublished(view, builds, self._epoch()).items():
                self._tables.drop(table, snapshots, self._effects)

    def _served(self) -> set[int]:
        release = self._ledger.current()
        return set(release.entries.values()) if release is not None else set()

    def _compared(self, view: str) -> Publication | None:
        """The newest publication of a view with a floor; of a view whose floor nobody knows, too."""
        history = self._ledger.history(view)
        if not history or not history[0].personal or history[0].grain != _AGGREGATE:
            return None
        floors = [floor for floor in (history[0].floor, self._floor_of(view)) if floor is not None]
        return history[0] if not floors or max(floors) > 1 else None
