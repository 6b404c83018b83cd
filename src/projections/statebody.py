"""The bodies of a view's state: each holds the values of its own bucket and not a byte of another's.

A slice of an Arrow table is no such body: its buffers are padded with what follows them, a categorical
column brings its whole dictionary, and what lies under a null may be anybody's. Here a frame is taken apart
into flat columns of the types that `lake.bodies` packs, which writes values and never buffers:

    body     version (1) | length (4) | types, as JSON | level*
    level    rows (8) | length (8) | packed body

A list's elements are a level of their own. A categorical value is written as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import polars as pl
from attrs import define, field

from lake.bodies import Array, pack
from lake.bodyreader import unpack
from lake.errors import CorruptBlock
from projections.errors import DefinitionError, StateDamaged

_VERSION: Final = 2  # what came before was Arrow IPC, which begins with a zero
_HEAD_BYTES: Final = 4
_SIZE_BYTES: Final = 8
_AS_IS: Final = ("Float64", "Boolean", "String", "Binary", "Date", "Int64")
_AS_NUMBER: Final = ("Int8", "Int16", "Int32", "UInt8", "UInt16", "UInt32")
_AS_TEXT: Final = ("Int128", "UInt128")
_AS_FLOAT: Final = ("Float16", "Float32")
Type = Mapping[str, Any]
"""A column's type as JSON: `t` and what that type needs."""


@define
class _Level:
    """Flat columns, and where the rows of each bucket begin."""

    cuts: Array
    columns: list[pl.Series] = field(factory=list)

    def add(self, series: pl.Series) -> None:
        """A column of a type that `lake.bodies` packs."""
        self.columns.append(series.alias(f"c{len(self.columns)}"))

    def parts(self) -> list[bytes]:
        """Of each bucket: rows, length, packed body."""
        rows = np.diff(self.cuts)
        filled = rows > 0
        frame = pl.DataFrame(self.columns)
        bodies = iter(pack(frame, np.append(self.cuts[:-1][filled], self.cuts[-1])).to_list())
        parts = []
        for count in rows.tolist():
            body = next(bodies) if count else b""
            parts.append(count.to_bytes(_SIZE_BYTES, "big") + len(body).to_bytes(_SIZE_BYTES, "big") + body)
        return parts


def written(frame: pl.DataFrame, key: str, buckets: Sequence[int]) -> list[bytes]:
    """A body per bucket with that bucket's rows of a frame.

    Args:
        key: the column with the bucket.
        buckets: each once; rows of others are left out.

    Raises:
        DefinitionError: a column is of a type that a state cannot keep.
    """
    own = sorted(buckets)
    ordered = frame.filter(pl.col(key).is_in(own)).sort(key, maintain_order=True)
    cuts = np.append(np.searchsorted(ordered[key].to_numpy(), own, side="left"), ordered.height)
    levels = [_Level(cuts.astype(np.int64))]
    types = [[column.name, _flat(column, levels[0], levels)] for column in ordered.iter_columns()]
    text = json.dumps(types, separators=(",", ":")).encode()
    head = bytes([_VERSION]) + len(text).to_bytes(_HEAD_BYTES, "big") + text
    by_bucket = dict(zip(own, zip(*(level.parts() for level in levels), strict=True), strict=True))
    return [head + b"".join(by_bucket[bucket]) for bucket in buckets]


def read(bodies: Sequence[bytes]) -> pl.DataFrame:
    """The rows of some buckets, in the order of the bodies; at least one.

    Raises:
        StateDamaged: a body is not one that `written` made.
    """
    kinds: dict[bytes, list[memoryview]] = {}
    for body in bodies:
        end = 1 + _HEAD_BYTES + int.from_bytes(body[1 : 1 + _HEAD_BYTES], "big")
        if body[:1] != bytes([_VERSION]) or end > len(body):
            raise StateDamaged("a bucket's state is of a layout that this version does not read")
        kinds.setdefault(body[1 + _HEAD_BYTES : end], []).append(memoryview(body)[end:])
    try:
        frames = [_frame(json.loads(types), together) for types, together in kinds.items()]
        filled = [frame for frame in frames if frame.height] or frames[:1]
        return pl.concat(filled, how="vertical_relaxed").rechunk()
    except (CorruptBlock, ValueError, TypeError, KeyError, StopIteration, pl.exceptions.PolarsError):
        raise StateDamaged("a bucket's state does not hold what its types say") from None


# -- writing -----------------------------------------------------------------------------------------


def _flat(series: pl.Series, level: _Level, levels: list[_Level]) -> Type:
    """Adds a column's values to its level, and to levels below; returns the type to read it back with."""
    dtype, name = series.dtype, type(series.dtype).__name__
    if isinstance(dtype, pl.Struct):
        present = series.is_not_null()
        level.add(present)
        fields = [_where(present, series.struct.field(one.name)) for one in dtype.fields]
        return {"t": name, "fields": [[one.name, _flat(one, level, levels)] for one in fields]}
    if isinstance(dtype, pl.Array):
        return {"t": name, "size": dtype.size, "of": _elements(series.arr.to_list(), level, levels)}
    if isinstance(dtype, pl.Map):
        pairs = series.cast(pl.List(pl.Struct({"key": dtype.key, "value": dtype.value})))
        return {"t": name, "of": _elements(pairs, level, levels)}
    if isinstance(dtype, pl.List):
        return {"t": name, "of": _elements(series, level, levels)}
    level.add(_stored(series))
    return _leaf(dtype)


def _where(present: pl.Series, series: pl.Series) -> pl.Series:
    """Null where a struct is: what lies under its null is nobody's."""
    if present.all():
        return series
    return pl.DataFrame({"p": present, series.name: series}).select(
        pl.when("p").then(pl.col(series.name)).alias(series.name)
    )[series.name]


def _elements(series: pl.Series, level: _Level, levels: list[_Level]) -> Type:
    lengths = series.list.len().cast(pl.Int64)
    level.add(lengths)
    ends = np.append(0, np.cumsum(lengths.fill_null(0).to_numpy()))
    below = _Level(ends[level.cuts])
    levels.append(below)
    inner = series.dtype.inner  # type: ignore[attr-defined]
    values = series.filter(lengths.fill_null(0) > 0).explode()
    return _flat(values if len(values) else pl.Series([], dtype=inner), below, levels)


def _stored(series: pl.Series) -> pl.Series:
    """A leaf as one of the types that `lake.bodies` packs."""
    dtype, name = series.dtype, type(series.dtype).__name__
    if name in _AS_IS:
        return series
    if isinstance(dtype, pl.Null):
        return series.cast(pl.Boolean)
    if name in _AS_NUMBER:
        return series.cast(pl.Int64)
    if isinstance(dtype, pl.UInt64):
        return series.reinterpret(signed=True)
    if isinstance(dtype, pl.Datetime | pl.Duration | pl.Time):
        return series.to_physical()
    if name in _AS_FLOAT:
        return series.cast(pl.Float64)
    if name in _AS_TEXT or isinstance(dtype, pl.Decimal | pl.Categorical):
        return series.cast(pl.String)
    raise DefinitionError(f"column `{series.name}` has type {dtype}, which a view's state cannot keep")


def _leaf(dtype: pl.DataType) -> Type:
    found: dict[str, Any] = {"t": type(dtype).__name__}
    if isinstance(dtype, pl.Datetime):
        found |= {"unit": dtype.time_unit, "zone": dtype.time_zone}
    elif isinstance(dtype, pl.Duration):
        found |= {"unit": dtype.time_unit}
    elif isinstance(dtype, pl.Decimal):
        found |= {"precision": dtype.precision, "scale": dtype.scale}
    elif isinstance(dtype, pl.Categorical):
        kinds = dtype.categories
        found |= {
            "name": kinds.name(),
            "space": kinds.namespace(),
            "physical": None if kinds.is_global() else repr(kinds.physical()),
        }
    return found


# -- reading -----------------------------------------------------------------------------------------


def _frame(types: Sequence[tuple[str, Type]], bodies: Sequence[memoryview]) -> pl.DataFrame:
    """The rows of bodies of the same types."""
    shapes: list[list[pl.DataType]] = [[]]
    for _, kind in types:
        _shape(kind, shapes[0], shapes)
    places = [0] * len(bodies)
    levels = iter([_level(shape, bodies, places) for shape in shapes])
    if any(at != len(body) for at, body in zip(places, bodies, strict=True)):
        raise StateDamaged("a bucket's state is longer than what it says it holds")
    root = next(levels)
    return pl.DataFrame([_column(kind, root, levels).alias(name) for name, kind in types])


def _shape(kind: Type, level: list[pl.DataType], levels: list[list[pl.DataType]]) -> None:
    """The flat types of every level, in the order in which `_flat` adds them."""
    name = kind["t"]
    if name == "Struct":
        level.append(pl.Boolean())
        for _, inner in kind["fields"]:
            _shape(inner, level, levels)
    elif name in ("List", "Array", "Map"):
        level.append(pl.Int64())
        levels.append([])
        _shape(kind["of"], levels[-1], levels)
    else:
        level.append(_stored_type(name))


def _stored_type(name: str) -> pl.DataType:
    if name in _AS_IS:
        return getattr(pl, name)()  # type: ignore[no-any-return]
    if name == "Null":
        return pl.Boolean()
    if name in _AS_FLOAT:
        return pl.Float64()
    return pl.String() if name in (*_AS_TEXT, "Decimal", "Categorical") else pl.Int64()


def _level(
    shape: Sequence[pl.DataType], bodies: Sequence[memoryview], places: list[int]
) -> Iterator[pl.Series]:
    """A level's columns over all bodies; moves every body's place behind the level."""
    counts, packed = [], []
    for number, body in enumerate(bodies):
        at = places[number]
        rows, size = (int.from_bytes(body[at + n : at + n + _SIZE_BYTES], "big") for n in (0, _SIZE_BYTES))
        at += 2 * _SIZE_BYTES
        places[number] = at + size
        if places[number] > len(body):
            raise StateDamaged("a bucket's state is cut off")
        if rows:
            counts.append(rows)
            packed.append(bytes(body[at : at + size]))
    schema = {f"c{n}": dtype for n, dtype in enumerate(shape)}
    return unpack(packed, np.array(counts, dtype=np.int64), schema, list(schema)).iter_columns()


def _column(kind: Type, level: Iterator[pl.Series], levels: Iterator[Iterator[pl.Series]]) -> pl.Series:
    """A column with its own type, out of the flat ones."""
    name = kind["t"]
    if name == "Struct":
        present = next(level)
        fields = [_column(inner, level, levels).alias(field) for field, inner in kind["fields"]]
        return _where(present, _struct(fields, len(present)))
    if name in ("List", "Array", "Map"):
        lengths = next(level)
        found = _lists(lengths, _column(kind["of"], next(levels), levels))
        if name == "Array":
            return found.list.to_array(kind["size"])
        return found if name == "List" else _map(found)
    return next(level) if name in _AS_IS else _restored(next(level), kind)


def _struct(fields: Sequence[pl.Series], height: int) -> pl.Series:
    if not fields:
        return pl.Series("s", [{}] * height, dtype=pl.Struct({}))
    return pl.DataFrame(fields).to_struct("s")


def _lists(lengths: pl.Series, elements: pl.Series) -> pl.Series:
    """Consecutive elements as lists of these lengths; null where the length is."""
    rows = np.arange(len(lengths))
    of = np.repeat(rows, lengths.fill_null(0).to_numpy())
    if len(of) != len(elements):
        raise StateDamaged("a bucket's state has lists without their elements")
    filled = pl.DataFrame({"row": of, "v": elements}).group_by("row", maintain_order=True).agg("v")
    together = pl.DataFrame({"row": rows, "n": lengths}).join(
        filled, on="row", how="left", maintain_order="left"
    )
    empty = pl.Series("v", [[]], dtype=pl.List(elements.dtype))
    return together.select(pl.when(pl.col("n") == 0).then(pl.lit(empty).first()).otherwise("v"))["v"]


def _map(pairs: pl.Series) -> pl.Series:
    inner = pairs.dtype.inner  # type: ignore[attr-defined]
    return pairs.cast(pl.Map(*(one.dtype for one in inner.fields)))


def _restored(series: pl.Series, kind: Type) -> pl.Series:
    """A leaf with its own type again."""
    name = kind["t"]
    if name == "UInt64":
        return series.reinterpret(signed=False)
    return series.cast(_leaf_type(name, kind))


def _leaf_type(name: str, kind: Type) -> pl.DataType:
    if name == "Datetime":
        return pl.Datetime(kind["unit"], kind["zone"])
    if name == "Duration":
        return pl.Duration(kind["unit"])
    if name == "Decimal":
        return pl.Decimal(kind["precision"], kind["scale"])
    if name == "Categorical":
        if kind["physical"] is None:
            return pl.Categorical()
        return pl.Categorical(pl.Categories(kind["name"], kind["space"], getattr(pl, kind["physical"])))
    return getattr(pl, name)()  # type: ignore[no-any-return]
