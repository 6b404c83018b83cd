"""Which types a view's columns may have: as a key, in state, and in what is published. Pure.

`TABLE` is the whole list; docs/views.md shows it. What is not exact, has no order that two machines agree
on, or cannot be read back is refused by name, with what to use instead.
"""

from __future__ import annotations

from typing import Final, Literal

import polars as pl
from attrs import frozen

Use = Literal["key", "state", "result"]
TEXT: Final = "cast it to text: `.cast(pl.String)`"
EXACT: Final = (
    'use a scaled integer, `(c("eur") * 100).round().cast(pl.Int64)`, or `.cast(pl.Decimal(38, 2))`; '
    "divide in `final`"
)
_PARTS: Final = "give each part a column of its own, or join it to one text"
_MEANT: Final = "cast it to the type that is meant: `.cast(pl.Int64)`"


@frozen
class ColumnType:
    """What becomes of one Polars type.

    Attributes:
        kept: whether keys and state may have it.
        published: Iceberg's name of what readers get; "" where a result may not have it.
        instead: what to use where one of both is refused, or where a value does not fit.
    """

    kept: bool
    published: str
    instead: str = ""


_LONG: Final = ColumnType(True, "long")
_WIDE: Final = ColumnType(True, "long", "publish it as `.cast(pl.Decimal(38, 0))`")
_FLOAT: Final = ColumnType(False, "double", EXACT)
TABLE: Final[dict[str, ColumnType]] = {
    **dict.fromkeys(("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32"), _LONG),
    **dict.fromkeys(("UInt64", "Int128", "UInt128"), _WIDE),
    **dict.fromkeys(("Float16", "Float32", "Float64"), _FLOAT),
    "Decimal": ColumnType(True, "decimal"),
    "Boolean": ColumnType(True, "boolean"),
    "String": ColumnType(True, "string"),
    "Binary": ColumnType(True, "binary"),
    "Date": ColumnType(True, "date"),
    "Datetime": ColumnType(True, "timestamptz, timestamp without a zone", "round it: `.dt.truncate('1us')`"),
    "Time": ColumnType(True, "time", "publish `.cast(pl.Int64) // 1000`, microseconds of the day"),
    "Duration": ColumnType(True, "", "publish a number: `.dt.total_microseconds()`"),
    "Categorical": ColumnType(False, "", TEXT),
    "Enum": ColumnType(False, "", TEXT),
    "List": ColumnType(False, "", _PARTS),
    "Array": ColumnType(False, "", _PARTS),
    "Struct": ColumnType(False, "", _PARTS),
    "Map": ColumnType(False, "", _PARTS),
    "Null": ColumnType(False, "", _MEANT),
    "Object": ColumnType(False, "", _MEANT),
    "Unknown": ColumnType(False, "", _MEANT),
}
_MICROSECOND: Final = {"ns": 1000}


class Refusal(Exception):
    """A column that is refused for its type or for a value in it.

    Attributes:
        reason: what is wrong, without a value.
        instead: what to write.
    """

    def __init__(self, reason: str, instead: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.instead = instead


def refuse_type(dtype: pl.DataType, use: Use) -> None:
    """Passes what a column of this use may be.

    Raises:
        Refusal: says what to use instead.
    """
    known = TABLE.get(_name(dtype), ColumnType(False, "", _MEANT))
    if known.published if use == "result" else known.kept:
        return
    where = {"key": "told apart by", "state": "kept as a measure", "result": "published"}[use]
    inexact = " is not exact and" if known is _FLOAT else ""
    raise Refusal(f"{dtype}{inexact} cannot be {where}", known.instead)


def refuse_row_type(dtype: pl.DataType) -> None:
    """Passes what rows of a Fold without `state` may have: what can be kept, or published as it is.

    Raises:
        Refusal: says what to use instead.
    """
    if not TABLE.get(_name(dtype), ColumnType(False, "")).kept:
        refuse_type(dtype, "result")


def narrowed(column: pl.Series) -> pl.Series:
    """128-bit integers as Int64, which state and readers have; anything else as it is.

    Raises:
        Refusal: a value does not fit.
    """
    if column.dtype not in (pl.Int128, pl.UInt128):
        return column
    return _as_long(column)


def published(column: pl.Series) -> pl.Series:
    """The column with the type that readers get, every value the same.

    Raises:
        Refusal: the type cannot be published, or a value does not fit.
    """
    dtype = column.dtype
    refuse_type(dtype, "result")
    if dtype.is_integer():
        return column if dtype == pl.Int64 else _as_long(column)
    if dtype.is_float():
        odd = len(column) - column.null_count() - int(column.is_finite().sum())
        if odd:
            raise Refusal(
                f"{odd} of {len(column)} values are NaN or infinite",
                "keep divisions by zero out: `pl.when(n > 0).then(cents / n)` gives null there",
            )
        return column.cast(pl.Float64)
    if isinstance(dtype, pl.Datetime):
        coarse = column.dt.cast_time_unit("us")
        _refuse_finer(column, coarse.dt.cast_time_unit(dtype.time_unit))
        return coarse.dt.convert_time_zone("UTC") if dtype.time_zone is not None else coarse
    if dtype == pl.Time:
        _refuse_finer(column, (column.cast(pl.Int64) // 1000 * 1000).cast(pl.Time))
    return column


def _as_long(column: pl.Series) -> pl.Series:
    narrow = column.cast(pl.Int64, strict=False)
    lost = narrow.null_count() - column.null_count()
    if lost:
        raise Refusal(f"{lost} of {len(column)} values do not fit 64 bits", _WIDE.instead)
    return narrow


def _refuse_finer(column: pl.Series, coarse: pl.Series) -> None:
    lost = (column != coarse).sum()
    if lost:
        name = _name(column.dtype)
        raise Refusal(f"{lost} of {len(column)} values are finer than a microsecond", TABLE[name].instead)


def _name(dtype: pl.DataType) -> str:
    return type(dtype).__name__
