"""Rows of text and a field mapping → typed events, a column at a time. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import orjson
import polars as pl
from attrs import evolve

from lake.mapping import Mapping, template_parts
from lake.parsed import Parsed, Rejected
from lake.salvage import NOTHING, Aside, plain_letter, put_aside, salvaged, with_letters
from lake.validate import Flaw, Flaws, parse_time, rule_flaws, subject_flaw, without

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
        digest: what `{file}` stands for in a template.
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
    ).with_columns(pl.Series("line", numbers, dtype=pl.Int64))
    frame, flaws = _map_table(mapping, table, digest)
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
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return Flaw("malformed_json")
    if not isinstance(found, dict):
        return Flaw("not_an_object")
    return [
        value if isinstance(value, str) else "" if value is None else orjson.dumps(value).decode()
        for value in map(found.get, mapping.columns)
    ]


def _map_table(mapping: Mapping, table: pl.DataFrame, digest: str) -> tuple[pl.DataFrame, Flaws]:
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
        mark("wrong_type", rule.name, column.is_null() & text.is_not_null())
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
    mark("invalid_time", None, moment.is_null())
    head = table.select(
        _template(mapping.subject, digest).alias("subject"),
        pl.lit(mapping.source).alias("source"),
        _template(mapping.event_id, digest).alias("event_id"),
        moment.alias("occurred_at"),
        pl.lit(0, pl.Int64).alias("revision"),
        pl.col("line").alias("position"),
    )
    mark("missing_attribute", "id", head.get_column("event_id").is_null())
    subjects = head.get_column("subject")
    odd = {value: flaw for value in subjects.unique().to_list() if (flaw := subject_flaw(value)) is not None}
    if odd:
        for row, value in enumerate(subjects):
            if value in odd:
                flaws.setdefault(row, Flaw(odd[value], "subject"))
    frame = pl.concat([head, fields], how="horizontal")
    empty = {f.name: range(table.height) for f in by_name.values() if f.may_be_null}  # an empty cell is null
    return frame, {**rule_flaws(mapping.event_type, fields, empty), **flaws}


def _typed(text: pl.Series, dtype: pl.DataType, scale: int | None, date_format: str | None) -> pl.Series:
    if scale is not None:
        exact = text.cast(pl.Decimal(38, 9), strict=False) * scale
        whole = exact.cast(pl.Int64, strict=False)
        return whole.set(whole.cast(pl.Decimal(38, 9)) != exact, None)
    if dtype == pl.Date:
        return text.str.to_date(date_format or "%Y-%m-%d", strict=False)
    if dtype == pl.Boolean:
        return text.str.to_lowercase().replace_strict(
            {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False},
            default=None,
            return_dtype=pl.Boolean,
        )
    return text.cast(dtype, strict=False)


def _template(template: str, digest: str) -> pl.Expr:
    parts: list[pl.Expr] = []
    for text, name in template_parts(template):
        if text:
            parts.append(pl.lit(text))
        if name == "file":
            parts.append(pl.lit(digest))
        elif name == "line":
            parts.append((pl.col("line") + 1).cast(pl.String))
        elif name is not None:  # an empty cell names nobody: the whole is null
            parts.append(pl.col(name).str.strip_chars().replace("", None))
    return pl.concat_str(parts)
