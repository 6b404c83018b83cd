"""Files taken apart: what lies in Parquet, Avro, SQLite and compressed files, as bytes and as decoded values.

Values are joined by zero characters, so that no two of them make a word together.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow.parquet as pq
import zstandard

ZSTD: Final = b"\x28\xb5\x2f\xfd"
_SQLITE: Final = b"SQLite format 3\0"
_ODD: Final = re.compile("[\udc80-\udcff]")
_MOST_BYTES: Final = 1 << 30
_ROWS: Final = 10_000
_AVRO_STARTS: Final = 12  # where a block's compressed bytes may begin, behind its count and size


def text_of(raw: bytes) -> str:
    """Bytes as text; those that are not UTF-8 stay told apart."""
    return raw.decode("utf-8", "surrogateescape")


def values_of(frame: pl.DataFrame, *, numbers: bool) -> str:
    """Every value of a frame as text, nested ones too.

    Args:
        numbers: also what is no text, for an id that is long: one of digits may have been read as a number.
    """
    return "\0".join(part for column in frame.iter_columns() for part in _column(column, numbers))


def _column(column: pl.Series, numbers: bool) -> Iterator[str]:
    dtype = column.dtype
    if isinstance(dtype, pl.List | pl.Array):
        yield from _column(column.explode(), numbers)
    elif isinstance(dtype, pl.Struct):
        for part in column.struct.unnest().iter_columns():
            yield from _column(part, numbers)
    elif dtype == pl.Binary:
        for value in column.drop_nulls().to_list():
            yield from _bytes_as_text(_unpacked(value), numbers)
    elif dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum) or (numbers and dtype != pl.Null):
        texts = column.cast(pl.String).drop_nulls()
        if len(texts):  # joined there: millions of values never become objects here
            yield str(texts.str.join("\0").item())


def is_database(raw: bytes) -> bool:
    """Whether these are the first bytes of a SQLite file."""
    return raw.startswith(_SQLITE)


def unpacked_bytes(path: Path, raw: bytes) -> Iterator[bytes]:
    """What a compressed file or an Avro container holds.

    Raises:
        OSError, EOFError, zlib.error, zstandard.ZstdError: it cannot be decompressed.
    """
    if raw[:4] == b"Obj\x01":
        yield _avro(raw)
    elif raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    elif raw[:4] == ZSTD:
        yield zstandard.ZstdDecompressor().decompress(raw, max_output_size=_MOST_BYTES)


def parquet_values(path: Path, *, numbers: bool) -> Iterator[str]:
    """The values of a Parquet file but for its sealed ones, some rows at a time.

    Raises:
        OSError, pyarrow.ArrowException: it is damaged.
    """
    with pq.ParquetFile(path) as file:
        columns = [name for name in file.schema_arrow.names if name != "sealed"]
        for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield values_of(frame, numbers=numbers)


@contextlib.contextmanager
def opened_database(path: Path) -> Iterator[sqlite3.Connection]:
    """A copy of a SQLite file with what its log holds; the file itself is not touched.

    Raises:
        sqlite3.Error, OSError: it is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="shredlake-db-") as folder:
        copy = Path(folder) / "copy.db"
        for end in ("-wal", ""):  # the log first: what is moved out of it meanwhile is in the file
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{end}", f"{copy}{end}")
        with contextlib.closing(sqlite3.connect(copy)) as db:
            yield db


def database_values(db: sqlite3.Connection, *, numbers: bool) -> Iterator[str]:
    """The values of every table, some rows at a time. Raises `sqlite3.Error`."""
    tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        rows = db.execute('SELECT * FROM "' + table.replace('"', '""') + '"')  # names of the file itself
        while some := rows.fetchmany(_ROWS):
            yield "\0".join(_cells(some, numbers))


def _bytes_as_text(value: bytes, numbers: bool) -> Iterator[str]:
    """Chance puts few bytes into any ciphertext: for a short id only what is text as a whole counts."""
    text = text_of(value)
    if numbers or text.isascii() or not _ODD.search(text):
        yield text


def _cells(rows: Iterable[tuple[object, ...]], numbers: bool) -> Iterator[str]:
    for row in rows:
        for cell in row:
            if isinstance(cell, bytes):
                yield from _bytes_as_text(cell, numbers)
            elif isinstance(cell, str) or (numbers and cell is not None):
                yield str(cell)


def _unpacked(value: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(value) if value[:4] == ZSTD else value


def _avro(raw: bytes) -> bytes:
    """Every deflate, gzip or zstd stream of an Avro container, decompressed; the rest as it is."""
    out = []
    marker = raw[-16:]
    for part in raw.split(marker):
        out.append(part)
        for start in range(min(len(part), _AVRO_STARTS)):
            for window in (-15, 31):
                with contextlib.suppress(zlib.error):
                    out.append(zlib.decompressobj(window).decompress(part[start:]))
        if (at := part.find(ZSTD)) >= 0:
            with contextlib.suppress(zstandard.ZstdError):
                out.append(zstandard.ZstdDecompressor().decompressobj().decompress(part[at:]))
    return b"\0".join(out)
