"""Mergeable aggregates: merge is associative and commutative, so order, retries and parallelism
cannot change an answer. Measures in state are integers, dates, times or text; never floats."""

from __future__ import annotations

from typing import Protocol

import polars as pl
from attrs import frozen

ORDER = ("occurred_at", "event_id")
"""What first and last are decided by."""


class Aggregate(Protocol):
    """State columns of one measure: how they come from events, and how two of them become one."""

    def partial(self, name: str) -> list[pl.Expr]:
        """Aggregations over events; output columns start with `name`."""
        ...

    def merge(self, name: str) -> list[pl.Expr]:
        """Aggregations over partial states; output columns as `partial`."""
        ...

    def result(self, name: str) -> list[pl.Expr]:
        """What a reader sees of the merged state."""
        ...


@frozen
class Count:
    """Number of events."""

    def partial(self, name: str) -> list[pl.Expr]:
        return [pl.len().cast(pl.Int64).alias(name)]

    def merge(self, name: str) -> list[pl.Expr]:
        return [pl.col(name).sum()]

    def result(self, name: str) -> list[pl.Expr]:
        return [pl.col(name)]


@frozen(eq=False)
class Sum:
    """Sum of an integer expression; nulls count as nothing."""

    of: pl.Expr

    def partial(self, name: str) -> list[pl.Expr]:
        return [self.of.sum().cast(pl.Int64).alias(name)]

    def merge(self, name: str) -> list[pl.Expr]:
        return [pl.col(name).sum()]

    def result(self, name: str) -> list[pl.Expr]:
        return [pl.col(name)]


@frozen(eq=False)
class Min:
    """Smallest value."""

    of: pl.Expr

    def partial(self, name: str) -> list[pl.Expr]:
        return [self.of.min().alias(name)]

    def merge(self, name: str) -> list[pl.Expr]:
        return [pl.col(name).min()]

    def result(self, name: str) -> list[pl.Expr]:
        return [pl.col(name)]


@frozen(eq=False)
class Max:
    """Largest value."""

    of: pl.Expr

    def partial(self, name: str) -> list[pl.Expr]:
        return [self.of.max().alias(name)]

    def merge(self, name: str) -> list[pl.Expr]:
        return [pl.col(name).max()]

    def result(self, name: str) -> list[pl.Expr]:
        return [pl.col(name)]


@frozen(eq=False)
class First:
    """Value of the earliest event by (time, id); `Last` of the latest."""

    of: pl.Expr
    descending: bool = False

    def partial(self, name: str) -> list[pl.Expr]:
        by = [pl.col(column) for column in ORDER]
        parts = [self.of.alias(name), *(e.alias(f"{name}__{i}") for i, e in enumerate(by))]
        return [part.sort_by(by, descending=self.descending).first() for part in parts]

    def merge(self, name: str) -> list[pl.Expr]:
        by = [pl.col(f"{name}__{i}") for i in range(len(ORDER))]
        return [part.sort_by(by, descending=self.descending).first() for part in (pl.col(name), *by)]

    def result(self, name: str) -> list[pl.Expr]:
        return [pl.col(name)]


def Last(of: pl.Expr) -> First:
    """Value of the latest event by (time, id)."""
    return First(of, descending=True)


@frozen(eq=False)
class Distinct:
    """Exact number of distinct values; keeps the values themselves, sealed with the state."""

    of: pl.Expr

    def partial(self, name: str) -> list[pl.Expr]:
        return [self.of.drop_nulls().unique().sort().implode().alias(name)]

    def merge(self, name: str) -> list[pl.Expr]:
        return [pl.col(name).explode().drop_nulls().unique().sort().implode()]

    def result(self, name: str) -> list[pl.Expr]:
        return [pl.col(name).list.len().cast(pl.Int64).alias(name)]
