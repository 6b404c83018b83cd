"""Where events come from: JSON Lines of CloudEvents, any CSV with a mapping, and HTTP batches.

A source is a numbered sequence of lines with a name of its own (the file's digest), so that a range of
lines is ingested exactly once, whoever reads it.
"""

from __future__ import annotations

import abc
import codecs
import csv
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from keys.quiet import no_collections
from lake.cloudevents import parse_cloud_events
from lake.errors import UnreadableInput
from lake.mapped import map_lines
from lake.mapping import Mapping
from lake.parsed import Parsed, joined
from lake.salvage import NOTHING, Aside
from lake.typeregistry import TypeRegistry

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

    def read(self, start: int, batch_events: int, aside: Aside = NOTHING) -> Iterator[Parsed]:
        """Batches from line `start` on.

        Args:
            aside: lines that are letters without being looked at.
        """
        ...


def file_source(path: Path) -> str:
    """What the table knows a file by: its content. Raises `UnreadableInput`."""
    return f"file:{_digest(path)[0]}"


def _digest(path: Path) -> tuple[str, int]:
    """(SHA-256 of a file in hexadecimal digits, its size in bytes)."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest(), path.stat().st_size
    except OSError as error:
        raise UnreadableInput(f"the input cannot be read: {error.strerror}") from None


class _File(abc.ABC):
    """What both file sources share: a digest for a name, and lines that stay bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        full, self.total_bytes = _digest(path)
        self.digest = full[:16]
        self.name = f"file:{full}"
        self.feed = f"file {self.digest}"

    def read(
        self, start: int, batch_events: int = DEFAULT_BATCH_EVENTS, aside: Aside = NOTHING
    ) -> Iterator[Parsed]:
        """Batches from line `start` on."""
        with self._path.open("rb") as file:
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            lines = itertools.islice(enumerate(file), start, None)
            while pieces := list(self._pieces(lines, batch_events, aside)):
                yield joined(pieces)

    def _pieces(self, lines: Iterator[tuple[int, bytes]], left: int, aside: Aside) -> Iterator[Parsed]:
        """Up to `left` lines, parsed a piece at a time."""
        while left > 0:
            with no_collections():
                size = min(left, _PARSE_LINES)
                piece = [(number, raw.rstrip(b"\r\n")) for number, raw in itertools.islice(lines, size)]
                if not piece:
                    return
                left -= len(piece)
                parsed = self._parse(piece, aside)
            yield parsed

    @abc.abstractmethod
    def _parse(self, lines: list[tuple[int, bytes]], aside: Aside) -> Parsed: ...


class JsonLinesFile(_File):
    """A file of CloudEvents, one JSON object per line.

    Raises:
        UnreadableInput: absent or unreadable.
    """

    def __init__(self, path: Path, types: TypeRegistry) -> None:
        super().__init__(path)
        self._types = types

    def _parse(self, lines: list[tuple[int, bytes]], aside: Aside) -> Parsed:
        return parse_cloud_events(lines, self._types, lines[0][0], lines[-1][0] + 1, aside)


class MappedFile(_File):
    """Any CSV (or blank-separated table) with a field mapping.

    Raises:
        UnreadableInput: absent, unreadable, or without a column that the mapping names.
    """

    def __init__(self, path: Path, mapping: Mapping) -> None:
        super().__init__(path)
        self._mapping = mapping
        self._header = mapping.columns or self._first_line()
        mapping.check_header(self._header)

    def _first_line(self) -> tuple[str, ...]:
        with self._path.open("rb") as file:
            text = file.readline().decode("utf-8-sig", "replace")
        cells = next(csv.reader([text], delimiter=self._mapping.delimiter), [])
        return tuple(cell.strip() for cell in cells)

    def _parse(self, lines: list[tuple[int, bytes]], aside: Aside) -> Parsed:
        filled = [line for line in lines if line[1].strip() and (line[0] > 0 or self._mapping.columns)]
        start, end = lines[0][0], lines[-1][0] + 1
        return map_lines(self._mapping, self._header, filled, self.digest, start, end, aside)


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

    def read(
        self, start: int, batch_events: int = DEFAULT_BATCH_EVENTS, aside: Aside = NOTHING
    ) -> Iterator[Parsed]:
        """All of it at once, whatever the batch size: no offset is kept for it, so it lands whole or not."""
        if self._events and start == 0:
            yield parse_cloud_events(list(enumerate(self._events)), self._types, 0, len(self._events), aside)
