"""Deciding which events fit their type, a column at a time. Pure.

Types and simple rules are checked on whole columns; what uses other JSON Schema keywords is checked
event by event with `jsonschema`. A reason names the rule and the field, never the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import polars as pl
from attrs import frozen

from keys import is_subject_id
from lake.eventtypes import VECTOR_RULES, EventType, Field
from lake.fieldrules import broken_rules, is_valid, validator_of
from lake.schemarefs import NOTES

MAX_FIELD_BYTES: Final = 1024 * 1024
_OWN_KEYWORDS: Final = NOTES | {
    "anonymous",
    "role",
    "purpose",
    "subject_of",
    "identity",
    "type",
    "format",
    "because",
    "$defs",
    "definitions",
}
_SIMPLE_TOP: Final = NOTES | frozenset(
    {
        "$defs",
        "definitions",
        "$schema",
        "$id",
        "name",
        "version",
        "dedup_window_days",
        "future_days",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "compatibility",
        "upcast",
    }
)
_PYTHON_TYPES: Final[dict[str, frozenset[type]]] = {
    "string": frozenset({str}),
    "integer": frozenset({int}),
    "number": frozenset({int, float}),
    "boolean": frozenset({bool}),
    "object": frozenset({dict}),
    "array": frozenset({list}),
}
_RFC_3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_INT64: Final = range(-(2**63), 2**63)
_NO_NULLS: Final[Mapping[str, Collection[int]]] = {}
UNFORESEEN: Final = (Exception, pl.exceptions.PanicException)
"""A panic is no `Exception`."""
_EXACT: Final = 2.0**53
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,309}")
_BEYOND: Final = 2**63


@frozen
class Flaw:
    """Why an event was rejected: a rule's name and, where there is one, the field."""

    reason: str
    field: str | None = None


Flaws = dict[int, Flaw]
"""Row → first flaw found."""
Sent = Callable[[int], Mapping[str, bytes]]
"""Row → the bytes of its members."""


def typed_columns(
    event_type: EventType, records: Sequence[dict[str, Any]], sent: Sent | None = None
) -> tuple[pl.DataFrame, Flaws]:
    """(one typed column per field, flaws by row) of decoded JSON objects; flawed rows hold nulls.

    Args:
        sent: the bytes of a row's members: objects and arrays are kept as they were received. Default: as
            they would be written.
    """
    sent = sent or (lambda row: {name: orjson.dumps(value) for name, value in records[row].items()})
    flaws: Flaws = {}
    columns = []
    seen = 0
    for field in event_type.fields:
        values = [record.get(field.name) for record in records]
        present = len(values) - values.count(None)
        seen += present
        kind = "string" if field.kind == "date" else field.kind
        if kind == "integer" and float in map(type, values):
            values = [_as_whole(value) for value in values]
        odd = set(map(type, values)) - _PYTHON_TYPES[kind] - {type(None)}
        if odd:
            for row, value in enumerate(values):
                if type(value) in odd:
                    flaws.setdefault(row, Flaw("wrong_type", field.name))
                    values[row] = None
        if kind == "integer":
            for row, value in enumerate(values):
                if value is not None and value not in _INT64:
                    flaws.setdefault(row, Flaw("out_of_range", field.name))
                    values[row] = None
        if kind == "number":
            for row, value in enumerate(values):
                if value is not None and abs(value) >= _EXACT and not _is_exact(sent(row)[field.name]):
                    flaws.setdefault(row, Flaw("inexact", field.name))
                    values[row] = None
        if field.is_json:
            columns.append(_texts(field, values, sent, flaws))
        else:
            columns.append(column_of(event_type, field, values, flaws))
    if seen != sum(map(len, records)):
        known = {field.name for field in event_type.fields}
        for row, record in enumerate(records):
            for name in record.keys() - known:
                if record[name] is not None:
                    flaws.setdefault(row, Flaw("unknown_field"))
    return pl.DataFrame(columns), flaws


def rule_flaws(
    event_type: EventType, frame: pl.DataFrame, written_nulls: Mapping[str, Collection[int]] = _NO_NULLS
) -> Flaws:
    """Rows that break `required`, a size limit or a rule such as `minimum`.

    Args:
        written_nulls: of required fields that may be null the rows that say so.
    """
    flaws: Flaws = {}

    def mark(reason: str, name: str, bad: pl.Series, spared: Collection[int] = ()) -> None:
        for row in bad.fill_null(False).arg_true().to_list():
            if row not in spared:
                flaws.setdefault(row, Flaw(reason, name))

    for field in event_type.fields:
        column = frame.get_column(field.name)
        if field.required and column.null_count():
            mark("missing_field", field.name, column.is_null(), written_nulls.get(field.name, ()))
        if field.dtype == pl.String:
            mark("field_too_large", field.name, column.str.len_bytes() > MAX_FIELD_BYTES)
        if not field.is_json:
            for rule, bad in broken_rules(field, column):
                mark(rule, field.name, bad)
    return flaws


def written_nulls(event_type: EventType, records: Sequence[dict[str, Any]]) -> dict[str, set[int]]:
    """Of required fields that may be null the rows that say so: null is a value of theirs."""
    return {
        name: {row for row, record in enumerate(records) if record.get(name, name) is None}
        for name in nullable(event_type)
    }


def nullable(event_type: EventType) -> list[str]:
    """Required fields of which null is a value."""
    document = event_type.document
    defined: dict[str, Any] = {key: document[key] for key in ("$defs", "definitions") if key in document}
    return [
        one.name
        for one in event_type.fields
        if one.required
        and one.may_be_null
        and is_valid({**defined, **document["properties"][one.name]}, None)
    ]


def schema_flaws(event_type: EventType, records: Iterable[tuple[int, dict[str, Any]]]) -> Flaws:
    """Rows that break what only `jsonschema` can check; empty at once where the type has no such rule.

    A field that is null is one that is not there.
    """
    if not needs_whole_schema(event_type):
        return {}
    validator, valued = validator_of(event_type), nullable(event_type)
    flaws: Flaws = {}
    for row, record in records:
        said = {name: value for name, value in record.items() if value is not None or name in valued}
        try:
            error = next(iter(validator.iter_errors(said)), None)
        except UNFORESEEN as failure:
            flaws[row] = Flaw(f"unprocessable ({type(failure).__name__})")
            continue
        if error is not None:
            path = str(error.path[0]) if error.path else None
            flaws[row] = Flaw(str(error.validator), path)
    return flaws


def needs_whole_schema(event_type: EventType) -> bool:
    """Whether the type uses more of JSON Schema than columns can be checked for."""
    return not event_type.document.keys() <= _SIMPLE_TOP or any(
        one.is_json or not one.body.keys() <= VECTOR_RULES | _OWN_KEYWORDS for one in event_type.fields
    )


def role_flaws(event_type: EventType, frame: pl.DataFrame) -> Flaws:
    """Rows where a facet's person is named by what cannot name one."""
    flaws: Flaws = {}
    for facet in event_type.facets:
        name = event_type.subject_field(facet.role)
        if name is not None:
            column = frame.get_column(name)
            odd = [v for v in column.unique().to_list() if v is not None and subject_flaw(v) is not None]
            for row in column.is_in(odd).arg_true().to_list() if odd else ():
                flaws.setdefault(row, Flaw("invalid_subject", name))
    return flaws


def without(frame: pl.DataFrame, flaws: Flaws) -> pl.DataFrame:
    """The frame without its flawed rows."""
    if not flaws:
        return frame
    keep = pl.Series([True] * frame.height)
    return frame.filter(keep.scatter(list(flaws), False))


def parse_time(text: object) -> datetime | None:
    """RFC 3339 with a zone, as UTC; None otherwise, and where its UTC is not in the years 1 to 9999."""
    if not isinstance(text, str) or not _RFC_3339.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def subject_flaw(value: object) -> str | None:
    """Why a value cannot name a data subject."""
    if value is None or value == "":
        return "missing_subject"
    if not isinstance(value, str):
        return "wrong_type"
    return None if is_subject_id(value) else "invalid_subject"


def column_of(event_type: EventType, field: Field, values: list[Any], flaws: Flaws) -> pl.Series:
    """Values of the field's type as its column; adds a flaw where a date is none."""
    if field.dtype == pl.Date:
        return dates_of(field, pl.Series(field.name, values, dtype=pl.String), flaws)
    if field.dtype == pl.Float64:
        values = [None if v is None else float(v) for v in values]
    return pl.Series(field.name, values, dtype=field.dtype)


def _texts(field: Field, values: list[Any], sent: Sent, flaws: Flaws) -> pl.Series:
    """Objects and arrays as the text that was sent; what most programs could not write again is flawed."""
    texts: list[str | None] = []
    for row, value in enumerate(values):
        text = None
        if value is not None:
            try:
                orjson.dumps(value)
                text = sent(row)[field.name].decode()
            except TypeError:
                flaws.setdefault(row, Flaw("too_deep", field.name))
        texts.append(text)
    return pl.Series(field.name, texts, dtype=pl.String)


def dates_of(field: Field, text: pl.Series, flaws: Flaws) -> pl.Series:
    """Texts as dates; adds a flaw where one is none."""
    column = text.str.to_date("%Y-%m-%d", strict=False)
    column = column.set(~column.dt.year().is_between(1, 9999), None)  # what RFC 3339 can write
    for row in (column.is_null() & text.is_not_null()).arg_true().to_list():
        flaws.setdefault(row, Flaw("format", field.name))
    return column


def _is_exact(text: bytes | str) -> bool:
    """Whether a double is what a large number says; the digits of one in another form are a measurement's."""
    digits = text.decode() if isinstance(text, bytes) else text
    return not _WHOLE.fullmatch(digits) or int(float(digits)) == int(digits)


def inexact(texts: pl.Series, numbers: pl.Series) -> pl.Series:
    """Which texts are whole numbers that their doubles are not."""
    doubtful = (numbers.abs() >= _EXACT).fill_null(False)
    rows = doubtful.arg_true().to_list()
    return doubtful.scatter(rows, [not _is_exact(text) for text in texts.gather(rows)]) if rows else doubtful


def _as_whole(value: Any) -> Any:
    """A whole number in the form of a fraction, such as 5.0, as what it is."""
    if type(value) is not float or not value.is_integer():
        return value
    return int(value) if abs(value) <= _EXACT else _BEYOND  # the digits of a larger one are not known
