"""What a schema's rules mean, once: for columns of one field, and for whole documents. Pure.

Bounds are exact, whatever their size. Patterns are those of Polars everywhere: its engine needs time in
proportion to the text, so that no text can stop an ingest. It has no look-around and no back-references.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, Final

import jsonschema
import polars as pl

from lake.eventtypes import EventType, Field
from lake.schemarefs import LOCAL_ONLY

_LEAST, _MOST = -(2**63), 2**63 - 1
_LONGEST: Final = 2**32 - 1
_Mask = Callable[[pl.Series], pl.Series]
_KNOWN_PATTERNS: Final = 1024


def broken_rules(field: Field, column: pl.Series) -> Iterator[tuple[str, pl.Series]]:
    """(rule, which rows break it) of each rule of a field that is no object and no array.

    A rule that its engine cannot run is broken by every value; registration refuses such rules.
    """
    for rule, bound in field.rules.items():
        try:
            found = _mask(field.kind, rule, bound)(column)
        except (
            pl.exceptions.PolarsError,
            pl.exceptions.PanicException,
            TypeError,
            ValueError,
            OverflowError,
        ):
            found = column.is_not_null()
        yield rule, found


def run_rules(field: Field, column: pl.Series) -> None:
    """Runs every rule of a field; raises whatever its engine raises."""
    for rule, bound in field.rules.items():
        _mask(field.kind, rule, bound)(column)


def _mask(kind: str, rule: str, bound: Any) -> _Mask:
    if rule == "enum":
        return _listed(kind, bound)
    if rule == "pattern":
        return lambda column: ~column.str.contains(bound)
    if rule == "minLength":
        return _every if bound > _LONGEST else lambda column: column.str.len_chars() < int(bound)
    if rule == "maxLength":
        return _none if bound > _LONGEST else lambda column: column.str.len_chars() > int(bound)
    return _whole(rule, bound) if kind == "integer" else _real(rule, bound)


def _every(column: pl.Series) -> pl.Series:
    return column.is_not_null()


def _none(column: pl.Series) -> pl.Series:
    return pl.repeat(False, len(column), dtype=pl.Boolean, eager=True)


def _whole(rule: str, bound: float) -> _Mask:
    """Of whole numbers of 64 bits."""
    if rule in ("minimum", "exclusiveMinimum"):
        least = math.ceil(bound) if rule == "minimum" else math.floor(bound) + 1
        if least > _MOST:
            return _every
        return _none if least <= _LEAST else lambda column: column < least
    most = math.floor(bound) if rule == "maximum" else math.ceil(bound) - 1
    if most < _LEAST:
        return _every
    return _none if most >= _MOST else lambda column: column > most


def _real(rule: str, bound: float) -> _Mask:
    """Of doubles: with the nearest one that says the same."""
    below, above = _around(bound)
    if rule == "minimum":
        return lambda column: column < above
    if rule == "exclusiveMinimum":
        return lambda column: column <= below
    return (lambda column: column > below) if rule == "maximum" else (lambda column: column >= above)


def _around(bound: float) -> tuple[float, float]:
    """(the greatest double that is not above, the least that is not below)."""
    try:
        near = float(bound)
    except OverflowError:
        near = math.inf if bound > 0 else -math.inf
    if near > bound:
        return math.nextafter(near, -math.inf), near
    return (near, math.nextafter(near, math.inf)) if near < bound else (near, near)


def _listed(kind: str, values: list[Any]) -> _Mask:
    fitting = values_of(kind, values)
    dtype = {"integer": pl.Int64, "number": pl.Float64, "boolean": pl.Boolean}.get(kind, pl.String)
    if dtype == pl.Int64:
        fitting = [int(value) for value in fitting]
    if dtype == pl.Float64:
        fitting = [float(value) for value in fitting]
    allowed = pl.Series(fitting, dtype=dtype)
    return lambda column: ~column.is_in(allowed.implode()) & column.is_not_null()


def values_of(kind: str, values: list[Any]) -> list[Any]:
    """Those of an `enum` that a field of this kind can hold."""
    return [value for value in values if _is_of(kind, value)]


def _is_of(kind: str, value: Any) -> bool:
    """Whether a field of this kind can hold a value of an `enum`."""
    if kind == "boolean" or isinstance(value, bool):
        return kind == "boolean" and isinstance(value, bool)
    if kind in ("integer", "number"):
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if kind == "integer":
            return value == int(value) and _LEAST <= value <= _MOST
        return _around(value)[0] == value
    return isinstance(value, str) and not any("\ud800" <= one <= "\udfff" for one in value)


@functools.lru_cache(maxsize=_KNOWN_PATTERNS)
def matches(pattern: str, text: str) -> bool:
    """Whether a pattern is found in a text.

    Raises:
        polars.exceptions.ComputeError: the engine does not know the pattern.
    """
    return bool(pl.Series([text], dtype=pl.String).str.contains(pattern)[0])


def validator_of(event_type: EventType) -> Any:
    """Of whole documents of a type; it fetches nothing."""
    return _Validator(event_type.document, registry=LOCAL_ONLY)


def is_valid(body: dict[str, Any], value: Any) -> bool:
    """Whether a schema by itself allows a value."""
    return bool(_Validator(body, registry=LOCAL_ONLY).is_valid(value))


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not matches(pattern, instance):
        yield jsonschema.ValidationError("pattern")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "object"):
        for pattern, inner in patterns.items():
            for name, value in instance.items():
                if matches(pattern, name):
                    yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _additional(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, value in instance.items():
        if name not in known and not any(matches(one, name) for one in patterns):
            yield from validator.descend(value, allowed, path=name)


def _multiple_of(validator: Any, step: float, instance: Any, schema: Any) -> Iterator[Any]:
    """By the decimal digits that are written: 0.3 is three times 0.1."""
    if validator.is_type(instance, "number"):
        quotient = Fraction(str(instance)) / Fraction(str(step))
        if quotient.denominator != 1:
            yield jsonschema.ValidationError("multipleOf")


def _unique(validator: Any, wanted: bool, instance: Any, schema: Any) -> Iterator[Any]:
    is_checked = wanted and validator.is_type(instance, "array")
    if is_checked and len({_hashable(one) for one in instance}) < len(instance):
        yield jsonschema.ValidationError("uniqueItems")


def _hashable(value: Any) -> Any:
    """Equal for values that are equal in JSON."""
    if isinstance(value, dict):
        return "object", frozenset((name, _hashable(one)) for name, one in value.items())
    if isinstance(value, list):
        return "array", tuple(map(_hashable, value))
    return ("boolean", value) if isinstance(value, bool) else ("value", value)


_Validator: Final[Any] = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator,
    {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional,
        "multipleOf": _multiple_of,
        "uniqueItems": _unique,
    },
)
