"""Where events come from: JSON Lines of CloudEvents, any CSV with a mapping, and HTTP batches.

A source is a numbered sequence of lines with a name of its own (the file's digest), so that a range of
lines is ingested exactly once, whoever reads it.
"""

from __future__ import annotations

import abc
import csv
import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import polars as pl

from keys.quiet import no_collections
from lake.cloudevents import Parsed, Rejected, joined, parse_cloud_events, without
from lake.errors import UnreadableInput
from lake.eventtypes import TypeRegistry
from lake.mapping import Mapping, template_parts
from lake.validate import (
    Flaw,
    Flaws,
    parse_time,
    rule_flaws,
    subject_flaw,
)

DEFAULT_BATCH_EVENTS: Final = 500_000
_PARSE_LINES: Final = 50_000  # parsed objects are many times as large as the frame they become
_CHUNK_BYTES: Final = 1024 * 1024


class Source(Protocol):
    """A named sequence of lines.

    Attributes:
        name: the same for the same content; holds no identifier and no path.
        feed: a short label for people.
        total_bytes: for progress; 0 where unknown.
    """

    name: str
    feed: str
    total_bytes: int

    def read(self, start: int, batch_events: int) -> Iterator[Parsed]:
        """Batches from line `start` on."""
        ...


class _File(abc.ABC):
    """What both file sources share: a digest for a name, and lines that stay bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
            self.total_bytes = path.stat().st_size
        except OSError as error:
            raise UnreadableInput(f"the input cannot be read: {error.strerror}") from None
        self.digest = digest.hexdigest()[:16]
        full = digest.hexdigest()
        self.name = f"file:{full}"
        self.feed = f"file {self.digest}"

    def read(self, start: int, batch_events: int = DEFAULT_BATCH_EVENTS) -> Iterator[Parsed]:
        """Batches from line `start` on."""
        with self._path.open("rb") as file:
            lines = itertools.islice(enumerate(file), start, None)
            while pieces := list(self._pieces(lines, batch_events)):
                yield joined(pieces)

    def _pieces(self, lines: Iterator[tuple[int, bytes]], left: int) -> Iterator[Parsed]:
        """Up to `left` lines, parsed a piece at a time."""
        while left > 0:
            with no_collections():
                size = min(left, _PARSE_LINES)
                piece = [(number, raw.rstrip(b"\r\n")) for number, raw in itertools.islice(lines, size)]
                if not piece:
                    return
                left -= len(piece)
                parsed = self._parse(piece)
            yield parsed

    @abc.abstractmethod
    def _parse(self, lines: list[tuple[int, bytes]]) -> Parsed: ...


class JsonLinesFile(_File):
    """A file of CloudEvents, one JSON object per line.

    Raises:
        UnreadableInput: absent or unreadable.
    """

    def __init__(self, path: Path, types: TypeRegistry) -> None:
        super().__init__(path)
        self._types = types

    def _parse(self, lines: list[tuple[int, bytes]]) -> Parsed:
        return parse_cloud_events(lines, self._types, lines[0][0], lines[-1][0] + 1)


class MappedFile(_File):
    """Any CSV (or blank-separated table) with a field mapping.

    Raises:
        UnreadableInput: absent, unreadable, or without a column that the mapping names.
    """

    def __init__(self, path: Path, mapping: Mapping) -> None:
        super().__init__(path)
        self._mapping = mapping
        self._header = mapping.columns or self._first_line()
        absent = mapping.needed_columns() - set(self._header)
        if absent:
            raise UnreadableInput(
                f"the file has no column {', '.join(sorted(absent))}",
                next_step="Name the file's columns in the mapping's [format] columns.",
            )

    def _first_line(self) -> tuple[str, ...]:
        with self._path.open("rb") as file:
            text = file.readline().decode("utf-8-sig", "replace")
        cells = next(csv.reader([text], delimiter=self._mapping.delimiter), [])
        return tuple(cell.strip() for cell in cells)

    def _parse(self, lines: list[tuple[int, bytes]]) -> Parsed:
        mapping, width = self._mapping, len(self._header)
        numbers: list[int] = []
        raws: list[bytes] = []
        cells: list[list[str]] = []
        rejected: list[Rejected] = []
        blank = 0
        for number, raw in lines:
            if (number == 0 and not mapping.columns) or not raw.strip():
                blank += 1
                continue
            row, flaw = self._cells(raw)
            if flaw is None and len(row) != width:
                flaw = Flaw("wrong_column_count")
            if flaw is not None:
                rejected.append(Rejected(number, flaw, raw))
                continue
            numbers.append(number)
            raws.append(raw)
            cells.append(row)
        columns = list(zip(*cells, strict=True)) if cells else [()] * width
        table = pl.DataFrame(
            {
                name: pl.Series(values, dtype=pl.String)
                for name, values in zip(self._header, columns, strict=True)
            }
        ).with_columns(pl.Series("line", numbers, dtype=pl.Int64))
        frame, flaws = _map_table(mapping, table, self.digest)
        subjects = frame.get_column("subject").to_list()
        for at, found in flaws.items():
            subject = subjects[at] if subject_flaw(subjects[at]) is None else None
            rejected.append(Rejected(numbers[at], found, raws[at], subject))
        rejected.sort(key=lambda r: r.line)
        good = without(frame, flaws)
        accepted = ((mapping.event_type, good),) if good.height else ()
        return Parsed(lines[0][0], lines[-1][0] + 1, accepted, tuple(rejected), blank)

    def _cells(self, raw: bytes) -> tuple[list[str], Flaw | None]:
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return [], Flaw("invalid_utf8")
        if self._mapping.kind == "whitespace":
            return text.split(), None
        try:
            return next(csv.reader(io.StringIO(text), delimiter=self._mapping.delimiter, strict=True)), None
        except (csv.Error, StopIteration):
            return [], Flaw("malformed_csv")


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
    subjects = head.get_column("subject")
    odd = {value: flaw for value in subjects.unique().to_list() if (flaw := subject_flaw(value)) is not None}
    if odd:
        for row, value in enumerate(subjects):
            if value in odd:
                flaws.setdefault(row, Flaw(odd[value], "subject"))
    frame = pl.concat([head, fields], how="horizontal")
    return frame, {**rule_flaws(mapping.event_type, fields), **flaws}


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
        elif name is not None:
            parts.append(pl.col(name).str.strip_chars())
    return pl.concat_str(parts)


def _batches(lines: Iterable[tuple[int, bytes]], size: int) -> Iterator[list[tuple[int, bytes]]]:
    batch: list[tuple[int, bytes]] = []
    for line in lines:
        batch.append(line)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


class HttpBatch:
    """One batch of CloudEvents that a client posted.

    Args:
        events: raw JSON of each event.
        key: the client's idempotency key; the same key is the same source, so it lands once.
    """

    def __init__(self, events: Sequence[bytes], key: str, types: TypeRegistry) -> None:
        self._events = events
        self._types = types
        self.name = f"http:{hashlib.sha256(key.encode()).hexdigest()[:32]}"
        self.feed = "http"
        self.total_bytes = sum(map(len, events))

    def read(self, start: int, batch_events: int = DEFAULT_BATCH_EVENTS) -> Iterator[Parsed]:
        lines = list(enumerate(self._events))[start:]
        for batch in _batches(lines, batch_events):
            yield parse_cloud_events(batch, self._types, batch[0][0], batch[-1][0] + 1)
