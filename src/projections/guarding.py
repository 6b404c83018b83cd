"""The differencing guard over the ledger: what a publication, or a recomputation, may show."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import polars as pl
from attrs import field, frozen

from lake import PERSONAL_HEAD, TypeRegistry
from projections.compute import people_of, result
from projections.definition import View, grain
from projections.derive import view_is_personal
from projections.differencing import Guarded, Shown, guard, key_digests
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
    """

    version: str
    input_snapshot: int
    people_mark: str
    state: pl.DataFrame = field(repr=False)
    rows: pl.DataFrame = field(repr=False)


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
        recompute: (view, snapshot id) → merged state of that input with today's keys.
    """

    def __init__(
        self, ledger: Ledger, tables: ViewTables, recompute: Callable[[View, int], pl.DataFrame]
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
        earlier = self._baseline(view, new)
        if earlier is None:
            return Guarded(new.rows, {}), ""
        if earlier.people_mark == new.people_mark and not earlier.withheld_rows:
            return Guarded(new.rows, {}), earlier.build_id
        if self._is_gone(earlier):
            return self._as_before(view, new), earlier.build_id
        if not {*view.keys, view.subjects} <= set(earlier.columns):
            raise GateClosed(
                f"`{view.name}`: people were erased since its last publication, which has other columns; "
                "the two could be subtracted",
                next_step=f"Publish under another name, or bring back `{view.subjects}` and the keys.",
            )
        same_input = earlier.input_snapshot == new.input_snapshot
        again = new.state if same_input else self._recompute(view, earlier.input_snapshot)
        people = people_of(view, new.state)
        same_code = new.version == earlier.version
        shown = self._shown(earlier)
        return _guarded(view, shown, new.rows, people, again, same_code=same_code), earlier.build_id

    def recomputed(self, view: View, publication: Publication, state: pl.DataFrame, mark: str) -> Guarded:
        """What a recomputation of a publication's input may show.

        Args:
            state: of the publication's input with today's keys.
            mark: which erasures and holds it reflects.
        """
        rows, then = result(view, state), publication.people_mark
        shown = self._shown(publication)
        return _guarded(view, shown, rows, people_of(view, state), state, same_code=True, marks=(then, mark))

    def _baseline(self, view: View, new: Candidate) -> Publication | None:
        """The newest publication, withdrawn or not, that is not this very build."""
        for one in self._ledger.history(view.name):
            if _this(one) != (new.version, new.input_snapshot, new.people_mark):
                return one
        return None

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
        kept = [digest not in withheld for digest in key_digests(new.rows, list(view.keys))]
        return Guarded(new.rows.filter(pl.Series(kept, dtype=pl.Boolean)), withheld)

    def _shown(self, publication: Publication) -> Shown:
        return Shown(
            self._tables.read_aggregate(publication.table, publication.snapshot_id),
            self._ledger.withheld(publication.build_id),
        )


def _this(one: Publication) -> tuple[str, int, str]:
    return one.version, one.input_snapshot, one.people_mark


def _guarded(
    view: View,
    shown: Shown,
    rows: pl.DataFrame,
    people: pl.DataFrame,
    again: pl.DataFrame,
    *,
    same_code: bool,
    marks: tuple[str, str] | None = None,
) -> Guarded:
    """See `guard`.

    Args:
        again: merged state of the earlier input with today's keys.
        marks: which erasures and holds both reflect; None where it is not to be looked at.
    """
    then, now = marks or ("", "/")
    return guard(
        rows,
        people,
        earlier=shown,
        again=result(view, again),
        people_again=people_of(view, again),
        keys=list(view.keys),
        subjects=view.subjects,
        k=view.min_subjects,
        same_code=same_code,
        may_return=marks is None or then.partition("/")[2] != now.partition("/")[2],
        is_settled=then == now,
    )


def _refuse_incomparable(view: View, rows: pl.DataFrame) -> None:
    missing = [name for name in (*view.keys, view.subjects) if name not in rows.columns]
    if missing:
        raise DefinitionError(
            f"view `{view.name}` has a floor of people, and its result leaves `{missing[0]}` out",
            next_step=f"Let `final` keep the keys and `{view.subjects}`; publications are compared by them.",
        )
