"""Brings frames of an older version forward to the newest, a column at a time, version by version. Pure.

A field that a version has not travels on under its name until one has it again or takes it by `from`;
so dropping a field and taking it up again loses nothing, and a renamed field is never read twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import orjson
import polars as pl

from lake.eventtypes import EventType, Facet, Field
from lake.upcastrules import DAY_TEXT, INT64_MAX, NUMBER_TEXT, WHOLE_TEXT, Rule

_SHREDDED: Final = "shredded"


def needed_fields(path: Sequence[EventType], fields: Iterable[str]) -> list[frozenset[str]]:
    """What is needed of every version of a path (ascending) for these fields of its last.

    Names that are no field, such as `occurred_at`, pass through.
    """
    needed = [frozenset(fields)]
    for newer in reversed(path[1:]):
        sources = (source_of(newer, name) for name in needed[0])
        needed.insert(0, frozenset(name for name in sources if name is not None))
    return needed


def bring_forward(
    frame: pl.DataFrame, path: Sequence[EventType], fields: Iterable[str], facet: Facet
) -> pl.DataFrame:
    """Events of a path's first version with these fields of its last.

    Args:
        frame: with the fields that `needed_fields` names first; others than fields stay as they are.
        facet: whose part the frame is: fields of other people's parts are not filled in.

    Returns:
        The same rows; a field that nothing derives has no column. Personal fields of shredded events
        stay null, also where the rule has a default.
    """
    needed = needed_fields(path, fields)
    for newer, before, wanted in zip(path[1:], needed[:-1], needed[1:], strict=True):
        kept = [name for name in frame.columns if name not in before]
        derived = [_derived(frame, newer, name, facet) for name in sorted(wanted)]
        frame = frame.select(*kept, *(one for one in derived if one is not None))
    return frame


def source_of(newer: EventType, name: str) -> str | None:
    """The name under which a version's predecessor has a field; None where it starts anew."""
    rule = newer.upcast_of(name)
    if rule is not None:
        return rule.source
    return None if name in taken(newer) else name


def taken(newer: EventType) -> frozenset[str]:
    """Names that this version renames away: what they held is read under the new name alone."""
    own = {f.name for f in newer.fields}
    return frozenset(r.source for r in newer.upcast if r.source is not None and r.source not in own)


def _derived(frame: pl.DataFrame, newer: EventType, name: str, facet: Facet) -> pl.Expr | None:
    found = next((f for f in newer.fields if f.name == name), None)
    if found is not None and not found.anonymous and found.facet != facet:
        return None
    rule = newer.upcast_of(name)
    source = source_of(newer, name)
    column = pl.col(source) if source is not None and source in frame.columns else None
    if found is None or (rule is None and column is None):
        return None if column is None else column.alias(name)
    if column is None or source is None:
        value = pl.lit(None, found.dtype)
    else:
        value = _converted(column, rule or Rule(name, name), frame.schema[source], found.dtype)
    if rule is not None and rule.default is not None:
        filled = value.fill_null(constant(found, rule.default))
        if not found.anonymous and _SHREDDED in frame.columns:
            filled = pl.when(~pl.col(_SHREDDED)).then(filled)
        value = filled
    return value.alias(name)


def constant(field: Field, value: object) -> pl.Expr:
    """A value of a schema document as a field stores it."""
    if field.is_json:
        return pl.lit(orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode())
    if field.dtype == pl.Date():
        return pl.lit(value, pl.String()).str.to_date("%Y-%m-%d")
    return pl.lit(value).cast(field.dtype)


def _converted(column: pl.Expr, rule: Rule, dtype: pl.DataType, target: pl.DataType) -> pl.Expr:
    """`lake.upcastrules.convert` on a column."""
    if rule.mapping is not None:
        old = pl.Series(list(rule.mapping), dtype=pl.String())
        new = pl.Series(list(rule.mapping.values()))
        if target == pl.Date():
            new = new.str.to_date("%Y-%m-%d")
        other = column if target == pl.String() else pl.lit(None, target)
        return column.replace_strict(old, new.cast(target), default=other, return_dtype=target)
    if rule.scale is not None:
        if dtype == target == pl.Int64() and isinstance(rule.scale, int):
            limit = INT64_MAX // rule.scale
            return pl.when(column.is_between(-limit, limit)).then(column * pl.lit(rule.scale, pl.Int64()))
        column, dtype = column.cast(pl.Float64()) * float(rule.scale), pl.Float64()
    return column if dtype == target else _cast(column, dtype, target)


def _cast(column: pl.Expr, dtype: pl.DataType, target: pl.DataType) -> pl.Expr:
    if dtype == pl.Float64() and target == pl.Int64():
        return column.round(0, mode="half_to_even").cast(target, strict=False)
    if dtype != pl.String():
        return column.dt.to_string("%Y-%m-%d") if dtype == pl.Date() else column.cast(target)
    if target == pl.Boolean():
        return column.replace_strict(["true", "false"], [True, False], default=None, return_dtype=target)
    if target == pl.Int64():
        return pl.when(column.str.contains(WHOLE_TEXT)).then(column).cast(target, strict=False)
    if target == pl.Float64():
        read = pl.when(column.str.contains(NUMBER_TEXT)).then(column).cast(target, strict=False)
        return pl.when(read.is_finite()).then(read)
    return pl.when(column.str.contains(DAY_TEXT)).then(column).str.to_date("%Y-%m-%d", strict=False)
