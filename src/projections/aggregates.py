"""Mergeable aggregates: merge is associative and commutative, so order, retries and parallelism
cannot change an answer. Measures in state are integers, decimals, dates, times or text; never floats."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Protocol

import polars as pl
from attrs import frozen

from projections.columntypes import EXACT, Refusal, refuse_type

ORDER = ("occurred_at", "event_id")
"""What first and last are decided by."""
DIGITS: Final = 38
"""Of a decimal, in Polars and in Iceberg."""
_HALF: Final = 1 << 64
_MARGIN: Final = 1 - 2**-20
"""A sum of floats is off by less than this share; Polars' 128-bit sums wrap silently inside of groups."""


class Aggregate(Protocol):
    """State columns of one measure: how they come from events, and how two of them become one."""

    def check(self, dtype: pl.DataType | None) -> None:
        """Refuses a type of the measured expression; None for what measures none. Raises `Refusal`."""
        ...

    def partial(self, name: str, dtype: pl.DataType | None) -> list[pl.Expr]:
        """Aggregations over events; output columns start with `name`."""
        ...

    def merge(self, name: str, columns: Collection[str]) -> list[pl.Expr]:
        """Aggregations over partial states, which have these columns."""
        ...

    def settle(self, name: str, rows: pl.DataFrame) -> pl.DataFrame:
        """What `partial` or `merge` gave, as state columns. Raises `Refusal` where it does not fit."""
        ...

    def result(self, name: str, columns: Collection[str]) -> list[pl.Expr]:
        """What `final` sees of the merged state."""
        ...


class _OneColumn:
    """State that is one column, shown as it is."""

    def settle(self, name: str, rows: pl.DataFrame) -> pl.DataFrame:
        return rows

    def result(self, name: str, columns: Collection[str]) -> list[pl.Expr]:
        return [pl.col(name)]


@frozen
class Count(_OneColumn):
    """Number of events."""

    def check(self, dtype: pl.DataType | None) -> None:
        pass

    def partial(self, name: str, dtype: pl.DataType | None) -> list[pl.Expr]:
        return [pl.len().cast(pl.Int64).alias(name)]

    def merge(self, name: str, columns: Collection[str]) -> list[pl.Expr]:
        return [pl.col(name).sum()]


@frozen(eq=False)
class Sum:
    """Exact sum of integers, decimals or truth values; nulls count as nothing.

    Integers are summed in 128 bits and come to `final` as Int128; state holds the two halves of a sum.
    Decimals keep their scale and may grow to 38 digits. What does not fit is refused.
    """

    of: pl.Expr

    def check(self, dtype: pl.DataType | None) -> None:
        if dtype is None or dtype.is_float():
            raise Refusal(f"a sum of {dtype} is not exact", EXACT)
        if not (dtype.is_integer() or isinstance(dtype, pl.Decimal | pl.Boolean)):
            span = "sum a number: `.dt.total_microseconds()`"
            instead = span if isinstance(dtype, pl.Duration) else "cast it to pl.Int64"
            raise Refusal(f"there is no sum of {dtype}", instead)

    def partial(self, name: str, dtype: pl.DataType | None) -> list[pl.Expr]:
        if isinstance(dtype, pl.Decimal):
            return _decimal(self.of.cast(pl.Decimal(DIGITS, dtype.scale)), name)
        wide = self.of.cast(pl.Int128)
        # As many numbers of 64 bits as there can be rows do not fill 128.
        return _total(wide, name)[: 2 if dtype in (pl.Int128, pl.UInt128) else 1]

    def merge(self, name: str, columns: Collection[str]) -> list[pl.Expr]:
        return _decimal(pl.col(name), name) if name in columns else _total(_whole(name), name)

    def settle(self, name: str, rows: pl.DataFrame) -> pl.DataFrame:
        size, total = f"{name}__size", f"{name}__total"
        decimal = isinstance(rows.schema.get(name), pl.Decimal)
        if size in rows.columns:
            scale = getattr(rows.schema.get(name), "scale", 0)
            limit = float(10 ** (DIGITS - scale) if decimal else 1 << 127) * _MARGIN
            # Not `<`: a sum of floats that is not a number is too large as well.
            over = rows.height - int((rows[size].abs() < limit).sum())
            if over:
                room = f"{DIGITS} digits, {scale} of them decimal places" if decimal else "128 bits"
                raise Refusal(f"{over} of {rows.height} sums do not fit {room}", "sum a coarser unit")
            rows = rows.drop(size)
        if decimal:
            return rows
        half = pl.lit(_HALF, dtype=pl.Int128)
        return rows.with_columns(
            (pl.col(total) // half).cast(pl.Int64).alias(f"{name}__high"),
            (pl.col(total) % half).cast(pl.UInt64).alias(f"{name}__low"),
        ).drop(total)

    def result(self, name: str, columns: Collection[str]) -> list[pl.Expr]:
        return [pl.col(name) if name in columns else _whole(name).alias(name)]


def _whole(name: str) -> pl.Expr:
    high, low = (pl.col(f"{name}__{part}").cast(pl.Int128) for part in ("high", "low"))
    return high * pl.lit(_HALF, dtype=pl.Int128) + low


def _total(value: pl.Expr, name: str) -> list[pl.Expr]:
    return [value.sum().alias(f"{name}__total"), value.cast(pl.Float64).sum().alias(f"{name}__size")]


def _decimal(value: pl.Expr, name: str) -> list[pl.Expr]:
    return [value.sum().alias(name), value.cast(pl.Float64).sum().alias(f"{name}__size")]


class _OneValue(_OneColumn):
    """State that is a value of an event."""

    def check(self, dtype: pl.DataType | None) -> None:
        if dtype is not None:
            refuse_type(dtype, "state")


@frozen(eq=False)
class Min(_OneValue):
    """Smallest value."""

    of: pl.Expr

    def partial(self, name: str, dtype: pl.DataType | None) -> list[pl.Expr]:
        return [self.of.min().alias(name)]

    def merge(self, name: str, columns: Collection[str]) -> list[pl.Expr]:
        return [pl.col(name).min()]


@frozen(eq=False)
class Max(_OneValue):
    """Largest value."""

    of: pl.Expr

    def partial(self, name: str, dtype: pl.DataType | None) -> list[pl.Expr]:
        return [self.of.max().alias(name)]

    def merge(self, name: str, columns: Collection[str]) -> list[pl.Expr]:
        return [pl.col(name).max()]


@frozen(eq=False)
class First(_OneValue):
    """Value of the earliest event by (time, id); `Last` of the latest."""

    of: pl.Expr
    descending: bool = False

    def partial(self, name: str, dtype: pl.DataType | None) -> list[pl.Expr]:
        order = [pl.col(column) for column in ORDER]
        parts = [self.of.alias(name), *(e.alias(f"{name}__{i}") for i, e in enumerate(order))]
        return self._first(parts, [*order, self.of])

    def merge(self, name: str, columns: Collection[str]) -> list[pl.Expr]:
        order = [pl.col(f"{name}__{i}") for i in range(len(ORDER))]
        return self._first([pl.col(name), *order], [*order, pl.col(name)])

    def _first(self, parts: list[pl.Expr], by: list[pl.Expr]) -> list[pl.Expr]:
        # By the value last: two sources may send one id at one time, and an answer has no tie.
        return [part.sort_by(by, descending=self.descending).first() for part in parts]


def Last(of: pl.Expr) -> First:
    """Value of the latest event by (time, id)."""
    return First(of, descending=True)


@frozen(eq=False)
class Distinct(_OneValue):
    """Exact number of distinct values; keeps the values themselves, sealed with the state."""

    of: pl.Expr

    def partial(self, name: str, dtype: pl.DataType | None) -> list[pl.Expr]:
        narrow = self.of.cast(pl.Int64) if dtype in (pl.Int128, pl.UInt128) else self.of
        return [narrow.drop_nulls().unique().sort().implode().alias(name)]

    def merge(self, name: str, columns: Collection[str]) -> list[pl.Expr]:
        return [pl.col(name).explode().drop_nulls().unique().sort().implode()]

    def result(self, name: str, columns: Collection[str]) -> list[pl.Expr]:
        return [pl.col(name).list.len().cast(pl.Int64).alias(name)]
