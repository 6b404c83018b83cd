"""Whether two results of a view are the same. Pure.

Rows have no order of their own: equal sets of rows, doubled ones included, are one result. Floats are
compared to nine digits, since Polars adds them in an order that depends on its threads.
"""

from __future__ import annotations

from typing import Final

import polars as pl
from attrs import frozen

FLOAT_DIGITS: Final = 9
_RELATIVE: Final = 10.0**-FLOAT_DIGITS


@frozen
class Difference:
    """How two results differ, without a value.

    Attributes:
        rows_before, rows_now: how many rows each has.
        rows_differing: rows of either that the other has not; a row that changed counts twice.
    """

    rows_before: int
    rows_now: int
    rows_differing: int


def difference(before: pl.DataFrame, now: pl.DataFrame) -> Difference | None:
    """How `now` differs from `before`; None where they are the same result."""
    if set(before.columns) != set(now.columns):
        return Difference(before.height, now.height, before.height + now.height)
    before = before.select(now.columns)
    exact = [name for name, dtype in now.schema.items() if not dtype.is_float()]
    floats = [name for name in now.columns if name not in exact]
    if before.schema == now.schema and _same(_sorted(before, exact, floats), _sorted(now, exact, floats)):
        return None
    return Difference(before.height, now.height, _unmatched(_rounded(before), _rounded(now)))


def _sorted(rows: pl.DataFrame, exact: list[str], floats: list[str]) -> pl.DataFrame:
    return rows.sort(*exact, *floats) if rows.columns else rows


def _same(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    return one.height == other.height and all(_same_column(one[name], other[name]) for name in one.columns)


def _same_column(one: pl.Series, other: pl.Series) -> bool:
    if one.dtype.is_float():
        largest = pl.max_horizontal(pl.col("one").abs(), pl.col("other").abs())
        is_near = (pl.col("one") - pl.col("other")).abs() <= largest * _RELATIVE
        both = pl.DataFrame({"one": one.cast(pl.Float64), "other": other.cast(pl.Float64)})
        is_same = pl.col("one").eq_missing(pl.col("other")) | is_near.fill_null(False)
        return bool(both.select(is_same.all()).item())
    return bool(one.eq_missing(other).all())


def _rounded(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(
        pl.col(name).round_sig_figs(FLOAT_DIGITS) for name, dtype in rows.schema.items() if dtype.is_float()
    )


def _unmatched(before: pl.DataFrame, now: pl.DataFrame) -> int:
    """Rows of either that the other has not, at least one: rounding may hide what differs."""
    if before.schema != now.schema:
        return before.height + now.height
    counted = [one.group_by(one.columns).len("__n") for one in (before, now)]
    both = counted[0].join(counted[1], on=now.columns, how="full", nulls_equal=True, coalesce=True)
    here, there = pl.col("__n").fill_null(0).cast(pl.Int64), pl.col("__n_right").fill_null(0).cast(pl.Int64)
    return max(1, int(both.select((here - there).abs().sum()).item()))
