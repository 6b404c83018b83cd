"""Any schema that registration may be given, and values for its fields; some fit."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

_BOUNDS = st.sampled_from(
    [0, 1, -1, 0.5, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30, -(10**30), 1e300]
)
_LENGTHS = st.sampled_from([0, 1, 2, 2**31, 2**32, 2**64, 10**30])
_PATTERNS = st.sampled_from(["^a", "a$", ".", r"\d", r"\p{L}", "(a+)+$", "(?=a)", r"(a)\1", "[", "(?i)A", ""])
_NOTES = st.sampled_from([{}, {"examples": [None]}, {"default": None}, {"title": "t"}, {"$comment": "c"}])
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "string": st.sampled_from(["", "a", "A", "aa", "1", "\0", "é", "\U0001f388", "a" * 40 + "!"]),
    "integer": st.sampled_from([0, 1, 5.0, -1, 2.5, 1e2, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 1e300]),
    "number": st.sampled_from([0, 1, 0.1, 0.3, -0.5, 2**53, 1e300, -1e300]),
    "boolean": st.booleans(),
    "object": st.sampled_from([{}, {"a": 1}, {"a": None}, {"b": [1, 1.0, True]}]),
    "array": st.sampled_from([[], [1, 1.0], [1, True], [{"a": 1}, {"a": 1.0}], ["a"]]),
}
ANY: st.SearchStrategy[Any] = st.sampled_from([None, True, 1, 1.0, "a", {}, []])


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """(kind, schema) of a property."""
    kind = draw(st.sampled_from(sorted(VALUES)))
    body: dict[str, Any] = {"type": kind, **draw(_NOTES)}
    rules: dict[str, st.SearchStrategy[Any]] = {"enum": st.lists(VALUES[kind] | ANY, min_size=1, max_size=3)}
    if kind == "string":
        rules |= {"minLength": _LENGTHS, "maxLength": _LENGTHS, "pattern": _PATTERNS}
    if kind in ("integer", "number"):
        rules |= dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _BOUNDS)
        rules |= {"multipleOf": st.sampled_from([1, 2, 0.1, 0.01, 10**30])}
    if kind == "array":
        rules |= {
            "uniqueItems": st.booleans(),
            "items": st.sampled_from([{"type": "integer"}, {"pattern": "["}]),
        }
    if kind == "object":
        rules |= {
            "patternProperties": st.dictionaries(_PATTERNS, st.just({"type": "integer"}), max_size=1),
            "additionalProperties": st.booleans(),
        }
    for name in draw(st.lists(st.sampled_from(sorted(rules)), max_size=2, unique=True)):
        body[name] = draw(rules[name])
    if draw(st.booleans()) and "const" not in body:
        body["const"] = draw(VALUES[kind])
    form = draw(st.integers(0, 3))
    if form == 1:
        body["type"] = [kind, "null"]
    if form == 2:
        body = {"anyOf": [body, {"type": "null"}]}
    return kind, body


_OURS = st.sampled_from(
    [
        {},
        {"anonymous": True},
        {"purpose": "marketing"},
        {"identity": "email"},
        {"subject_of": "driver"},
        {"role": "driver"},
        {"format": "date"},
        {"format": "date-time"},
        {"because": "it is nobody's"},
    ]
)
_NAMES = ("a", "B2", "class", "data", "None", "x" * 64)


@st.composite
def documents(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, str]]:
    """(a schema without its name, the kind of each property); registration may refuse it."""
    properties, kinds = {}, {}
    for name in draw(st.lists(st.sampled_from(_NAMES), min_size=1, max_size=4, unique=True)):
        kind, body = draw(bodies())
        if draw(st.integers(0, 3)):  # most with few rules, so that something fits
            body = {"type": kind}
        properties[name], kinds[name] = {**body, **draw(_OURS)}, kind
    document: dict[str, Any] = {"version": 1, "type": "object", "properties": properties}
    some = st.lists(st.sampled_from(sorted(kinds)), max_size=2, unique=True)
    more: dict[str, st.SearchStrategy[Any]] = {
        "required": some,
        "additionalProperties": st.booleans(),
        "minProperties": st.integers(0, 2),
        "dependentRequired": st.dictionaries(st.sampled_from(sorted(kinds)), some, max_size=1),
        "if": st.sampled_from([{"required": ["a"]}, {"properties": {"a": {"const": 1}}}]),
        "then": st.sampled_from([{"required": ["B2"]}, {"maxProperties": 1}, False]),
        "not": st.sampled_from([{"required": ["class", "a"]}, True]),
        "propertyNames": st.sampled_from([{"maxLength": 3}, {"pattern": "^[a-z]"}]),
        "dedup_window_days": st.sampled_from([0, 7, 36_500]),
    }
    for name in draw(st.lists(st.sampled_from(sorted(more)), max_size=2, unique=True)):
        document[name] = draw(more[name])
    return document, kinds
