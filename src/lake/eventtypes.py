"""Event types: a JSON Schema per version, and a class per field.

A schema is JSON Schema 2020-12 with these keywords of ours on a property (others ignore them):

=============  =============================================================================
anonymous      true: kept in clear and after an erasure. Default: false, the field is personal
role           whose personal field it is (default ``subject``, the event's own subject)
purpose        which of that person's keys seals it (default ``service``)
subject_of     the value *is* the id of the person in that role
identity       the value is a further name of the person, e.g. ``email``; enters the blind index
because        why an anonymous field may be kept in clear; shown by ``shredlake schema doctor``
=============  =============================================================================

and on the top level ``name``, ``version``, ``dedup_window_days`` (default 7), ``future_days`` (default 1: an
event dated further ahead of its arrival is stored and counted, and moves no watermark), ``compatibility``
(`lake.compatibility`) and ``upcast`` (`lake.upcastrules`).
"""

from __future__ import annotations

import re
from typing import Any, Final

import jsonschema
import polars as pl
from attrs import field, frozen

from keys import DEFAULT_PURPOSE, InvalidName, check_purpose
from lake.bodies import Schema
from lake.errors import SchemaError
from lake.schemarefs import plain_body
from lake.upcastrules import Rule, parse_upcast

SUBJECT_ROLE: Final = "subject"
DEAD_LETTER: Final = "shredlake.dead_letter"
DEFAULT_DEDUP_WINDOW_DAYS: Final = 7
DEFAULT_FUTURE_DAYS: Final = 1
TAG_FIELDS: Final[Schema] = {"_tag": pl.UInt64(), "_rev": pl.Int64()}
"""What the rule for duplicates and corrections looks at; tags lie in a column of their own."""
OPEN_HEAD: Final[Schema] = {"_rev": pl.Int64(), "_day": pl.Date()}
SEALED_HEAD: Final[Schema] = {
    "_subject": pl.String(),
    "_source": pl.String(),
    "_id": pl.String(),
    "_time": pl.Int64(),
    "_position": pl.Int64(),
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,127}")
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_DTYPES: Final[dict[str, pl.DataType]] = {
    "string": pl.String(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "object": pl.String(),
    "array": pl.String(),
    "date": pl.Date(),
}
_TYPES: Final = tuple(kind for kind in _DTYPES if kind != "date")  # JSON Schema writes it as a format
RESERVED: Final = frozenset(
    {
        "subject",
        "source",
        "event_id",
        "occurred_at",
        "revision",
        "position",
        "occurred_on",
        "ingest_day",
        "subject_ref",
        "ref",
        "shredded",
    }
)
COMPATIBILITIES: Final = ("backward", "forward", "full", "none")


@frozen
class Facet:
    """One person's part of an event for one purpose; `str` gives the stored name."""

    role: str
    purpose: str

    def __str__(self) -> str:
        return f"{self.role}/{self.purpose}"


PRIMARY: Final = Facet(SUBJECT_ROLE, DEFAULT_PURPOSE)


@frozen
class Field:
    """A property of an event type.

    Attributes:
        dtype: how it is stored; objects and arrays are stored as JSON text (`is_json`).
        subject_of: the role whose SubjectId this value is.
        kind: JSON Schema's type, or `date` for a string of format date; `body` is its whole schema.
        reason: why it may be kept in clear, where its schema says so; `declared` when by `because`.
        may_be_null: whether its schema says so; where it is required as well, null is a value of it.
    """

    name: str
    dtype: pl.DataType
    required: bool
    anonymous: bool
    facet: Facet
    identity: str | None = None
    subject_of: str | None = None
    is_json: bool = False
    rules: dict[str, Any] = field(factory=dict)
    kind: str = "string"
    body: dict[str, Any] = field(factory=dict, repr=False)
    reason: str | None = None
    declared: bool = False
    may_be_null: bool = False


@frozen
class EventType:
    """One version of an event type.

    Attributes:
        compatibility: `backward`, `forward`, `full` or `none`, against all versions before.
        upcast: how fields come out of the version before.
    """

    name: str
    version: int
    fields: tuple[Field, ...]
    dedup_window_days: int
    document: dict[str, Any] = field(repr=False)
    compatibility: str = "backward"
    upcast: tuple[Rule, ...] = ()
    future_days: int = DEFAULT_FUTURE_DAYS

    @property
    def open_schema(self) -> Schema:
        """What the `open` part of a block holds: tag, revision, day and the anonymous fields."""
        return {**OPEN_HEAD, **{f.name: f.dtype for f in self.fields if f.anonymous}}

    def sealed_schema(self, facet: Facet) -> Schema:
        """What the `sealed` part of a facet holds: subject, id, exact time, position, its fields."""
        mine = {f.name: f.dtype for f in self.fields if not f.anonymous and f.facet == facet}
        return {**SEALED_HEAD, **mine}

    @property
    def facets(self) -> tuple[Facet, ...]:
        """The primary facet first, then the others in order of appearance."""
        rest = dict.fromkeys(f.facet for f in self.fields if not f.anonymous and f.facet != PRIMARY)
        return (PRIMARY, *rest)

    def subject_field(self, role: str) -> str | None:
        """The field that holds the SubjectId of a role; None for the event's own subject."""
        return next((f.name for f in self.fields if f.subject_of == role), None)

    def upcast_of(self, name: str) -> Rule | None:
        """The rule that derives a field from the version before."""
        return next((rule for rule in self.upcast if rule.target == name), None)

    def clear_fields(self) -> list[str]:
        """Every field kept in clear, for `doctor`."""
        return [f.name for f in self.fields if f.anonymous]


def is_type_name(name: str) -> bool:
    """Whether an event type can be called so; such a name is also safe as a folder's."""
    return _NAME.fullmatch(name) is not None


def parse_event_type(document: dict[str, Any]) -> EventType:
    """Reads and checks a schema document.

    Raises:
        SchemaError: not valid JSON Schema, or not storable; says which property and why.
    """
    try:
        jsonschema.Draft202012Validator.check_schema(document)
    except jsonschema.SchemaError as error:
        raise SchemaError(f"not a valid JSON Schema: {error.message}") from None
    except RecursionError:
        raise SchemaError("the schema is nested too deeply") from None
    name, version = document.get("name"), document.get("version", 1)
    if not isinstance(name, str) or not is_type_name(name):
        raise SchemaError("`name` must be a word of letters, digits, `_`, `.` and `-`")
    if not isinstance(version, int) or not 1 <= version <= 65535:
        raise SchemaError("`version` must be a whole number from 1")
    if document.get("type") != "object" or not isinstance(document.get("properties"), dict):
        raise SchemaError("the schema must have `type: object` and `properties`")
    window = document.get("dedup_window_days", DEFAULT_DEDUP_WINDOW_DAYS)
    if not isinstance(window, int) or window < 0:
        raise SchemaError("`dedup_window_days` must be a whole number of days")
    future = document.get("future_days", DEFAULT_FUTURE_DAYS)
    if not isinstance(future, int) or future < 0:
        raise SchemaError("`future_days` must be a whole number of days")
    required = set(document.get("required", ()))
    fields = tuple(_field(document, n, n in required) for n in document["properties"])
    mode = document.get("compatibility", COMPATIBILITIES[0])
    if mode not in COMPATIBILITIES:
        raise SchemaError(f"`compatibility` must be one of {', '.join(COMPATIBILITIES)}")
    upcast = parse_upcast(document.get("upcast"), frozenset(document["properties"]))
    found = EventType(name, version, fields, window, document, mode, upcast, future)
    for facet in found.facets:
        if facet.role != SUBJECT_ROLE and found.subject_field(facet.role) is None:
            raise SchemaError(f"role `{facet.role}` has no field with `subject_of: {facet.role}`")
    return found


def _field(document: dict[str, Any], name: str, required: bool) -> Field:
    if not _FIELD.fullmatch(name):
        raise SchemaError(f"property `{name}`: a name is letters, digits and `_`, not starting with `_`")
    if name in RESERVED:
        raise SchemaError(
            f"property `{name}` has the name of a column of ours",
            next_step=f"Call it something else, for instance `{name}_of_event`.",
        )
    body, may_be_null = plain_body(document, name, document["properties"][name])
    kind = body.get("type", "string" if "enum" in body else None)
    if not isinstance(kind, str) or kind not in _TYPES:
        raise SchemaError(f"property `{name}`: `type` must be one of {', '.join(_TYPES)}")
    role = body.get("subject_of") or body.get("role", SUBJECT_ROLE)
    purpose = body.get("purpose", DEFAULT_PURPOSE)
    anonymous = body.get("anonymous", False)
    if not isinstance(role, str) or not isinstance(purpose, str):
        raise SchemaError(f"property `{name}`: `role`, `subject_of` and `purpose` are words")
    try:
        check_purpose(purpose)
    except InvalidName as error:
        raise SchemaError(f"property `{name}`: {error}") from None
    if anonymous and ("identity" in body or "subject_of" in body):
        raise SchemaError(f"property `{name}`: what names a person cannot be anonymous")
    if kind != "string" and ("identity" in body or "subject_of" in body):
        raise SchemaError(f"property `{name}`: what names a person must be a string")
    because = body.get("because", body.get("description"))
    if because is not None and not isinstance(because, str):
        raise SchemaError(f"property `{name}`: `because` must be a sentence")
    if kind == "string" and body.get("format") == "date":
        kind = "date"
    unfit = sorted(body.keys() & VECTOR_RULES - _FITTING.get(kind, VECTOR_RULES))
    if unfit:
        raise SchemaError(f"property `{name}`: `{unfit[0]}` says nothing of a {kind}")
    return Field(
        name,
        _DTYPES[kind],
        required,
        anonymous,
        Facet(role, purpose),
        body.get("identity"),
        body.get("subject_of"),
        kind in ("object", "array"),
        {key: body[key] for key in body if key in VECTOR_RULES},
        kind,
        {**{key: document[key] for key in ("$defs", "definitions") if key in document}, **body},
        because,
        "because" in body,
        may_be_null,
    )


_BOUNDS: Final = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_TEXT_RULES: Final = frozenset({"minLength", "maxLength", "pattern"})
VECTOR_RULES: Final = _BOUNDS | _TEXT_RULES | {"enum"}
_FITTING: Final[dict[str, frozenset[str]]] = {
    "string": _TEXT_RULES | {"enum"},
    "integer": _BOUNDS | {"enum"},
    "number": _BOUNDS | {"enum"},
    "boolean": frozenset({"enum"}),
    "date": frozenset(),
}
