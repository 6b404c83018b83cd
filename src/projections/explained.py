"""Which differences between a publication and its recomputation erasures account for, key by key. Pure.

Of an erased person's events there stays what was never sealed: the day, the type, anonymous fields. By these
they fall under keys, whole or in part, and counts and sums of anonymous fields are known to the unit. What
depends on a sealed field cannot be known any more: there a difference counts as explained where somebody who
was erased can have been. docs/views.md says what that leaves open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import polars as pl
from attrs import field, frozen

from projections.aggregates import Count, Distinct, Sum
from projections.authorcode import run_author_code
from projections.definition import Fold, View
from projections.exposure import is_window

_TIME: Final = "occurred_at"
_QUARTERS: Final = [15 * n for n in range(96)]
_AT: Final = "__at"


@frozen
class Gone:
    """What is left of the events that were counted then and cannot be opened now.

    Attributes:
        events: their clear columns, one row per event.
        clear: columns whose values are those of then; the others are null now.
        people: how many people they are of, at the most.
        is_exact: these are all of them and no other; else there may be others among them.
        holds_changed: a legal hold was placed or ended since: whose is not recorded.
    """

    events: pl.DataFrame = field(repr=False)
    clear: frozenset[str]
    people: int
    is_exact: bool
    holds_changed: bool


def unexplained(view: View, differences: pl.DataFrame, gone: Gone) -> pl.Series:
    """Per differing row whether nobody who was erased or held since can have caused it.

    Args:
        differences: keys, every measure as `…_reported` and `…_recomputed`; null where a side lacks the row.
    """
    if gone.holds_changed:
        return pl.Series([False] * differences.height, dtype=pl.Boolean)
    if not gone.events.height:
        return pl.Series([True] * differences.height, dtype=pl.Boolean)
    rows = differences.with_row_index(_AT)
    touched, is_whole = _touched(view, gone)
    wrong = _too_many_people(view, rows, gone)
    if touched.columns:
        beside = rows.join(touched, on=touched.columns, how="anti", nulls_equal=True)
        wrong |= set(beside[_AT].to_list())
    if gone.is_exact and is_whole and type(view).final is View.final:
        wrong |= _other_amounts(view, rows, gone)
    elif type(view).final is View.final:
        wrong |= _none_fewer(view, rows)
    return pl.Series([at in wrong for at in range(differences.height)], dtype=pl.Boolean)


def _touched(view: View, gone: Gone) -> tuple[pl.DataFrame, bool]:
    """The keys of these events, as far as they are known, and whether each is known exactly."""
    if isinstance(view, Fold):
        return pl.DataFrame(), False
    known = {name: key for name, key in view.keys.items() if _is_clear(key, gone)}
    windows = {name: key for name, key in view.keys.items() if name not in known and is_window(key)}
    columns = sorted({root for key in known.values() for root in key.meta.root_names()} | {"occurred_on"})
    events = gone.events.select(columns).unique().with_row_index(_AT)
    if windows:
        # Every quarter of an hour of the day: a window depends on no more.
        minutes = pl.DataFrame({"__minutes": _QUARTERS}, schema={"__minutes": pl.Int64})
        at = pl.col("occurred_on").cast(pl.Datetime("us", "UTC")) + pl.duration(minutes="__minutes")
        events = events.join(minutes, how="cross").with_columns(at.alias(_TIME))
    keys = [key.alias(name) for name, key in {**known, **windows}.items()]
    if not keys:
        return pl.DataFrame(), False
    found = run_author_code(view, "the keys", events.select, _AT, *keys).unique()
    one_each = found.height == found[_AT].n_unique()
    return found.drop(_AT).unique(), one_each and len(keys) == len(view.keys)


def _is_clear(expression: pl.Expr, gone: Gone) -> bool:
    return set(expression.meta.root_names()) <= gone.clear


def _too_many_people(view: View, rows: pl.DataFrame, gone: Gone) -> set[int]:
    """Rows that count fewer people by more than were erased, or more people than then."""
    found: set[int] = set()
    for name in _people_measures(view):
        fewer = pl.col(f"{name}_reported").fill_null(0) - pl.col(f"{name}_recomputed").fill_null(0)
        if not {f"{name}_reported", f"{name}_recomputed"} <= set(rows.columns):
            continue
        shown = pl.col(f"{name}_recomputed").is_not_null() | pl.lit(not view.min_subjects)
        found |= set(rows.filter(shown & ((fewer > gone.people) | (fewer < 0)))[_AT].to_list())
    return found


def _people_measures(view: View) -> Sequence[str]:
    named = [view.subjects] if view.min_subjects else []
    by_id = [
        name
        for name, measure in view.state.items()
        if isinstance(measure, Distinct) and measure.of.meta.root_names() in (["subject"], ["subject_ref"])
    ]
    plain = type(view).final is View.final
    return [*named, *(name for name in by_id if plain and name not in named)]


def _none_fewer(view: View, rows: pl.DataFrame) -> set[int]:
    """Rows that count as many events or rows as then: an erasure takes at least one out."""
    found: set[int] = set()
    for name, measure in view.state.items():
        if isinstance(measure, Count):
            same = pl.col(f"{name}_reported") <= pl.col(f"{name}_recomputed")
            found |= set(rows.filter(same)[_AT].to_list())
    return found


def _other_amounts(view: View, rows: pl.DataFrame, gone: Gone) -> set[int]:
    """Rows whose counts, or sums of clear fields, differ by another amount than these events come to."""
    events = gone.events.with_columns(pl.col("occurred_on").cast(pl.Datetime("us", "UTC")).alias(_TIME))
    measures = {
        name: pl.len().cast(pl.Int128) if isinstance(measure, Count) else _sum_of(measure)
        for name, measure in view.state.items()
        if isinstance(measure, Count)
        or (isinstance(measure, Sum) and _is_whole_number(measure.of, events, gone))
    }
    keys = [key.alias(name) for name, key in view.keys.items()]
    amounts = [value.alias(f"{name}__gone") for name, value in measures.items()]
    taken = run_author_code(view, "the measures", lambda: events.group_by(keys).agg(amounts))
    both = rows.join(taken, on=list(view.keys), how="left", nulls_equal=True)
    found: set[int] = set()
    for row in both.iter_rows(named=True):
        for name in measures:
            before, now, amount = (row[f"{name}_{one}"] for one in ("reported", "recomputed", "_gone"))
            if now is None and view.min_subjects:
                continue  # it fell under the floor
            if _number(before) - _number(now) != _number(amount):
                found.add(row[_AT])
    return found


def _is_whole_number(of: pl.Expr, events: pl.DataFrame, gone: Gone) -> bool:
    return _is_clear(of, gone) and events.clear().select(of).dtypes[0].is_integer()


def _sum_of(measure: Any) -> pl.Expr:
    of: pl.Expr = measure.of
    return of.cast(pl.Int128).sum()


def _number(value: Any) -> Any:
    return 0 if value is None else value
