"""Field mappings: how a stranger's file becomes events, written in TOML. docs/mapping.md explains it."""

from __future__ import annotations

import re
import string
import tomllib
from pathlib import Path
from typing import Any, Final, Literal

from attrs import evolve, frozen

from lake.errors import MappingError
from lake.eventtypes import EventType
from lake.typeregistry import TypeRegistry

_SCALE_LIMIT: Final = 10**9
_BUILT_IN: Final = frozenset({"file", "line"})


@frozen
class FieldRule:
    """Where a field comes from.

    Attributes:
        column: the file's column.
        scale: multiplied into a decimal number to make a whole one (100: dollars to cents).
        date_format: strptime format of a date field.
    """

    name: str
    column: str
    scale: int | None = None
    date_format: str | None = None


@frozen
class Mapping:
    """A parsed mapping.

    Attributes:
        kind: `delimited` (csv and the like), `whitespace` (columns parted by runs of blanks) or `json`
            (one object a line or message; a column is a key of it).
        columns: names of the columns; empty means the first line names them.
        subject, event_id: templates over columns, e.g. `customer-{customer}`; `{file}` is the file's
            digest and `{line}` the line number.
        time_column, time_format: strptime format; None reads RFC 3339.
    """

    event_type: EventType
    kind: Literal["delimited", "whitespace", "json"]
    delimiter: str
    columns: tuple[str, ...]
    source: str
    subject: str
    event_id: str
    time_column: str
    time_format: str | None
    fields: tuple[FieldRule, ...]

    def needed_columns(self) -> set[str]:
        """Every column the templates and fields name."""
        return (
            {rule.column for rule in self.fields}
            | _names(self.subject)
            | (_names(self.event_id) - _BUILT_IN)
            | {self.time_column}
        )


def load_mapping(path: Path, types: TypeRegistry) -> Mapping:
    """Reads a mapping file.

    Raises:
        MappingError: unreadable, unknown keys, or it does not fit the event type.
        UnknownEventType: its type is not registered.
    """
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise MappingError(f"the mapping cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MappingError(f"the mapping is not valid TOML: {error}") from None
    return parse_mapping(document, types)


def parse_mapping(document: dict[str, Any], types: TypeRegistry) -> Mapping:
    """Checks a mapping document; errors as `load_mapping`."""
    _only(document, {"format", "event", "fields"}, "mapping")
    form, event = document.get("format", {}), document.get("event", {})
    _only(form, {"kind", "delimiter", "columns"}, "[format]")
    _only(event, {"type", "schema_version", "source", "subject", "id", "time", "time_format"}, "[event]")
    for key in ("type", "source", "subject", "time"):
        if not isinstance(event.get(key), str):
            raise MappingError(f"[event] needs `{key}`")
    event_type = types.get(event["type"], event.get("schema_version"))
    known = {f.name: f for f in event_type.fields}
    rules = []
    for name, body in document.get("fields", {}).items():
        body = {"from": body} if isinstance(body, str) else body
        _only(body, {"from", "scale", "date_format"}, f"[fields] {name}")
        if name not in known:
            raise MappingError(f"[fields] {name}: event type {event_type.name} has no such field")
        scale = body.get("scale")
        if scale is not None and not (isinstance(scale, int) and 1 <= scale <= _SCALE_LIMIT):
            raise MappingError(f"[fields] {name}: `scale` is a whole number up to {_SCALE_LIMIT}")
        rules.append(FieldRule(name, body.get("from", name), scale, body.get("date_format")))
    absent = {f.name for f in event_type.fields if f.required} - {rule.name for rule in rules}
    if absent:
        raise MappingError(f"[fields] lacks the required {', '.join(sorted(absent))}")
    kind = form.get("kind", "csv")
    if kind not in ("csv", "whitespace", "json"):
        raise MappingError("[format] `kind` is `csv`, `whitespace` or `json`")
    columns = tuple(form.get("columns", ()))
    if kind == "whitespace" and not columns:
        raise MappingError('[format] `kind = "whitespace"` needs `columns`')
    if kind == "json" and ("columns" in form or "delimiter" in form):
        raise MappingError('[format] `kind = "json"` takes no `columns` and no `delimiter`')
    mapping = Mapping(
        event_type,
        "delimited" if kind == "csv" else kind,
        form.get("delimiter", ","),
        columns,
        event["source"],
        event["subject"],
        event.get("id", "{file}:{line}"),
        event["time"],
        event.get("time_format"),
        tuple(rules),
    )
    return evolve(mapping, columns=tuple(sorted(mapping.needed_columns()))) if kind == "json" else mapping


def _only(body: dict[str, Any], allowed: set[str], where: str) -> None:
    unknown = set(body) - allowed
    if unknown:
        raise MappingError(f"{where}: unknown key {', '.join(sorted(unknown))}")


def _names(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """(literal text, column after it) pairs of a template."""
    if re.search(r"\{\}|\{[^}]*[!:]", template):
        raise MappingError("a template holds only plain names such as {customer}")
    return [(text, name) for text, name, _, _ in string.Formatter().parse(template)]
