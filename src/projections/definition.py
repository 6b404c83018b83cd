"""What a view is: a Projection (keys and mergeable aggregates) or a Fold (per-subject logic). Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar, Final

import polars as pl
from attrs import frozen

from lake import PERSONAL_HEAD, PRIMARY, EventRead, EventType, Facet, TypeRegistry
from projections.aggregates import Aggregate, Distinct, First
from projections.errors import DefinitionError
from projections.purity import refuse_impure

SUBJECT: Final = "subject_ref"
EVENT_TYPE: Final = "event_type"
"""The column that tells the types of a view apart; a field of that name that the view declares hides it."""
BUILT_IN: Final[dict[str, pl.DataType]] = {
    SUBJECT: pl.Binary(),
    "ingest_day": pl.Date(),
    "occurred_on": pl.Date(),
}
"""Columns that every view sees."""
HEAD_TYPES: Final[dict[str, pl.DataType]] = {
    "subject": pl.String(),
    "source": pl.String(),
    "event_id": pl.String(),
    "occurred_at": pl.Datetime("us", "UTC"),
    "position": pl.Int64(),
}


@frozen
class Check:
    """A gate before publication.

    Attributes:
        name: shown when it fails.
        test: (new result, published result or None) → None, or a sentence that says what is wrong.
    """

    name: str
    test: Callable[[pl.DataFrame, pl.DataFrame | None], str | None]


def non_negative(column: str) -> Check:
    """No value under zero."""

    def test(new: pl.DataFrame, _: pl.DataFrame | None) -> str | None:
        bad = new.filter(pl.col(column) < 0).height
        return f"{bad} rows have a negative {column}" if bad else None

    return Check(f"non_negative({column})", test)


def within(column: str, previous: float) -> Check:
    """The column's total moves by at most this share of the published total."""

    def test(new: pl.DataFrame, old: pl.DataFrame | None) -> str | None:
        if old is None or column not in old.columns:
            return None
        was, now = _total(old[column]), _total(new[column])
        if was and abs(now - was) > previous * abs(was):
            return f"the total of {column} moves from {was:,.2f} to {now:,.2f}"
        return None

    return Check(f"within({column}, previous={previous})", test)


def _total(column: pl.Series) -> float:
    exact = column.cast(pl.Int128) if column.dtype.is_integer() else column
    return float(exact.sum())


def unique(*columns: str) -> Check:
    """No two rows with the same values."""

    def test(new: pl.DataFrame, _: pl.DataFrame | None) -> str | None:
        doubled = new.height - new.select(columns).n_unique()
        return f"{doubled} rows repeat {', '.join(columns)}" if doubled else None

    return Check(f"unique({', '.join(columns)})", test)


class View:
    """Base of both kinds; a definition is a class, never an instance with state.

    Attributes:
        name: of the view; lower-case words joined by `_`.
        reads: fields per event type, `Type` or `Type/role/purpose`.
        keys: output columns that rows are told apart by.
        state: measures.
        lateness: how late an event may come before its window counts as corrected.
        checks: gates before publication.
        min_subjects: rows with fewer people are left out of an aggregate view; 0 keeps all.
        subjects: the measure that counts people, for `min_subjects`.
        holds_ids: why literals of its file that look like ids of people are none, or may be kept with what is
            published; on record.
        no_floor: why an aggregate over people has no floor although two publications of it, before and after
            an erasure, tell what the erased person did; takes the warning of it off.
        shows_personal: why columns of an aggregate view, stored in clear, may show a personal field's value:
            one sentence, or one by column. Recorded in the publication, the plan and the receipt.
        impersonal: of a Fold: returned columns that carry no personal value.
    """

    name: ClassVar[str] = ""
    reads: ClassVar[Mapping[str, Sequence[str]]] = {}
    keys: ClassVar[Mapping[str, pl.Expr]] = {}
    state: ClassVar[Mapping[str, Aggregate]] = {}
    lateness: ClassVar[timedelta] = timedelta(0)
    checks: ClassVar[Sequence[Check]] = ()
    min_subjects: ClassVar[int] = 0
    subjects: ClassVar[str] = "subjects"
    no_floor: ClassVar[str] = ""
    holds_ids: ClassVar[str] = ""
    shows_personal: ClassVar[str | Mapping[str, str]] = ""
    impersonal: ClassVar[Sequence[str]] = ()

    def final(self, rows: pl.DataFrame) -> pl.DataFrame:
        """What readers see, from the merged measures; floats may appear here."""
        return rows


class Projection(View):
    """Keys and mergeable aggregates over events."""


class Fold(View):
    """Order-dependent logic over a subject's whole history.

    `fold` gets the events of many subjects, sorted by (`subject_ref`, `occurred_at`, `event_id`), and
    returns rows. With `keys` and `state` these rows are aggregated; without, they are the view and
    must carry `subject_ref`.
    """

    def fold(self, events: pl.DataFrame) -> pl.DataFrame:
        """Rows out of events; no clock, no randomness, no I/O."""
        raise DefinitionError(f"view `{self.name}` defines no fold")


@frozen
class Grain:
    """Whether rows belong to one person (`subject`) or to many."""

    subject: bool

    def __str__(self) -> str:
        return "subject" if self.subject else "aggregate"


def grain(view: View) -> Grain:
    """Known from the keys: a key that is the handle makes subject grain."""
    if isinstance(view, Fold) and not view.state:
        return Grain(True)
    return Grain(any(SUBJECT in key.meta.root_names() for key in view.keys.values()))


def event_reads(view: View, types: TypeRegistry) -> tuple[EventRead, ...]:
    """What to read of each event type.

    Raises:
        DefinitionError: a field that the type has not, or that belongs to another facet.
        UnknownEventType: not registered.
    """
    found = []
    for target, fields in view.reads.items():
        name, _, facet_name = target.partition("/")
        role, _, purpose = facet_name.partition("/")
        facet = Facet(role, purpose or PRIMARY.purpose) if role else PRIMARY
        registered = types.get(name)
        known = {f.name for f in registered.fields if f.anonymous or f.facet == facet}
        for field in fields:
            if field not in known.union(PERSONAL_HEAD, ["occurred_on"]):
                raise DefinitionError(f"view `{view.name}` reads `{field}`, which {target} has not")
        needed = (*fields, *_order_fields(view))
        found.append(EventRead(name, tuple(dict.fromkeys(needed)), facet))
    return tuple(found)


def seen_columns(view: View, types: Mapping[str, EventType]) -> dict[str, dict[str, pl.DataType]]:
    """Per target of `reads` the columns that the view sees of it, `BUILT_IN` and `event_type` among them.

    Raises:
        DefinitionError: a field is of one type here and of another there.
    """
    found: dict[str, dict[str, pl.DataType]] = {}
    together: dict[str, pl.DataType] = {}
    for target, fields in view.reads.items():
        of_type = {f.name: f.dtype for f in types[target.partition("/")[0]].fields}
        known = BUILT_IN | {EVENT_TYPE: pl.String()} | of_type | HEAD_TYPES
        names = (*BUILT_IN, EVENT_TYPE, *fields, *_order_fields(view))
        found[target] = {name: known[name] for name in dict.fromkeys(names)}
        for name, dtype in found[target].items():
            if together.setdefault(name, dtype) != dtype:
                raise DefinitionError(
                    f"view `{view.name}`: `{name}` is {together[name]} in one event type, {dtype} in another",
                    next_step="Read it of one of them, or register a version that brings it to one type.",
                )
    return found


def is_personal(view: View, types: Mapping[str, EventType]) -> bool:
    """Whether an erasure touches the view: it reads personal fields or tells people apart."""
    if grain(view).subject or isinstance(view, Fold) or _tells_people_apart(view):
        return True
    for target, fields in view.reads.items():
        sealed = {f.name for f in types[target.partition("/")[0]].fields if not f.anonymous}
        if not sealed.union(PERSONAL_HEAD).isdisjoint(fields):
            return True
    return bool(_order_fields(view))


def _order_fields(view: View) -> tuple[str, ...]:
    ordered = any(isinstance(a, First) for a in view.state.values())
    if isinstance(view, Fold) or ordered or _tells_people_apart(view):
        return ("occurred_at", "event_id")
    return ()


def _tells_people_apart(view: View) -> bool:
    measured = [e for e in (getattr(a, "of", None) for a in view.state.values()) if e is not None]
    return any(SUBJECT in e.meta.root_names() for e in (*view.keys.values(), *measured))


def check_definition(view: View) -> None:
    """Refuses what is incomplete or not pure.

    Raises:
        DefinitionError: says what and where.
    """
    if not view.name or not view.name.replace("_", "").isalnum() or not view.name.islower():
        raise DefinitionError(f"view class {type(view).__name__}: `name` must be lower-case words")
    if not view.reads:
        raise DefinitionError(f"view `{view.name}`: `reads` is empty")
    _check_kinds(view)
    if isinstance(view, Projection) and not (view.keys and view.state):
        raise DefinitionError(f"view `{view.name}`: a Projection needs `keys` and `state`")
    if grain(view).subject and SUBJECT not in view.keys and view.keys:
        raise DefinitionError(f"view `{view.name}`: the handle's key must be called `{SUBJECT}`")
    for name, aggregate in view.state.items():
        if isinstance(aggregate, Distinct) and grain(view).subject:
            raise DefinitionError(f"view `{view.name}`: `{name}` keeps a set per person; fold it instead")
    refuse_impure(view.name, type(view))


def _check_kinds(view: View) -> None:
    """The class's attributes are what they are documented to be."""
    what: dict[str, tuple[Any, str]] = {
        "reads": (lambda fields: not isinstance(fields, str), "event types and lists of fields"),
        "keys": (lambda key: isinstance(key, pl.Expr), "names and Polars expressions"),
        "state": (lambda one: callable(getattr(one, "partial", None)), "names and aggregates like Count()"),
    }
    for attribute, (fits, words) in what.items():
        entries = getattr(view, attribute)
        if not isinstance(entries, Mapping):
            raise DefinitionError(f"view `{view.name}`: `{attribute}` must be a dict of {words}")
        for name, value in entries.items():
            if not isinstance(name, str) or not fits(value):
                raise DefinitionError(f"view `{view.name}`: `{attribute}` of {name!r} must be of {words}")
