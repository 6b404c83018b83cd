"""Field mappings: how a stranger's file becomes events, written in TOML. docs/mapping.md explains it."""

from __future__ import annotations

import re
import string
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl
from attrs import evolve, frozen

from lake.errors import MappingError, UnreadableInput
from lake.eventtypes import EventType
from lake.tomlplace import toml_place
from lake.typeregistry import TypeRegistry
from lake.validate import UNFORESEEN

_SCALE_LIMIT: Final = 10**9
FILE, LINE = "$file", "$line"
_BUILT_IN: Final = frozenset({FILE, LINE})


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
        subject, event_id: templates over columns, e.g. `customer-{customer}`; `{$file}` is the file's
            digest and `{$line}` the line number.
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
            | _names(self.event_id)
            | {self.time_column}
        ) - _BUILT_IN

    def naming_columns(self) -> set[str]:
        """The columns that name the person and the event."""
        return (_names(self.subject) | _names(self.event_id)) - _BUILT_IN

    def check_header(self, header: Sequence[str]) -> None:
        """Whether the mapping means the columns of this header.

        Raises:
            UnreadableInput: a column is absent, is there twice, or has the name of a built-in one.
        """
        needed, names = self.needed_columns(), set(header)
        twice = sorted(name for name, count in Counter(header).items() if count > 1)
        if twice:
            raise UnreadableInput(
                f"the file has more than one column called {', '.join(twice)}",
                next_step="Give each a name of its own: in the file's first line, or in [format] columns.",
            )
        hidden = sorted(_BUILT_IN & names & (_names(self.subject) | _names(self.event_id)))
        if hidden:
            raise UnreadableInput(
                f"the file has a column called {', '.join(hidden)}, which a template means otherwise",
                next_step="Give the column another name: in the file's first line, or in [format] columns.",
            )
        absent = sorted(needed - names)
        if absent:
            step = "Name the file's columns in the mapping's [format] columns."
            if {"file", "line"} & set(absent):
                step = "The file's digest is `{$file}` and the line's number `{$line}`. " + step
            raise UnreadableInput(f"the file has no column {', '.join(absent)}", next_step=step)


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
        raise MappingError(f"the mapping is not valid TOML{toml_place(error)}") from None
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
        if not all(isinstance(body.get(key, ""), str) for key in ("from", "date_format")):
            raise MappingError(f"[fields] {name}: `from` and `date_format` are texts")
        for key, kind in (("scale", "integer"), ("date_format", "date")):
            if key in body and known[name].kind != kind:
                raise MappingError(f"[fields] {name}: `{key}` is for a field of type {kind} alone")
        _check_format(f"[fields] {name}: `date_format`", body.get("date_format"))
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
    for key, value in (("[format] `delimiter`", form.get("delimiter", ",")), *event.items()):
        if key != "schema_version" and not isinstance(value, str):
            raise MappingError(f"{key} must be a text")
    if len(form.get("delimiter", ",")) != 1 or form.get("delimiter") in ("\r", "\n", '"'):
        raise MappingError("[format] `delimiter` is one character")
    if len(set(columns)) < len(columns) or not all(isinstance(one, str) for one in columns):
        raise MappingError("[format] `columns` are texts, each another one")
    _check_format("[event] `time_format`", event.get("time_format"))
    mapping = Mapping(
        event_type,
        "delimited" if kind == "csv" else kind,
        form.get("delimiter", ","),
        columns,
        event["source"],
        event["subject"],
        event.get("id", f"{{{FILE}}}:{{{LINE}}}"),
        event["time"],
        event.get("time_format"),
        tuple(rules),
    )
    return evolve(mapping, columns=tuple(sorted(mapping.needed_columns()))) if kind == "json" else mapping


def _check_format(where: str, form: str | None) -> None:
    """Runs a strptime format over a row, with the engine that will run it."""
    if form is None:
        return
    try:
        pl.Series(["2026-01-01"]).str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False)
        pl.Series(["2026-01-01"]).str.to_date(form, strict=False)
    except UNFORESEEN:
        raise MappingError(f"{where} is no format of times that can be run here") from None


def _only(body: dict[str, Any], allowed: set[str], where: str) -> None:
    unknown = set(body) - allowed
    if unknown:
        raise MappingError(f"{where}: unknown key {', '.join(sorted(unknown))}")


def _names(template: str) -> set[str]:
    return {name for _, name in template_parts(template) if name}


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """(literal text, column after it) pairs of a template."""
    if re.search(r"\{\}|\{[^}]*[!:]", template):
        raise MappingError("a template holds only plain names such as {customer}")
    try:
        return [(text, name) for text, name, _, _ in string.Formatter().parse(template)]
    except ValueError as error:
        raise MappingError(f"a template cannot be read: {error}") from None
