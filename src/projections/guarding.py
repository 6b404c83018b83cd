"""The differencing guard over the ledger: what a publication, or a recomputation, may show."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import polars as pl
from attrs import field, frozen

from lake import PERSONAL_HEAD, SnapshotGone, TypeRegistry
from lake.inputs import place_of
from lake.levels import Sequenced
from projections.compute import people_of, result
from projections.definition import View, grain
from projections.derive import view_is_personal
from projections.differencing import Again, Guarded, Shown, Withheld, guard, key_digests
from projections.errors import DefinitionError, GateClosed
from projections.ledger import Ledger, Publication
from projections.tables import ViewTables


@frozen
class Candidate:
    """A result that wants to be published.

    Attributes:
        state: the merged state it came from, all buckets.
        rows: the result.
        people_mark: which erasures and holds it reflects.
        live: the files of its input; they tell which earlier inputs hold the same events.
    """

    version: str
    input_snapshot: int
    input_sequence: int
    people_mark: str
    state: pl.DataFrame = field(repr=False)
    rows: pl.DataFrame = field(repr=False)
    live: Sequence[Sequenced] = field(repr=False)

    def place(self, input_sequence: int, input_snapshot: int) -> Hashable:
        """The same for inputs between which nothing came in."""
        found = place_of(self.live, input_sequence)
        return ("snapshot", input_snapshot) if found is None else found


def is_guarded(view: View, personal: bool) -> bool:
    """Whether erasures must not be told apart in this view: an aggregate over people with a floor."""
    return personal and view.min_subjects > 1 and not grain(view).subject


def told_counts(view: View, personal: bool, counts: pl.DataFrame) -> dict[str, Any]:
    """Numbers of events for a publication's record; None where one person's could be told by subtraction.

    They were compared with what is stored before. Of an aggregate without a floor the rows themselves tell.

    Args:
        counts: `superseded`, `shredded` and `counted` events by bucket.
    """
    is_told = not personal or not (grain(view).subject or is_guarded(view, personal))
    names = ("superseded", "shredded", "counted")
    return {f"events_{name}": int(counts[name].sum()) if is_told else None for name in names}


@frozen
class Revealing:
    """Views whose publications can be subtracted to learn what one erased person did.

    Attributes:
        views: one view without a floor, or two that count the same fields.
        text: a sentence for the operator, with what to do.
        because: why the view's author has it so; "" where nothing was said.
    """

    views: tuple[str, ...]
    text: str
    because: str = ""


def revealing(
    views: Sequence[View], types: TypeRegistry, of: Collection[str] | None = None
) -> list[Revealing]:
    """Views, and pairs of views, in which an erasure can be told by subtraction.

    A view over people without a floor tells it by itself, before and after. Of two views that count the
    same fields, one that keeps the anonymous remainder or has no floor tells what the other leaves out.
    Views of types that are not registered are passed over.

    Args:
        of: event types of one person; views of none of them tell nothing of that person. None for all.
    """
    found: list[Revealing] = []
    known = set(types.names())
    wanted = known if of is None else known.intersection(of)
    aggregates = [
        view
        for view in views
        if not grain(view).subject
        and known.issuperset(read := {t.partition("/")[0] for t in view.reads})
        and not wanted.isdisjoint(read)
    ]
    over_people = {view.name: view_is_personal(types, view) for view in aggregates}
    for view in aggregates:
        if over_people[view.name] and not is_guarded(view, True):
            found.append(
                Revealing(
                    (view.name,),
                    f"`{view.name}` before and after an erasure shows by subtraction what the erased person "
                    "did; give it `min_subjects` and `subjects`, or say why not: `no_floor`",
                    view.no_floor.strip(),
                )
            )
    for one, other in itertools.combinations(aggregates, 2):
        people = [v for v in (one, other) if over_people[v.name]]
        shared = sorted(_counted(one) & _counted(other))
        # One guarded view beside one that erasures do not touch: what changed in the guarded one is withheld.
        if not shared or not people or (len(people) == 1 and is_guarded(people[0], True)):
            continue
        fields = ", ".join(f"`{name}`" for _, name in shared)
        found.append(
            Revealing(
                (one.name, other.name),
                f"`{one.name}` and `{other.name}` both count {fields}; subtracting one from the other can "
                "show people whom only one of them counts",
            )
        )
    return found


def _counted(view: View) -> set[tuple[str, str]]:
    """(event type, field) that the view reads, those of every event's head left out."""
    return {
        (target.partition("/")[0], name)
        for target, names in view.reads.items()
        for name in names
        if name not in (*PERSONAL_HEAD, "occurred_on")
    }


class DifferencingGuard:
    """Compares what is to be shown with what was shown before.

    Args:
        recompute: (view, publication) → merged state of its input with today's keys.
    """

    def __init__(
        self, ledger: Ledger, tables: ViewTables, recompute: Callable[[View, Publication], pl.DataFrame]
    ) -> None:
        self._ledger = ledger
        self._tables = tables
        self._recompute = recompute

    def candidate(self, view: View, new: Candidate) -> tuple[Guarded, str]:
        """The rows that may be published with what is withheld, and the build they were compared with.

        Raises:
            DefinitionError: the result does not show the measure that counts people, or not the keys.
            GateClosed: people were erased since, and the earlier publication has other keys, so that
                nothing can be compared.
        """
        _refuse_incomparable(view, new.rows)
        history = [
            one
            for one in self._ledger.history(view.name)
            if _this(one) != (new.version, new.input_snapshot, new.people_mark)
        ]
        if not history:
            return Guarded(new.rows, {}), ""
        newest, build_id = history[0], history[0].build_id
        if newest.people_mark == new.people_mark and not newest.withheld_rows:
            return Guarded(new.rows, {}), build_id
        if self._is_gone(newest):
            return self._as_before(view, new), build_id
        people = people_of(view, new.state)
        if newest.people_mark == new.people_mark:  # nobody changed: the same rows, whatever is new in them
            return self._carried_on(view, new.rows, people, newest), build_id
        if not _is_comparable(view, newest):
            raise GateClosed(
                f"`{view.name}`: people were erased since its last publication, which has other columns; "
                "the two could be subtracted",
                next_step=f"Publish under another name, or bring back `{view.subjects}` and the keys.",
            )
        states = {new.place(new.input_sequence, new.input_snapshot): new.state}
        earlier = (
            self._shown(
                view,
                one,
                states,
                new.place(one.input_sequence, one.input_snapshot),
                same_code=new.version == one.version,
            )
            for one in history
            if not self._is_gone(one) and _is_comparable(view, one)
        )
        return _guarded(view, earlier, new.rows, people), build_id

    def recomputed(self, view: View, publication: Publication, state: pl.DataFrame, mark: str) -> Guarded:
        """What a recomputation of a publication's input may show.

        Args:
            state: of the publication's input with today's keys.
            mark: which erasures and holds it reflects.
        """
        then = publication.people_mark
        states: dict[Hashable, pl.DataFrame] = {0: state}
        shown = self._shown(view, publication, states, 0, same_code=True, is_settled=then == mark)
        may_return = then.partition("/")[2] != mark.partition("/")[2]
        return _guarded(view, [shown], result(view, state), people_of(view, state), may_return=may_return)

    def _is_gone(self, publication: Publication) -> bool:
        noted = self._ledger.dropped().get(publication.publication_id)
        return noted is not None and noted.is_gone

    def _as_before(self, view: View, new: Candidate) -> Guarded:
        """The same build, which is on record: what it was compared with may be dropped since."""
        newest = self._ledger.history(view.name)[0]
        if self._is_gone(newest) or _this(newest) != (new.version, new.input_snapshot, new.people_mark):
            raise GateClosed(
                f"`{view.name}`: the publication to compare with was dropped, and people were erased since",
                next_step="Publish under another name.",
            )
        withheld = self._ledger.withheld(newest.build_id)
        return _without(view, new.rows, withheld)

    def _carried_on(
        self, view: View, rows: pl.DataFrame, people: pl.DataFrame, newest: Publication
    ) -> Guarded:
        digests = key_digests(people, list(view.keys))
        counts = dict(zip(digests, people[view.subjects].cast(pl.Int64).to_list(), strict=True))
        before = self._ledger.withheld(newest.build_id)
        withheld = {d: Withheld(counts.get(d, 0), one.changed) for d, one in before.items()}
        return _without(view, rows, withheld)

    def _shown(
        self,
        view: View,
        publication: Publication,
        states: dict[Hashable, pl.DataFrame],
        at: Hashable,
        *,
        same_code: bool,
        is_settled: bool = False,
    ) -> Shown:
        """An earlier publication; `states` are kept by place, `at`, since several share one."""

        def again() -> Again | None:
            if at not in states:
                try:
                    states[at] = self._recompute(view, publication)
                except SnapshotGone:
                    return None
            # By other code `final` and its floor mean other rows, and may not take that input at all.
            return Again(people_of(view, states[at]), result(view, states[at]) if same_code else None)

        return Shown(
            self._tables.read_aggregate(publication.table, publication.snapshot_id),
            self._ledger.withheld(publication.build_id),
            again,
            is_settled,
        )


def _this(one: Publication) -> tuple[str, int, str]:
    return one.version, one.input_snapshot, one.people_mark


def _guarded(
    view: View,
    earlier: Iterable[Shown],
    rows: pl.DataFrame,
    people: pl.DataFrame,
    *,
    may_return: bool = True,
) -> Guarded:
    """See `guard`."""
    return guard(
        rows,
        people,
        earlier=earlier,
        keys=list(view.keys),
        subjects=view.subjects,
        k=view.min_subjects,
        may_return=may_return,
    )


def _without(view: View, rows: pl.DataFrame, withheld: Mapping[bytes, Withheld]) -> Guarded:
    kept = [digest not in withheld for digest in key_digests(rows, list(view.keys))]
    return Guarded(rows.filter(pl.Series(kept, dtype=pl.Boolean)), withheld)


def _is_comparable(view: View, publication: Publication) -> bool:
    is_aggregate = publication.grain == str(grain(view))
    return is_aggregate and {*view.keys, view.subjects} <= set(publication.columns)


def _refuse_incomparable(view: View, rows: pl.DataFrame) -> None:
    missing = [name for name in (*view.keys, view.subjects) if name not in rows.columns]
    if missing:
        raise DefinitionError(
            f"view `{view.name}` has a floor of people, and its result leaves `{missing[0]}` out",
            next_step=f"Let `final` keep the keys and `{view.subjects}`; publications are compared by them.",
        )
