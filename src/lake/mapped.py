"""Rows of text and a field mapping → typed events, a column at a time. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import polars as pl
from attrs import evolve

from lake.mapping import FILE, LINE, Mapping, template_parts
from lake.parsed import Parsed, Rejected
from lake.rawjson import WHOLE_NUMBER, json_flaw, members
from lake.salvage import NOTHING, Aside, plain_letter, put_aside, salvaged, with_letters
from lake.validate import (
    Flaw,
    Flaws,
    inexact,
    needs_whole_schema,
    nullable,
    parse_time,
    role_flaws,
    rule_flaws,
    schema_flaws,
    subject_flaw,
    without,
)

Row = tuple[int, bytes, "list[str] | Flaw"]
"""A line's number, what it was, and its cells or why it has none."""


def map_lines(
    mapping: Mapping,
    header: Sequence[str],
    lines: Sequence[tuple[int, bytes]],
    digest: str,
    start: int,
    end: int,
    aside: Aside = NOTHING,
) -> Parsed:
    """Lines [start, end) of a source as events; whatever a line is, it costs at most itself.

    Args:
        lines: those that are not blank.
        header: names of the cells.
        digest: what `{$file}` stands for in a template.
        aside: lines that are letters without being looked at.
    """

    def parse(some: Sequence[tuple[int, bytes]], start: int, end: int) -> Parsed:
        rows = [(number, raw, cells_of(mapping, raw)) for number, raw in some]
        return map_rows(mapping, header, rows, digest, start, end)

    left, letters = put_aside(lines, aside, plain_letter)
    parsed = salvaged(left, start, end, parse, plain_letter, holes_are_blank=True)
    return with_letters(evolve(parsed, blank=parsed.blank - len(letters)), letters)


def map_rows(
    mapping: Mapping, header: Sequence[str], rows: Sequence[Row], digest: str, start: int, end: int
) -> Parsed:
    """Lines [start, end) of a source; those that are not among the rows are blank.

    Args:
        header: names of the cells.
        digest: what `{$file}` stands for in a template.
    """
    numbers: list[int] = []
    raws: list[bytes] = []
    cells: list[list[str]] = []
    rejected: list[Rejected] = []
    for number, raw, row in rows:
        if isinstance(row, list) and len(row) != len(header):
            row = Flaw("wrong_column_count")
        if isinstance(row, Flaw):
            rejected.append(Rejected(number, row, raw))
            continue
        numbers.append(number)
        raws.append(raw)
        cells.append(row)
    columns = list(zip(*cells, strict=True)) if cells else [()] * len(header)
    table = pl.DataFrame(
        {name: pl.Series(values, dtype=pl.String) for name, values in zip(header, columns, strict=True)}
    )
    frame, flaws = _map_table(mapping, table, pl.Series(LINE, numbers, dtype=pl.Int64), digest)
    subjects = frame.get_column("subject").to_list()
    for at, found in flaws.items():
        subject = subjects[at] if subject_flaw(subjects[at]) is None else None
        rejected.append(Rejected(numbers[at], found, raws[at], subject))
    rejected.sort(key=lambda r: r.line)
    good = without(frame, flaws)
    accepted = ((mapping.event_type, good),) if good.height else ()
    return Parsed(start, end, accepted, tuple(rejected), end - start - len(rows))


def cells_of(mapping: Mapping, raw: bytes) -> list[str] | Flaw:
    """A line's cells as text, in the order of the columns, or why it has none."""
    if mapping.kind == "json":
        return _json_cells(mapping, raw)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return Flaw("invalid_utf8")
    if mapping.kind == "whitespace":
        return text.split()
    if _is_plain(text):
        return text.split(mapping.delimiter)  # what the reader would say, eight times as fast
    try:
        return next(csv.reader(io.StringIO(text), delimiter=mapping.delimiter, strict=True))
    except (csv.Error, StopIteration):
        return Flaw("malformed_csv")


def _is_plain(text: str) -> bool:
    """Whether a line of CSV has nothing that a reader would have to look at but delimiters."""
    return (
        '"' not in text and "\r" not in text and "\n" not in text and 0 < len(text) <= csv.field_size_limit()
    )


def _json_cells(mapping: Mapping, raw: bytes) -> list[str] | Flaw:
    """Texts as they are, anything else as the characters that were sent."""
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return json_flaw(raw)
    if not isinstance(found, dict):
        return Flaw("not_an_object")
    asked = {name: found.get(name) for name in mapping.columns}
    if any(value is not None and not isinstance(value, str) for value in asked.values()):
        sent = members(raw)
        named = mapping.naming_columns()
        for name, value in asked.items():
            if value is None or isinstance(value, str):
                continue
            if name in named and not WHOLE_NUMBER.fullmatch(sent[name]):
                return Flaw("wrong_type", name)
            asked[name] = sent[name].decode()
    return ["" if value is None else value for value in asked.values()]


def _map_table(
    mapping: Mapping, table: pl.DataFrame, lines: pl.Series, digest: str
) -> tuple[pl.DataFrame, Flaws]:
    """(events, flaws by row) of text columns."""
    flaws: Flaws = {}
    by_name = {f.name: f for f in mapping.event_type.fields}

    def mark(reason: str, name: str | None, bad: pl.Series) -> None:
        for row in bad.arg_true().to_list():
            flaws.setdefault(row, Flaw(reason, name))

    columns = []
    for rule in mapping.fields:
        text = table.get_column(rule.column).str.strip_chars()
        text = text.set(text == "", None)
        column = _typed(text, by_name[rule.name].dtype, rule.scale, rule.date_format)
        if column.dtype == pl.Float64:
            odd = ~column.is_finite().fill_null(True)
            mark("not_finite", rule.name, odd)
            mark("inexact", rule.name, inexact(text, column.set(odd, None)))
            column = column.set(odd, None)
        mark("wrong_type", rule.name, column.is_null() & text.is_not_null())
        if by_name[rule.name].is_json:
            mark("wrong_type", rule.name, ~_is_json_of(by_name[rule.name].kind, text))
        columns.append(column.alias(rule.name))
    present = {c.name for c in columns}
    columns += [
        pl.Series(f.name, [None] * table.height, dtype=f.dtype)
        for n, f in by_name.items()
        if n not in present
    ]
    fields = pl.DataFrame(columns).select(list(by_name))
    clock = table.get_column(mapping.time_column)
    moment = (
        clock.str.to_datetime(mapping.time_format, time_unit="us", time_zone="UTC", strict=False)
        if (mapping.time_format)
        else pl.Series([parse_time(t) for t in clock], dtype=pl.Datetime("us", "UTC"))
    )
    moment = moment.set(~moment.dt.year().is_between(1, 9999), None)
    mark("invalid_time", None, moment.is_null())
    head = table.with_columns(lines.alias(LINE)).select(
        _template(mapping.subject, digest).alias("subject"),
        pl.lit(mapping.source).alias("source"),
        _template(mapping.event_id, digest).alias("event_id"),
        moment.alias("occurred_at"),
        pl.lit(0, pl.Int64).alias("revision"),
        pl.col(LINE).alias("position"),
    )
    mark("missing_attribute", "id", head.get_column("event_id").is_null())
    subjects = head.get_column("subject")
    bad = {value: flaw for value in subjects.unique().to_list() if (flaw := subject_flaw(value)) is not None}
    if bad:
        for row, value in enumerate(subjects):
            if value in bad:
                flaws.setdefault(row, Flaw(bad[value], "subject"))
    frame = pl.concat([head, fields], how="horizontal")
    empty: dict[str, range] = dict.fromkeys(
        nullable(mapping.event_type), range(table.height)
    )  # an empty cell is null
    flaws = {**rule_flaws(mapping.event_type, fields, empty), **flaws}
    flaws = {**schema_flaws(mapping.event_type, _records(mapping, fields, flaws)), **flaws}
    return frame, {**role_flaws(mapping.event_type, fields), **flaws}


def _is_json_of(kind: str, texts: pl.Series) -> pl.Series:
    """Whether each is the text of an object, or of an array, that can be written again; null is none."""
    wanted = dict if kind == "object" else list

    def is_one(text: str | None) -> bool:
        try:
            found = None if text is None else orjson.loads(text)
            orjson.dumps(found)
        except (orjson.JSONDecodeError, TypeError):  # the second of what is nested too deeply
            return False
        return found is None or type(found) is wanted

    return pl.Series([is_one(text) for text in texts], dtype=pl.Boolean)


def _records(mapping: Mapping, fields: pl.DataFrame, flaws: Flaws) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows without a flaw as a client would have sent them; what is not mapped is not there."""
    if not needs_whole_schema(mapping.event_type):
        return
    kinds = {one.name: one.kind for one in mapping.event_type.fields}
    mapped = fields.select(rule.name for rule in mapping.fields)
    for row, record in enumerate(mapped.iter_rows(named=True)):
        if row not in flaws:
            yield row, {name: _as_sent(kinds[name], value) for name, value in record.items()}


def _as_sent(kind: str, value: Any) -> Any:
    if value is None:
        return None
    if kind in ("object", "array"):
        return orjson.loads(value)
    return value.isoformat() if kind == "date" else value


def _typed(text: pl.Series, dtype: pl.DataType, scale: int | None, date_format: str | None) -> pl.Series:
    if scale is not None:
        exact = text.cast(pl.Decimal(38, 9), strict=False) * scale
        whole = exact.cast(pl.Int64, strict=False)
        return whole.set(whole.cast(pl.Decimal(38, 9)) != exact, None)
    if dtype == pl.Date:
        day = text.str.to_date(date_format or "%Y-%m-%d", strict=False)
        return day.set(~day.dt.year().is_between(1, 9999), None)
    if dtype == pl.Boolean:
        return text.str.to_lowercase().replace_strict(
            {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False},
            default=None,
            return_dtype=pl.Boolean,
        )
    column = text.cast(dtype, strict=False)
    rest = column.is_null() & text.is_not_null()
    if dtype == pl.Int64 and rest.any():  # 5.0 and 1e2 are whole numbers too, as far as digits are known
        number = text.cast(pl.Float64, strict=False)
        is_whole = rest & number.is_finite() & (number == number.floor()) & (number.abs() <= 2.0**53)
        column = column.zip_with(~is_whole.fill_null(False), number.cast(pl.Int64, strict=False))
    return column


def _template(template: str, digest: str) -> pl.Expr:
    parts: list[pl.Expr] = []
    for text, name in template_parts(template):
        if text:
            parts.append(pl.lit(text))
        if name == FILE:
            parts.append(pl.lit(digest))
        elif name == LINE:
            parts.append((pl.col(LINE) + 1).cast(pl.String))
        elif name is not None:  # the characters as they are; an empty cell names nobody
            cell = pl.col(name)
            parts.append(pl.when(cell.str.strip_chars() != "").then(cell))
    return pl.concat_str(parts)
