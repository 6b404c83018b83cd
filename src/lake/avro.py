"""Runs of Avro binary records (Avro 1.11), encoded and decoded a column at a time.

One batch becomes one uncompressed container that Polars writes; record sizes are computed from the
columns (zig-zag varints and lengths) and must add up to the container's body, so that the body can be
cut at block boundaries. To read, bodies of one schema are joined behind one header and Polars decodes
them as one container. Every field is a union with null, as Polars writes it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import orjson
import polars as pl

from lake.errors import CorruptBlock

Schema = dict[str, pl.DataType]

_SYNC: Final = bytes(range(16))
_TYPES: Final[dict[type[pl.DataType], Any]] = {
    pl.String: "string",
    pl.Int64: "long",
    pl.Float64: "double",
    pl.Boolean: "boolean",
    pl.Binary: "bytes",
    pl.Date: {"type": "int", "logicalType": "date"},
}
_VARINT_LIMITS: Final = np.array([1 << (7 * k) for k in range(1, 10)], dtype=np.uint64)


def avro_schema(name: str, schema: Schema) -> dict[str, Any]:
    """The Avro schema of a frame: a record of nullable fields."""
    fields = [{"name": n, "type": ["null", _TYPES[type(t)]]} for n, t in schema.items()]
    return {"type": "record", "name": name, "fields": fields}


def encode(frame: pl.DataFrame) -> tuple[bytes, np.ndarray[Any, np.dtype[np.int64]]]:
    """(all records one behind the other, offset of each record and of the end: n + 1 values).

    Raises:
        CorruptBlock: the computed sizes do not add up to what was written.
    """
    sizes = np.zeros(frame.height, dtype=np.int64)
    for column in frame.iter_columns():
        sizes += _sizes(column)
    offsets = np.zeros(frame.height + 1, dtype=np.int64)
    np.cumsum(sizes, out=offsets[1:])
    buffer = io.BytesIO()
    frame.rechunk().write_avro(buffer, compression="uncompressed")
    body = _container_body(buffer.getvalue())
    if len(body) != int(offsets[-1]):
        raise CorruptBlock(f"{len(body)} bytes were written where {offsets[-1]} were computed")
    return body, offsets


def decode(
    bodies: Sequence[bytes], counts: Sequence[int], schema: Schema, columns: Sequence[str]
) -> pl.DataFrame:
    """The records of bodies of one schema, in order; only `columns` are materialised.

    Raises:
        CorruptBlock: the bodies do not hold `sum(counts)` records of the schema.
    """
    total = int(sum(counts))
    if total == 0:
        return pl.DataFrame(schema={name: schema[name] for name in columns})
    joined = b"".join(bodies)
    header = b"Obj\x01" + _metadata(schema) + _SYNC
    container = b"".join((header, _long(total), _long(len(joined)), joined, _SYNC))
    try:
        frame = pl.read_avro(io.BytesIO(container), columns=list(columns) or None)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise CorruptBlock("a body does not decode as its schema says") from error
    if frame.height != total:
        raise CorruptBlock(f"{frame.height} records where {total} were promised")
    return frame.select(columns)


def _sizes(column: pl.Series) -> Any:
    """Bytes of each value: one for the union index, then the value where it is not null."""
    present = column.is_not_null().to_numpy()
    kind = column.dtype
    if kind == pl.Boolean:
        body: Any = 1
    elif kind == pl.Float64:
        body = 8
    elif kind in (pl.Int64, pl.Date):
        body = _varint_sizes(column.to_physical().fill_null(0).cast(pl.Int64).to_numpy())
    elif kind in (pl.String, pl.Binary):
        lengths = column.str.len_bytes() if kind == pl.String else column.bin.size()
        plain = lengths.fill_null(0).cast(pl.Int64).to_numpy()
        body = _varint_sizes(plain) + plain
    else:
        raise CorruptBlock(f"a column of type {kind} cannot be stored")
    return 1 + np.where(present, body, 0)


def _varint_sizes(values: Any) -> Any:
    zigzag = ((values << 1) ^ (values >> 63)).astype(np.uint64)
    return np.searchsorted(_VARINT_LIMITS, zigzag, side="right").astype(np.int64) + 1


def _container_body(container: bytes) -> bytes:
    """The records of a container file without its header, block counts and sync marks."""
    at = 4
    while True:
        count, at = _read_long(container, at)
        if count == 0:
            break
        for _ in range(2 * abs(count)):
            size, at = _read_long(container, at)
            at += size
    at += 16
    parts = []
    while at < len(container):
        _, at = _read_long(container, at)
        size, at = _read_long(container, at)
        parts.append(container[at : at + size])
        at += size + 16
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _metadata(schema: Schema) -> bytes:
    text = orjson.dumps(avro_schema("r", schema))
    pairs = ((b"avro.schema", text), (b"avro.codec", b"null"))
    body = b"".join(_long(len(k)) + k + _long(len(v)) + v for k, v in pairs)
    return _long(len(pairs)) + body + b"\0"


def _long(value: int) -> bytes:
    """A non-negative Avro long."""
    zigzag, out = value << 1, bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


def _read_long(data: bytes, at: int) -> tuple[int, int]:
    shift = value = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
