"""What an event type must be to be registered: everything that will be run is run here first. Pure.

A schema that is accepted is one under which every event is stored or a dead letter.
"""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from keys import Identity, InvalidName
from lake.errors import SchemaError
from lake.eventtypes import EventType, Field, parse_event_type
from lake.fieldrules import matches, run_rules, validator_of, values_of
from lake.salvage import UNEXPECTED
from lake.schemarefs import subschemas
from lake.validate import needs_whole_schema

_MOST_DAYS: Final = 36_500
_SAMPLES: Final[dict[str, tuple[Any, ...]]] = {
    "string": ("", "a"),
    "date": ("2026-01-01",),
    "integer": (0, 2**63 - 1),
    "number": (0.5, 1e308),
    "boolean": (True,),
    "object": ({}, {"a": [{}]}),
    "array": ([], [{}, [], "a", 1]),
}


def accepted_event_type(document: dict[str, Any]) -> EventType:
    """Reads a schema document, and runs all of it over nothing and over a row.

    Raises:
        SchemaError: it is no event type, or one of its rules cannot be run; says which property and why.
    """
    try:
        found = parse_event_type(document)
        _check_words(document, found)
        _check_parts(document)
        for field in found.fields:
            _check_field(field)
        _check_whole(found)
    except RecursionError:
        raise SchemaError("the schema is nested too deeply, or refers to itself without end") from None
    return found


def _check_words(document: dict[str, Any], found: EventType) -> None:
    """Keywords of ours whose values nobody else checks."""
    if isinstance(document.get("version", 1), bool):
        raise SchemaError("`version` must be a whole number")
    for word in ("dedup_window_days", "future_days"):
        days = document.get(word, 0)
        if isinstance(days, bool):
            raise SchemaError(f"`{word}` must be a whole number of days")
        if days > _MOST_DAYS:
            raise SchemaError(f"`{word}` must be at most {_MOST_DAYS}")
    strange = set(document.get("required", ())) - {one.name for one in found.fields}
    if strange:
        raise SchemaError(f"`required` names `{min(strange)}`, which is no property: no event could fit")
    for one in found.fields:
        where = f"property `{one.name}`"
        if not isinstance(one.body.get("anonymous", False), bool):
            raise SchemaError(f"{where}: `anonymous` must be true or false")
        for word in ("role", "subject_of"):
            if word in one.body and not _is_word(one.body[word]):
                raise SchemaError(f"{where}: `{word}` must be a lower-case word")
        if one.identity is not None and not _is_kind(one.identity):
            raise SchemaError(f"{where}: `identity` must be a lower-case word such as `email`")


def _is_word(value: object) -> bool:
    return isinstance(value, str) and value.replace("_", "a").isalnum() and value.isascii()


def _is_kind(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(Identity(value, "x"))
    except InvalidName:
        return False


def _check_parts(document: dict[str, Any]) -> None:
    parts = list(subschemas(document))
    for one in parts:
        if one is not document and "$id" in one:
            raise SchemaError(
                "a part of the schema has an `$id` of its own: references would change their meaning"
            )
        for pattern in (*([one["pattern"]] if "pattern" in one else ()), *one.get("patternProperties", ())):
            _check_pattern(pattern)
    if any("patternProperties" in one for one in parts) and any(
        "unevaluatedProperties" in one for one in parts
    ):
        raise SchemaError("`patternProperties` and `unevaluatedProperties` cannot be used in one schema")


def _check_pattern(pattern: str) -> None:
    try:
        matches(pattern, "a")
    except UNEXPECTED:
        raise SchemaError(
            f"the pattern `{pattern}` is not one that is run here",
            next_step="Patterns know no look-around and no back-references; write it without them.",
        ) from None


def _check_field(field: Field) -> None:
    if field.is_json:
        return
    for values in ([], [None], *([sample] for sample in _SAMPLES[field.kind])):
        try:
            if field.kind != "date":
                run_rules(field, pl.Series(values, dtype=field.dtype))
        except UNEXPECTED as error:
            raise SchemaError(
                f"property `{field.name}`: its rules cannot be run ({type(error).__name__})"
            ) from None
    listed = field.rules.get("enum")
    if listed is not None and not values_of(field.kind, listed):
        raise SchemaError(f"property `{field.name}`: `enum` lists nothing that a {field.kind} can be")


def _check_whole(found: EventType) -> None:
    if not needs_whole_schema(found):
        return
    validator = validator_of(found)
    records: list[dict[str, Any]] = [{}]
    for at in range(2):
        records.append({one.name: _SAMPLES[one.kind][at % len(_SAMPLES[one.kind])] for one in found.fields})
    for record in records:
        try:
            list(validator.iter_errors(record))
        except RecursionError:
            raise
        except UNEXPECTED as error:
            raise SchemaError(f"the schema cannot be run ({type(error).__name__})") from None
