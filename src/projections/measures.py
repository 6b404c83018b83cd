"""What a view's keys and measures calculate with, looked at before anything is calculated. Pure.

Polars computes integers in the type of the operands and wraps around in silence. So integer fields that an
expression adds, subtracts or multiplies are 128 bits wide while it runs, and what could still pass 127 bits,
or runs in a narrower type, is refused.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Final

import polars as pl
from attrs import frozen

from projections.aggregates import Aggregate
from projections.columntypes import Refusal, refuse_type

_MOST: Final = {
    "Boolean": 1,
    **{f"Int{bits}": 1 << (bits - 1) for bits in (8, 16, 32, 64, 128)},
    **{f"UInt{bits}": (1 << bits) - 1 for bits in (8, 16, 32, 64, 128)},
}
"""The largest absolute value of a type."""
_LIMIT: Final = (1 << 127) - 1
_SAFE: Final = "cast one side: `.cast(pl.Int128)`"


@frozen
class Prepared:
    """How to evaluate keys and measures over frames of one schema.

    Attributes:
        widened: integer columns that are made 128 bits wide first.
        dtypes: type of each measured expression; None of what measures none.
    """

    widened: tuple[str, ...]
    dtypes: dict[str, pl.DataType | None]


def of(aggregate: Aggregate) -> pl.Expr | None:
    """The expression that an aggregate measures."""
    found = getattr(aggregate, "of", None)
    return found if isinstance(found, pl.Expr) else None


def prepare_key(expression: pl.Expr, schema: pl.Schema) -> tuple[str, ...]:
    """Checks a key; returns the columns to widen.

    Raises:
        Refusal: says what is wrong and what to write instead.
    """
    widened, dtype = _prepare(expression, schema)
    refuse_type(dtype, "key")
    return widened


def prepare_measure(aggregate: Aggregate, schema: pl.Schema) -> tuple[tuple[str, ...], pl.DataType | None]:
    """Checks a measure; returns the columns to widen and the type that is measured. Raises `Refusal`."""
    expression = of(aggregate)
    if expression is None:
        aggregate.check(None)
        return (), None
    if not expression.meta.root_names():
        raise Refusal("it measures no field", "count events with `Count()`")
    widened, dtype = _prepare(expression, schema)
    aggregate.check(dtype)
    return widened, dtype


def _prepare(expression: pl.Expr, schema: pl.Schema) -> tuple[tuple[str, ...], pl.DataType]:
    if _depends_on_neighbours(expression):
        raise Refusal(
            "its value for an event depends on which other events are at hand",
            "measure a field of the event itself; order and totals within a person belong into a Fold",
        )
    integers = {name for name in expression.meta.root_names() if schema.get(name, pl.Null()).is_integer()}
    narrow = schema.to_frame()
    calculates = [node for node in _nodes(expression) if _operator(node) is not None]
    if not any(_dtype(node, narrow).is_integer() for node in calculates):
        return (), _dtype(expression, narrow)
    wide = narrow.with_columns(pl.col(name).cast(pl.Int128) for name in integers)
    for node in calculates:
        dtype = _dtype(node, wide)
        if dtype.is_integer() and dtype != pl.Int128:
            raise Refusal(f"it calculates in {dtype}, which wraps around", _SAFE)
        if dtype.is_integer() and _most(node, narrow) > _LIMIT:
            raise Refusal(
                "it may pass 128 bits, which wraps around",
                "make factors that are known to be small narrower first: `.cast(pl.Int32)`, which refuses "
                "what does not fit",
            )
    return tuple(sorted(integers)), _dtype(expression, wide)


def _depends_on_neighbours(expression: pl.Expr) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Polars calls the method unstable
        try:
            # Each part by itself: of a column less its mean Polars says that it is separable.
            return not all(node.meta.is_row_separable() for node in _nodes(expression))
        except pl.exceptions.PolarsError:  # as of a Python function that is given each value
            return False


def _nodes(expression: pl.Expr) -> Iterator[pl.Expr]:
    yield expression
    for child in expression.meta.pop():
        yield from _nodes(child)


def _operator(node: pl.Expr) -> str | None:
    """Which arithmetic a node does that can leave its type's range; None of any other node."""
    inputs = [str(child) for child in reversed(node.meta.pop())]
    text = str(node)
    if len(inputs) == 2:
        for sign in ("+", "-", "*"):
            if text == f"[({inputs[0]}) {sign} ({inputs[1]})]":
                return sign
    for method in ("pow", "negate", "abs", "sum_horizontal"):
        if inputs and text.startswith(f"{inputs[0]}.{method}("):
            return method
    return None


def _most(node: pl.Expr, narrow: pl.DataFrame) -> int:
    """A bound of the absolute value of an integer expression over columns of their own width."""
    text = str(node)
    if text.removeprefix("dyn int: ").lstrip("-").isdigit():
        return abs(int(text.removeprefix("dyn int: ")))
    own = _MOST.get(type(_dtype(node, narrow)).__name__, 0)
    inputs = list(reversed(node.meta.pop()))
    sign = _operator(node)
    if sign is None:
        is_cast = len(inputs) == 1 and "cast(" in text[len(str(inputs[0])) :]
        inner = _most(inputs[0], narrow) if is_cast else 0
        return min(own, inner) if inner else own
    within = [_most(one, narrow) for one in inputs]
    if sign == "*":
        return math.prod(within)
    if sign == "pow":
        return within[0] ** min(within[1], 128) if "dyn int" in str(inputs[1]) else _LIMIT + 1
    return sum(within)


def _dtype(expression: pl.Expr, frame: pl.DataFrame) -> pl.DataType:
    return frame.lazy().select(expression.alias("_")).collect_schema()["_"]
