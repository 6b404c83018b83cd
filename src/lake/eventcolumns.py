"""CloudEvents of one type read straight into columns: the quickest way of parsing. Pure.

PyArrow's JSON reader makes columns of many lines at once, in half the time of decoding them one by one. It
refuses all of them where one has a field or a type that the others have not, so it is tried where lines look
alike; whatever it does not take is left to `lake.typedevents`. It decides nothing, and only has to be strict:
where it cannot tell two things apart that are not the same (an attribute that is null, and one that is not
there), the line is left.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.json

from lake.attributes import DESCRIBING, KNOWN, MEMBER, describes
from lake.eventframe import LEFT, MAX_LINE_BYTES, Line, framed, quick_type
from lake.eventtypes import EventType
from lake.typeregistry import TypeRegistry
from lake.validate import Flaws, dates_of, without

LEAST_LINES: Final = 256
_MOST_KINDS: Final = 8
_KNOWN_SCHEMAS: Final = 256
_LOOKS: Final = re.compile(rb'"type"\s*:\s*"[^"\\]*"')
_KINDS: Final[dict[str, pa.DataType]] = {
    "string": pa.large_string(),
    "date": pa.large_string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
_TEXTS: Final = ("specversion", "id", "source", "type", "subject", "time")
_NUMBERS: Final = ("revision", "schemaversion")
_EXTENSIONS: Final = {str: pa.large_string(), int: pa.int64(), bool: pa.bool_()}
"""What an extension attribute of CloudEvents may be."""
_OPENS, _CLOSES, _BREAK = b"{}\n"


def parse_columns(
    lines: Sequence[Line], types: TypeRegistry, least: int = LEAST_LINES
) -> tuple[list[tuple[EventType, pl.DataFrame]], list[Line]]:
    """(per event type a frame as in `lake.cloudevents.Parsed`, the lines that were not taken).

    Args:
        least: fewer lines that look alike are not worth it.
    """
    if len(lines) < max(least, 1):
        return [], list(lines)
    accepted: list[tuple[EventType, pl.DataFrame]] = []
    left: list[Line] = []
    read = _read(lines, types)
    groups = [lines] if read is not None else _alike(lines)
    for group in groups:
        if read is None and len(group) >= least and len(groups) > 1:
            read = _read(group, types)
        if read is None:
            left += group
            continue
        event_type, frame, flaws = read
        left += [group[row] for row in flaws]
        frame = without(frame, flaws)
        if frame.height:
            accepted.append((event_type, frame))
        read = None
    left.sort()
    return accepted, left


def _alike(lines: Sequence[Line]) -> list[Sequence[Line]]:
    """Lines by the type that they look to be of, and at the end those of rare types: a guess."""
    groups: list[Sequence[Line]] = []
    while lines and len(groups) < _MOST_KINDS and (look := _LOOKS.search(lines[0][1])):
        token = look.group()
        groups.append([line for line in lines if token in line[1]])
        lines = [line for line in lines if token not in line[1]]
    return [*groups, lines] if lines else groups


def _read(lines: Sequence[Line], types: TypeRegistry) -> tuple[EventType, pl.DataFrame, Flaws] | None:
    """(type, frame, rows that are left); None where nearly all are."""
    numbers, raws = zip(*lines, strict=True)
    first = _decoded(raws[0])
    name, version = first.get("type"), first.get("schemaversion")
    if not isinstance(name, str) or not (version is None or type(version) is int):
        return None
    event_type = quick_type(types, name, version)
    if event_type is None:
        return None
    schema = _schema(
        tuple((one.name, one.kind) for one in event_type.fields),
        tuple((key, type(value)) for key, value in first.items()),
    )
    table = None if schema is None else _table(raws, schema)
    if table is None:
        return None
    asked = [one for one in table.column_names if one != "data"]
    head = dict(zip(asked, _frame(table.select(asked)), strict=True))
    data = table.column("data").chunk(0)
    odd = _odd_heads(head, name, version) | pl.Series("odd", pl.from_arrow(data.is_null()), dtype=pl.Boolean)
    if 2 * odd.sum() > len(lines):
        return None
    flaws: Flaws = {}
    fields = []
    columns = pa.Table.from_arrays(data.flatten(), [one.name for one in event_type.fields])
    for one, column in zip(event_type.fields, _frame(columns), strict=True):
        if one.kind == "number":
            odd |= ~column.is_finite().fill_null(True)  # the reader knows NaN and Infinity, JSON does not
        fields.append(dates_of(one, column, flaws) if one.kind == "date" else column)
    head["revision"] = head["revision"].fill_null(0) if "revision" in head else _zeroes(len(lines))
    frame, flawed = framed(event_type, numbers, head, fields)
    return event_type, frame, dict.fromkeys(odd.arg_true().to_list(), LEFT) | flawed | flaws


def _decoded(raw: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _table(raws: Sequence[bytes], schema: pa.Schema) -> pa.Table | None:
    """The lines as rows of one chunk; None where they are not one document each, all of this schema."""
    text = b"\n".join(raws)
    if not _is_one_a_line(text, len(raws)) or not _is_utf8(text):
        return None
    if len(text) > MAX_LINE_BYTES and max(map(len, raws)) > MAX_LINE_BYTES:
        return None
    try:
        table = pa.json.read_json(
            pa.BufferReader(text),
            read_options=pa.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
            parse_options=pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
        )
    except pa.ArrowException:
        return None
    return table.combine_chunks() if table.num_rows == len(raws) else None


def _is_one_a_line(text: bytes, lines: int) -> bool:
    """Whether as many documents as there are lines must be one a line.

    Where each line begins and ends with a brace: within a document no brace is closed in front of one that
    opens, and no line break stands in a text.
    """
    characters = np.frombuffer(text, dtype=np.uint8)
    breaks = np.flatnonzero(characters == _BREAK)
    ends, starts = np.append(breaks, len(text)) - 1, np.append(-1, breaks) + 1
    return bool(
        len(breaks) == lines - 1
        and starts[-1] < len(text)
        and (characters[starts] == _OPENS).all()
        and (characters[ends] == _CLOSES).all()
    )


def _is_utf8(text: bytes) -> bool:
    try:
        return text.isascii() or bool(text.decode())
    except UnicodeDecodeError:
        return False


@functools.lru_cache(maxsize=_KNOWN_SCHEMAS)
def _schema(fields: tuple[tuple[str, str], ...], keys: tuple[tuple[str, type], ...]) -> pa.Schema | None:
    """The columns of events with these fields and attributes; None where they cannot be read so.

    Attributes that may be left out are only expected where the first event has them.
    """
    known = (*_TEXTS, *_NUMBERS, *DESCRIBING, "data")
    extensions = {name: kind for name, kind in keys if name not in known}
    odd = any(name in KNOWN or not MEMBER.fullmatch(name) for name in extensions)
    if not fields or odd or not set(extensions.values()) <= _EXTENSIONS.keys():
        return None
    return pa.schema(
        {
            **dict.fromkeys(_TEXTS, pa.large_string()),
            **{name: pa.int64() for name, _ in keys if name in _NUMBERS},
            **{name: pa.large_string() for name, _ in keys if name in DESCRIBING},
            **{name: _EXTENSIONS[kind] for name, kind in extensions.items()},
            "data": pa.struct({name: _KINDS[kind] for name, kind in fields}),
        }
    )


def _zeroes(count: int) -> pl.Series:
    return pl.repeat(0, count, dtype=pl.Int64, eager=True).alias("revision")


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _odd_heads(head: dict[str, pl.Series], name: str, version: int | None) -> pl.Series:
    """Rows whose attributes need a closer look. A null may be one that is written."""
    odd = ((head["type"] != name) | (head["specversion"] != "1.0")).fill_null(True)
    for each in ("id", "source", "subject", "time"):
        if head[each].null_count():
            odd |= head[each].is_null()
    if "revision" in head:
        odd |= ~head["revision"].is_between(0, 2**31 - 1).fill_null(False)
    if "schemaversion" in head:
        versions = head["schemaversion"]
        odd |= versions.is_not_null() if version is None else (versions != version).fill_null(True)
    for each in DESCRIBING.keys() & head.keys():
        wrong = [one for one in head[each].unique() if one is not None and not describes(each, one)]
        odd |= head[each].is_in(wrong).fill_null(False)
    for each in head.keys() - KNOWN:
        if head[each].dtype == pl.Int64:
            odd |= ~head[each].is_between(-(2**31), 2**31 - 1).fill_null(True)
    return odd
