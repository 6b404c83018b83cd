"""Views as their users see them: build, publish, roll back, read now, read as of a moment."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl
from attrs import field, frozen

from keys import Keyring, Shredded, SubjectId
from lake import Lake, UnknownEventType, build_tag, checked_moment
from lake.inputs import Inputs
from projections.build import Builder, Progress
from projections.buildlocks import BuildLocks
from projections.built import Built
from projections.definition import SUBJECT, View
from projections.derive import types_of, view_is_personal
from projections.differencing import Guarded
from projections.dropping import Dropping
from projections.errors import DefinitionError, NotPublished, OlderBuild, StaleEpoch
from projections.exposure import refuse_exposed
from projections.heads import Heads
from projections.keptsource import Files, other_code
from projections.ledger import Ledger, Publication, Release
from projections.literals import refuse_ids
from projections.reconciling import Reconciled, Reconciler
from projections.registry import ViewRegistry
from projections.remains import Remains
from projections.restored import Restored
from projections.state import StateStore
from projections.tables import AGGREGATE, ViewTables

_PUBLISH_TRIES: Final = 20


@frozen
class Answer:
    """Rows of a view and where they come from.

    Attributes:
        rows: of a subject-grain view without the handle, one per person that can be opened.
        shredded: how many rows belong to erased people.
        withheld: rows left out because fewer people than the view's floor would explain their difference.
        stale: why it is from before an erasure and still served; None where it is not.
    """

    rows: pl.DataFrame = field(repr=False)
    publication: Publication
    shredded: int = 0
    withheld: int = 0
    stale: str | None = None


@frozen
class PersonAnswer:
    """All rows of one person, or the receipt that says why there are none; empty when there never was one.

    Attributes:
        held: a legal hold stands, so that no row is shown, whether there is one or not.
    """

    rows: tuple[dict[str, Any], ...] = field(repr=False)
    shredded: Shredded | None
    publication: Publication
    held: bool = False

    @property
    def row(self) -> dict[str, Any] | None:
        """The first of the rows, for views that have one row per person."""
        return self.rows[0] if self.rows else None


class Views:
    """All views of a lake."""

    def __init__(
        self,
        lake: Lake,
        registry: ViewRegistry,
        builder: Builder,
        tables: ViewTables,
        ledger: Ledger,
        states: StateStore,
        locks: BuildLocks,
        heads: Heads,
    ) -> None:
        self._lake = lake
        self.heads = heads
        self._locks = locks
        self._keyring: Keyring = lake.keyring
        self.epoch: Callable[[], int] = self._keyring.epoch
        self.registry = registry
        self.builder = builder
        self.ledger = ledger
        self.states = states
        self.restored = Restored(lake, ledger, tables)
        self._tables = tables
        self.dropping = Dropping(ledger, tables, registry.floor_of, lake.keyring.epoch, lake.effects)
        self.remains = Remains(ledger, tables, states)
        self._reconciler = Reconciler(lake, ledger)

    def build(
        self,
        names: Sequence[str],
        *,
        snapshot_id: int | None = None,
        rebuild: bool = False,
        accept_changed: bool = False,
        who: str = "",
        why: str = "",
        progress: Progress = lambda what, done, total: None,
        wait_seconds: float | None = None,
    ) -> list[Built]:
        """Builds without publishing, one builder of a view at a time, with the view files as they are now.

        Args:
            accept_changed: see `Builder.build`.
            wait_seconds: for another builder of one of them; None waits for its end.

        Raises:
            BuildUnderWay: it has not ended by then.
            LakeBehind: an older copy of the lake's tables was brought back.
            DefinitionError: a version that readers do not see yet would show personal values in clear, and
                its author says no reason; the version that they see is derived anew, after an erasure say.
        """
        self.restored.refuse_older_lake(names, events=False)
        with self._locks.held(names, wait_seconds), self._pinned(snapshot_id) as pinned:
            return self.builder.build(
                self._read(names),
                snapshot_id=pinned,
                rebuild=rebuild,
                accept_changed=accept_changed,
                who=who,
                why=why,
                progress=progress,
            )

    def bring_up_to_date(
        self,
        names: Sequence[str],
        *,
        snapshot_id: int | None = None,
        rebuild: bool = False,
        accept_changed: bool = False,
        older: bool = False,
        who: str,
        why: str,
        progress: Progress = lambda what, done, total: None,
    ) -> tuple[list[Built], Release]:
        """Builds and publishes, whatever is erased or built beside it; errors as `Builder.build`.

        Raises:
            StaleEpoch: erasures came faster than the views could be built.
            OlderBuild: see `publish`; what somebody else published meanwhile is caught up with first.
        """
        self.restored.refuse_older_lake(names, events=not older)
        with self._locks.held(names):
            views = self._read(names)
            for attempt in range(1, _PUBLISH_TRIES + 1):
                with self._pinned(snapshot_id) as pinned:
                    built = self.builder.build(
                        views,
                        snapshot_id=pinned,
                        rebuild=rebuild and attempt == 1,
                        accept_changed=accept_changed,
                        who=who,
                        why=why,
                        progress=progress,
                    )
                    try:
                        return built, self.publish(built, older=older, who=who, why=why)
                    except StaleEpoch:
                        if attempt == _PUBLISH_TRIES:
                            raise
                    except OlderBuild:
                        head = self._lake.events.snapshot()
                        if snapshot_id is not None or head is None or head.snapshot_id == pinned:
                            raise
        raise AssertionError("the last try returns or raises")

    def shown(self) -> list[dict[str, Any]]:
        """Columns in clear of what readers see that can show a personal value: each with its `view`."""
        release = self.ledger.current()
        entries = release.entries if release is not None else {}
        return [
            {"view": name, **one}
            for name, publication_id in sorted(entries.items())
            for one in self.ledger.publication(publication_id).exposes or ()
        ]

    def _read(self, names: Sequence[str]) -> list[View]:
        """Views of one reading of their files: what is judged here is what is built."""
        self.registry.refresh()
        views = [self.registry.get(name) for name in names]
        self._refuse_exposed(views)
        return views

    def _refuse_exposed(self, views: Sequence[View]) -> None:
        release = self.ledger.current()
        entries = release.entries if release is not None else {}
        for view in views:
            seen = entries.get(view.name)
            if seen is None or self.ledger.publication(seen).version != self.builder.version_of(view):
                types = types_of(self._lake.types, view)
                refuse_exposed(view, types)
                refuse_ids(view, self._keyring, types)

    def publish(self, built: Sequence[Built], *, older: bool = False, who: str, why: str) -> Release:
        """Switches readers to built versions in one commit, then the heads of their tables, one by one.

        Args:
            older: readers may go back to an older input; `roll_back` goes one publication back without it.

        Raises:
            StaleEpoch: somebody was erased since; build again.
            OlderBuild: readers see a newer input of one of the views.
            HeadAhead, LakeError: readers of the release are switched; the heads follow with the next chance.
        """
        publications = [one.publication for one in built]
        current = self.ledger.current()
        recorded = [self.ledger.by_build(one.build_id) for one in publications]
        if current is not None and all(
            one is not None and current.entries.get(one.view) == one.publication_id for one in recorded
        ):
            self.heads.settle()
            return current  # readers see these very builds already
        self._keep_sources(built)
        release = self.ledger.release(publications, epoch=self._keyring.epoch, older=older, who=who, why=why)
        self._keep_sources(built)  # again: whoever dropped publications meanwhile saw no need of them
        self._tag_inputs(publications)
        self.heads.settle()
        self.dropping.settle_owed(one.view for one in publications)
        return release

    def roll_back(self, name: str, *, who: str, why: str) -> Release:
        """Switches a view back to the publication before, in one commit.

        Raises:
            NotPublished: there is none before.
            StaleEpoch: the earlier version would bring an erased person back.
        """
        self.registry.get(name)
        release = self.ledger.current()
        history = self.ledger.history(name)
        now = release.entries.get(name) if release is not None else None
        gone = self.ledger.dropped()
        earlier = [
            p for p in history if now is not None and p.publication_id < now and p.publication_id not in gone
        ]
        if not earlier:
            raise NotPublished(f"`{name}` has no publication before the current one")
        release = self.ledger.revert([earlier[0]], epoch=self._keyring.epoch, who=who, why=why)
        self.heads.settle()
        return release

    def personal_names(self) -> list[str]:
        """Views that an erasure touches."""
        return [name for name in self.registry.names() if self.is_personal(name)]

    def is_personal(self, name: str) -> bool:
        """Whether an erasure touches a view; so it is where that cannot be told."""
        try:
            return view_is_personal(self._lake.types, self.registry.get(name))
        except UnknownEventType:
            return True

    def forget_people(self, refs: Sequence[bytes]) -> list[int]:
        """Destroys the states of the buckets these handles are in, of every version ever built.

        Their next build derives them anew, without whoever was erased. Returns the buckets.
        """
        return self.builder.forget_people(refs)

    def publication(self, name: str, at: datetime | None = None) -> Publication:
        """The publication readers saw at a moment.

        Raises:
            MomentRefused: no moment of the past.
            UnknownView: neither defined nor ever published.
            NotPublished: nothing was published then; says since when something is.
            PublicationDropped: what was published then was dropped since; says when and why.
            LedgerBehind: an older record of publications was restored: it may show who was erased since.
        """
        if at is not None:
            at = checked_moment(at, self._lake.clock())
        self.restored.refuse_older_record(name)
        release = self.ledger.current(at)
        if release is not None and name in release.entries:
            self.dropping.refuse(release.entries[name])
            found = self.ledger.publication(release.entries[name])
            if at is None:
                self.restored.refuse_before_erasure(found)
            return found
        history = self.ledger.history(name)
        if not history and name not in self.registry.names():
            self.registry.get(name)
        aside = self.ledger.aside().get(name)
        if aside is not None and (at is None or at >= aside.since):
            raise NotPublished(
                f"`{name}` was withdrawn at {aside.since.isoformat(timespec='seconds')}, when somebody was"
                f" erased and it could not be derived anew: {aside.reason}",
                next_step=f"Mend its code; it comes back when it builds: `shredlake views publish {name}`.",
            )
        if not history:
            raise NotPublished(
                f"`{name}` was never published", next_step=f"Run `shredlake views publish {name}`."
            )
        first = next(r.released_at for r in reversed(self.ledger.releases()) if name in r.entries)
        raise NotPublished(
            f"nothing of `{name}` was published then; its first publication is of "
            f"{first.isoformat(timespec='seconds')}"
        )

    def as_reported(self, name: str, at: datetime | None = None) -> Answer:
        """What readers saw at a moment, from the snapshot they saw."""
        publication = self.publication(name, at)
        stale = self._stale(name, publication)
        table, snapshot_id = publication.table, publication.snapshot_id
        with self.restored.on_record(publication):
            if publication.grain == AGGREGATE:
                rows = self._tables.read_aggregate(table, snapshot_id)
                return Answer(rows, publication, withheld=publication.withheld_rows, stale=stale)
            found = self._tables.read_subjects(table, snapshot_id, publication.columns)
        return Answer(found.frame.drop(SUBJECT), publication, len(found.shredded), stale=stale)

    def person(self, name: str, subject: SubjectId, at: datetime | None = None) -> PersonAnswer:
        """One person's row of a subject-grain view.

        Raises:
            DefinitionError: the view has no row per person.
        """
        publication = self.publication(name, at)
        if publication.grain == AGGREGATE:
            raise DefinitionError(f"`{name}` has no row per person")
        erased = self._keyring.erased(subject)
        ref = self._keyring.ref_of(subject)
        if ref is None:
            return PersonAnswer((), erased, publication)
        with self.restored.on_record(publication):
            found = self._tables.read_subjects(
                publication.table, publication.snapshot_id, publication.columns, [ref]
            )
        rows = tuple(found.frame.drop(SUBJECT).to_dicts())
        if not rows and ref not in found.shredded and (ref in found.held or self._keyring.is_held(ref)):
            return PersonAnswer((), None, publication, held=True)
        return PersonAnswer(rows, found.shredded.get(ref), publication)

    def as_recomputed(self, name: str, at: datetime | None = None) -> Answer:
        """Same inputs and code as then, with today's keys.

        Raises:
            DefinitionError: the code is not the one of then; says where it is to be had.
        """
        guarded, publication, _ = self._recomputed(name, at)
        return Answer(guarded.rows.drop(SUBJECT, strict=False), publication, withheld=len(guarded.withheld))

    def _recomputed(self, name: str, at: datetime | None) -> tuple[Guarded, Publication, View]:
        publication = self.publication(name, at)
        self.registry.refresh()
        view = self.registry.get(name)
        version = self.builder.version_of(view)
        if version != publication.version:
            raise other_code(publication, version)
        return self.builder.recompute_guarded(view, publication), publication, view

    def reconcile(self, name: str, at: datetime | None = None) -> Reconciled:
        """Explains the difference between as reported and as recomputed."""
        publication = self.publication(name, at)
        if publication.grain != AGGREGATE:
            raise DefinitionError(f"`{name}` has a row per person; only aggregates are reconciled")
        reported = self.as_reported(name, at).rows
        guarded, _, view = self._recomputed(name, at)
        return self._reconciler.reconciled(view, publication, reported, guarded)

    def source(self, name: str, publication_id: int | None = None) -> tuple[Publication, Files]:
        """The code that made a publication, by default the one that readers see.

        Raises:
            NotPublished, PublicationDropped: there is no such publication of the view, or none any more.
            SourceUnknown: see `KeptSources.get`.
        """
        if publication_id is None:
            publication = self.publication(name)
        else:
            publication = self.ledger.publication(publication_id)
            if publication.view != name:
                raise NotPublished(f"publication {publication_id} is none of `{name}`")
            self.dropping.refuse(publication_id)
        return publication, self.ledger.sources.get(name, publication.version, publication.source)

    def close(self) -> None:
        """Closes state and ledger."""
        self.builder.close()
        self.ledger.close()

    def _stale(self, name: str, publication: Publication) -> str | None:
        """Why this publication is behind an erasure, where it is served although it is."""
        aside = self.ledger.aside().get(name)
        release = self.ledger.current()
        if aside is None or not aside.is_served or release is None:
            return None
        if release.entries.get(name) != publication.publication_id:
            return None
        return f"from before an erasure, since {aside.since.isoformat(timespec='seconds')}: {aside.reason}"

    @contextmanager
    def _pinned(self, snapshot_id: int | None) -> Iterator[int | None]:
        """Keeps a build's input from expiring while it is read; yields its id."""
        target = self._lake.events.snapshot(snapshot_id)
        if target is None:
            yield None
            return
        tag = build_tag(secrets.randbits(48), datetime.now(UTC))
        self._lake.events.set_tags({tag: target.snapshot_id})
        try:
            yield target.snapshot_id
        finally:
            self._lake.events.set_tags({}, [tag])

    def _keep_sources(self, built: Sequence[Built]) -> None:
        for one in built:
            self.ledger.sources.put(one.publication.view, one.publication.version, one.source)

    def _tag_inputs(self, publications: Sequence[Publication]) -> None:
        """Keeps the inputs of publications readable; see `lake.inputs`."""
        Inputs(self._lake.events).keep({p.input_snapshot: p.input_sequence for p in publications})
