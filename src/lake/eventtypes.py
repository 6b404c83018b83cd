"""Event types: a JSON Schema per version, a class per field, and the registry that keeps them.

A schema is JSON Schema 2020-12 with these keywords of ours on a property (others ignore them):

=============  =============================================================================
anonymous      true: kept in clear and after an erasure. Default: false, the field is personal
role           whose personal field it is (default ``subject``, the event's own subject)
purpose        which of that person's keys seals it (default ``service``)
subject_of     the value *is* the id of the person in that role
identity       the value is a further name of the person, e.g. ``email``; enters the blind index
=============  =============================================================================

and on the top level ``name``, ``version`` and ``dedup_window_days`` (default 7).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Final

import jsonschema
import orjson
import polars as pl
from attrs import field, frozen

from keys import DEFAULT_PURPOSE, InvalidName, check_purpose
from lake.avro import Schema
from lake.errors import SchemaError, UnknownEventType

SUBJECT_ROLE: Final = "subject"
DEAD_LETTER: Final = "shredlake.dead_letter"
DEFAULT_DEDUP_WINDOW_DAYS: Final = 7
OPEN_HEAD: Final[Schema] = {"_tag": pl.Binary(), "_rev": pl.Int64(), "_day": pl.Date()}
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
}


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


@frozen
class EventType:
    """One version of an event type."""

    name: str
    version: int
    fields: tuple[Field, ...]
    dedup_window_days: int
    document: dict[str, Any] = field(repr=False)

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

    def clear_fields(self) -> list[str]:
        """Every field kept in clear, for `doctor`."""
        return [f.name for f in self.fields if f.anonymous]


def parse_event_type(document: dict[str, Any]) -> EventType:
    """Reads and checks a schema document.

    Raises:
        SchemaError: not valid JSON Schema, or not storable; says which property and why.
    """
    try:
        jsonschema.Draft202012Validator.check_schema(document)
    except jsonschema.SchemaError as error:
        raise SchemaError(f"not a valid JSON Schema: {error.message}") from None
    name, version = document.get("name"), document.get("version", 1)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SchemaError("`name` must be a word of letters, digits, `_`, `.` and `-`")
    if not isinstance(version, int) or not 1 <= version <= 65535:
        raise SchemaError("`version` must be a whole number from 1")
    if document.get("type") != "object" or not isinstance(document.get("properties"), dict):
        raise SchemaError("the schema must have `type: object` and `properties`")
    window = document.get("dedup_window_days", DEFAULT_DEDUP_WINDOW_DAYS)
    if not isinstance(window, int) or window < 0:
        raise SchemaError("`dedup_window_days` must be a whole number of days")
    required = set(document.get("required", ()))
    fields = tuple(_field(n, body, n in required) for n, body in document["properties"].items())
    found = EventType(name, version, fields, window, document)
    for facet in found.facets:
        if facet.role != SUBJECT_ROLE and found.subject_field(facet.role) is None:
            raise SchemaError(f"role `{facet.role}` has no field with `subject_of: {facet.role}`")
    return found


def _field(name: str, body: dict[str, Any], required: bool) -> Field:
    if not _FIELD.fullmatch(name):
        raise SchemaError(f"property `{name}`: a name is letters, digits and `_`, not starting with `_`")
    kind = body.get("type", "string" if "enum" in body else None)
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise SchemaError(f"property `{name}`: `type` must be one of {', '.join(_DTYPES)}")
    role = body.get("subject_of") or body.get("role", SUBJECT_ROLE)
    purpose = body.get("purpose", DEFAULT_PURPOSE)
    anonymous = body.get("anonymous", False)
    try:
        check_purpose(purpose)
    except InvalidName as error:
        raise SchemaError(f"property `{name}`: {error}") from None
    if anonymous and ("identity" in body or "subject_of" in body):
        raise SchemaError(f"property `{name}`: what names a person cannot be anonymous")
    if kind != "string" and ("identity" in body or "subject_of" in body):
        raise SchemaError(f"property `{name}`: what names a person must be a string")
    dtype = pl.Date() if kind == "string" and body.get("format") == "date" else _DTYPES[kind]
    return Field(
        name,
        dtype,
        required,
        anonymous,
        Facet(role, purpose),
        body.get("identity"),
        body.get("subject_of"),
        kind in ("object", "array"),
        {key: body[key] for key in body if key in VECTOR_RULES},
    )


VECTOR_RULES: Final = frozenset(
    {
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minLength",
        "maxLength",
        "enum",
        "pattern",
    }
)


def incompatibilities(older: EventType, newer: EventType) -> list[str]:
    """Why a reader of `newer` could not read what `older` stored (backward compatibility)."""
    found = []
    before = {f.name: f for f in older.fields}
    for f in newer.fields:
        was = before.get(f.name)
        if was is None:
            if f.required:
                found.append(f"`{f.name}` is new and required: older events lack it")
        elif was.dtype != f.dtype:
            found.append(f"`{f.name}` changes its type from {was.dtype} to {f.dtype}")
        elif was.anonymous and not f.anonymous:
            found.append(f"`{f.name}` was kept in clear and cannot become personal for stored events")
        elif was.facet != f.facet or was.anonymous != f.anonymous:
            found.append(f"`{f.name}` moves to another class, role or purpose")
    return found


class TypeRegistry:
    """Registered event types, one JSON file per version under a folder.

    Args:
        folder: `<folder>/<name>/v<version>.json`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cache: dict[tuple[str, int], EventType] = {}
        dead_letter = parse_event_type(_DEAD_LETTER_DOCUMENT)
        self._cache[DEAD_LETTER, 1] = dead_letter

    def register(self, document: dict[str, Any]) -> EventType:
        """Adds a version; the same document again changes nothing.

        Raises:
            SchemaError: invalid, other content under a known version, or not backward compatible.
        """
        found = parse_event_type(document)
        if found.name == DEAD_LETTER:
            raise SchemaError(f"`{DEAD_LETTER}` is a name of our own")
        for version in self.versions(found.name):
            known = self.get(found.name, version)
            if version == found.version:
                if known.document != document:
                    raise SchemaError(
                        f"{found.name} version {version} is registered with another content",
                        next_step="Give the changed schema the next version number.",
                    )
                return known
            older, newer = (known, found) if version < found.version else (found, known)
            problems = incompatibilities(older, newer)
            if problems:
                raise SchemaError(f"{found.name} version {found.version}: {'; '.join(problems)}")
        path = self._path(found.name, found.version)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(json.dumps(document, indent=2) + "\n")
        draft.replace(path)
        self._cache[found.name, found.version] = found
        return found

    def get(self, name: str, version: int | None = None) -> EventType:
        """A version of a type, the newest where none is named.

        Raises:
            UnknownEventType: not registered.
        """
        if version is None:
            versions = self.versions(name)
            if not versions:
                raise UnknownEventType(f"event type `{name}` is not registered")
            version = versions[-1]
        if (name, version) not in self._cache:
            path = self._path(name, version)
            if not _NAME.fullmatch(name) or not path.exists():
                raise UnknownEventType(f"event type `{name}` version {version} is not registered")
            self._cache[name, version] = parse_event_type(orjson.loads(path.read_bytes()))
        return self._cache[name, version]

    def versions(self, name: str) -> list[int]:
        """Registered versions, ascending."""
        if name == DEAD_LETTER:
            return [1]
        if not _NAME.fullmatch(name):
            return []
        return sorted(int(p.stem[1:]) for p in (self._folder / name).glob("v*.json"))

    def names(self) -> list[str]:
        """Registered type names."""
        return sorted(p.name for p in self._folder.glob("*") if p.is_dir())

    def _path(self, name: str, version: int) -> Path:
        return self._folder / name / f"v{version}.json"


_DEAD_LETTER_DOCUMENT: Final[dict[str, Any]] = {
    "name": DEAD_LETTER,
    "version": 1,
    "type": "object",
    "properties": {
        "reason": {"type": "string", "anonymous": True},
        "field": {"type": "string", "anonymous": True},
        "feed": {"type": "string", "anonymous": True},
        "line": {"type": "integer", "anonymous": True},
        "raw": {"type": "string"},
    },
    "required": ["reason", "feed", "line", "raw"],
}
