"""Which columns of an aggregate view, stored in clear, can show a personal field's value of somebody. Pure.

A key, `Min`, `Max`, `First`, `Last` and whatever a Fold returns show values of single events. A calendar
window does not: a key that depends on no more than the quarter of an hour of the event's time. `Sum` and
`Distinct` show a value only where few people are in a row; such columns are named and not refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import polars as pl
from attrs import frozen

from lake import PERSONAL_HEAD, EventType
from projections.aggregates import Count, Distinct, Sum
from projections.definition import SUBJECT, Fold, View, grain, is_personal
from projections.errors import DefinitionError

_OTHER_WAYS: Final = "Key it by subject_ref (one sealed row per person), or count it with Distinct"
_TIME: Final = "occurred_at"
_NEVER: Final = frozenset({"subject", "event_id", SUBJECT})
"""What tells one person or event apart: no reason makes it fit for a column in clear."""
_GIVEN: Final = frozenset({SUBJECT, _TIME, "event_id"})
_STARTS: Final = [
    *(datetime(2024, 2, 28, 22, 45, tzinfo=UTC) + n * timedelta(minutes=15) for n in range(40)),
    *(datetime(2025, month, 17, 3, 15, tzinfo=UTC) for month in range(1, 13)),
]
_WITHIN_SECONDS: Final = (0.0, 0.000001, 1.5, 61.25, 333.0, 899.999999)


@frozen
class Exposure:
    """A column that can show a personal value.

    Attributes:
        kind: `value`: of one event in any row; `few`: an amount, in rows of one person or few.
        fields: the personal fields that it is made of.
        because: why its author says that it may; "" where nothing was said.
    """

    column: str
    kind: Literal["value", "few"]
    fields: tuple[str, ...]
    because: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "column": self.column,
            "kind": self.kind,
            "fields": list(self.fields),
            "because": self.because,
        }


def exposures(
    view: View, types: Mapping[str, EventType], columns: Collection[str] = ()
) -> tuple[Exposure, ...]:
    """The columns of a view that can show a personal value, in their order.

    Args:
        types: by name, those that the view reads.
        columns: of the finished rows; what `final` adds is made of the rest.
    """
    if grain(view).subject or not is_personal(view, types):
        return ()
    personal = personal_fields(view, types)
    found = [*_of_keys(view, personal), *_of_measures(view, personal)]
    known = {*view.keys, *view.state}
    made_of = sorted({field for one in found for field in one.fields})
    kind: Literal["value", "few"] = "value" if any(one.kind == "value" for one in found) else "few"
    found += [
        Exposure(name, kind, tuple(made_of), _because(view, name))
        for name in columns
        if made_of and name not in known
    ]
    return tuple(found)


def shown_columns(
    view: View, types: Mapping[str, EventType], columns: Collection[str]
) -> tuple[dict[str, Any], ...]:
    """`exposures` as a publication records them."""
    return tuple(one.as_dict() for one in exposures(view, types, columns))


def refuse_names(view: View, types: Mapping[str, EventType]) -> None:
    """Refuses what no reason makes fit: a column in clear that tells one person or event apart.

    Raises:
        DefinitionError: names column and field.
    """
    for one in exposures(view, types) if not isinstance(view, Fold) else ():
        never = sorted(_NEVER.intersection(one.fields))
        if one.kind == "value" and never:
            raise _refused(view, one, never[0], f"{_OTHER_WAYS}.")


def refuse_exposed(view: View, types: Mapping[str, EventType]) -> None:
    """Refuses a view that would show a personal field's value in clear without its author's reason.

    Raises:
        DefinitionError: names column and field.
    """
    for one in exposures(view, types):
        if one.kind == "value" and not one.because.strip():
            fold = (
                "; list what a Fold returns and is not personal in `impersonal`"
                if isinstance(view, Fold)
                else ""
            )
            reason = f"`shows_personal = {{'{one.column}': 'because …'}}`"
            way_out = f"{_OTHER_WAYS}, or truncate a time{fold}; or say why it may: {reason}."
            if isinstance(view, Fold):
                raise DefinitionError(
                    f"view `{view.name}`: column `{one.column}` would stand in clear, and a Fold may return"
                    " any personal value that it reads",
                    next_step=way_out,
                )
            raise _refused(view, one, one.fields[0], way_out)


def _refused(view: View, one: Exposure, field: str, way_out: str) -> DefinitionError:
    return DefinitionError(
        f"view `{view.name}`: column `{one.column}` would show `{field}` in clear", next_step=way_out
    )


def personal_fields(view: View, types: Mapping[str, EventType]) -> frozenset[str]:
    """What the view reads, or may be ordered by, that an erasure makes unreadable."""
    sealed = {SUBJECT, *PERSONAL_HEAD}
    for target in view.reads:
        sealed |= {one.name for one in types[target.partition("/")[0]].fields if not one.anonymous}
    return frozenset(sealed)


def is_window(expression: pl.Expr) -> bool:
    """Whether it depends on no more than the quarter of an hour of the event's time."""
    if expression.meta.root_names() != [_TIME]:
        return False
    moments = [start + timedelta(seconds=s) for start in _STARTS for s in _WITHIN_SECONDS]
    numbers = [n for n in range(len(_STARTS)) for _ in _WITHIN_SECONDS]
    frame = pl.DataFrame({_TIME: moments, "_n": numbers}).with_columns(
        pl.col(_TIME).cast(pl.Datetime("us", "UTC"))
    )
    try:
        values = frame.with_columns(expression.alias("_value"))
        return values.select("_n", "_value").n_unique() <= len(_STARTS)
    except Exception:  # an author's expression: what cannot be tried is no window
        return False


def _of_keys(view: View, personal: frozenset[str]) -> Iterator[Exposure]:
    for name, key in view.keys.items():
        if not is_window(key) and (fields := _sources(view, key, personal)):
            yield Exposure(name, "value", fields, _because(view, name))


def _of_measures(view: View, personal: frozenset[str]) -> Iterator[Exposure]:
    for name, measure in view.state.items():
        if isinstance(measure, Count):
            continue
        of = getattr(measure, "of", None)
        is_amount = isinstance(measure, Sum | Distinct)
        if isinstance(of, pl.Expr):
            fields = () if not is_amount and is_window(of) else _sources(view, of, personal)
        else:
            fields = _read(view, personal)  # an aggregate that nobody knows
        if fields and not (is_amount and view.min_subjects > 1):  # rows of few people are left out
            yield Exposure(name, "few" if is_amount else "value", fields, _because(view, name))


def _sources(view: View, expression: pl.Expr, personal: frozenset[str]) -> tuple[str, ...]:
    """The personal fields that an expression is made of; a Fold's columns are made of all it reads."""
    roots = expression.meta.root_names()
    if isinstance(view, Fold):
        return _read(view, personal) if roots and not set(roots) <= set(view.impersonal) else ()
    return tuple(sorted(personal.intersection(roots)))


def _read(view: View, personal: frozenset[str]) -> tuple[str, ...]:
    named = {field for fields in view.reads.values() for field in fields}
    if isinstance(view, Fold):
        named |= _GIVEN  # whatever it reads
    return tuple(sorted(personal & named))


def _because(view: View, column: str) -> str:
    said = view.shows_personal
    return said if isinstance(said, str) else said.get(column, "")
