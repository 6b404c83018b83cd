"""Sums are the exact ones of Python, or the view is refused with what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from projections import Projection, Sum, ViewFailed
from projections.compute import BUCKET, _aggregate, merge, prepare, result
from projections.compute import Partial as State
from projections.definition import View, within
from service.runtime import Runtime
from tests.projections.test_views import registry
from tests.world import paid, publish, send

c = pl.col
INT = {"small": 2**31, "large": 2**63, "wide": 2**126}
_EXACT = Context(prec=80)


class Summed(Projection):
    """Sums of `x`, by key."""

    name = "summed"
    reads: ClassVar[Any] = {"T": ["x", "k"]}
    keys: ClassVar[Any] = {"k": c("k")}
    state: ClassVar[Any] = {"x": Sum(c("x"))}

    def final(self, rows: pl.DataFrame) -> pl.DataFrame:
        wide = rows["x"].dtype == pl.Int128
        return rows.with_columns(x=c("x").cast(pl.String)) if wide else rows


def summed(of: pl.Expr) -> View:
    """A view over another expression."""
    view = Summed()
    view.state = {"x": Sum(of)}  # type: ignore[misc]
    return view


def total(view: View, parts: Sequence[pl.DataFrame]) -> dict[int, str]:
    """The result over states of the parts, each in a bucket of its own, merged one after the other."""
    tags = counts = pl.DataFrame({BUCKET: []}, schema={BUCKET: pl.UInt32})
    counts = counts.with_columns(
        **{n: pl.lit(0, pl.Int64) for n in ("stored", "superseded", "shredded", "counted")},
        last_day=pl.lit(None, pl.Date),
    )
    states = [
        State(_aggregate(view, part.with_columns(pl.lit(at % 2, pl.UInt32).alias(BUCKET))), tags, counts)
        for at, part in enumerate(parts)
    ]
    whole = states[0]
    for one in states[1:]:
        whole = merge(view, whole, one)
    return {k: str(x) for k, x in result(view, whole.rows).iter_rows()}


def cut(frame: pl.DataFrame, cuts: Sequence[int]) -> list[pl.DataFrame]:
    """The frame in pieces; some are empty."""
    at = sorted({0, frame.height, *(one % (frame.height + 1) for one in cuts)})
    return [frame[a:b] for a, b in zip(at, [*at[1:], frame.height], strict=True)]


def by_key(rows: Sequence[tuple[int, Any]], zero: Any) -> dict[int, Any]:
    """Python's own sums."""
    found: dict[int, Any] = {}
    for k, x in rows:
        found[k] = found.get(k, zero) + (x if x is not None else zero)
    return found


integers = st.sampled_from(sorted(INT)).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.lists(
            st.tuples(st.integers(0, 2), st.none() | st.integers(-INT[size], INT[size] - 1)),
            min_size=1,
            max_size=12,
        ),
    )
)


@given(integers, st.lists(st.integers(0, 12), max_size=4))
@example(("large", [(0, 2**63 - 1), (0, 2**63 - 1)]), [])
@example(("small", [(0, 2**31 - 1)] * 3), [1])
def test_a_sum_of_integers_is_python_s_or_refused_however_it_is_split_and_merged(
    case: tuple[str, list[tuple[int, int | None]]], cuts: list[int]
) -> None:
    """Of 32, 64 and 128 bits; refused is only what does not fit 128 bits."""
    size, rows = case
    dtype = {"small": pl.Int32, "large": pl.Int64, "wide": pl.Int128}[size]
    frame = pl.DataFrame(rows, schema={"k": pl.Int64, "x": dtype}, orient="row")
    parts = cut(frame, cuts)
    expected = by_key(rows, 0)
    try:
        found = total(Summed(), parts)
    except ViewFailed as error:
        assert "128 bits" in error.message  # noqa: PT017
        # Also a part of a sum may be too large: a state holds 128 bits.
        partly = [abs(x) for part in parts for x in by_key(list(part.iter_rows()), 0).values()]
        assert max(partly + [abs(x) for x in _running(parts)]) > 2**127 * 0.99
    else:
        assert found == {k: str(x) for k, x in expected.items()}


def _running(parts: Sequence[pl.DataFrame]) -> list[int]:
    """Every sum that a merge passes through."""
    so_far: list[tuple[int, int]] = []
    found: list[int] = []
    for part in parts:
        so_far += list(part.iter_rows())
        found += by_key(so_far, 0).values()
        found += by_key([row for p in parts[::2] for row in p.iter_rows()], 0).values()
        found += by_key([row for p in parts[1::2] for row in p.iter_rows()], 0).values()
    return found or [0]


@given(
    st.integers(0, 37).flatmap(
        lambda scale: st.tuples(
            st.just(scale),
            st.lists(
                st.tuples(st.integers(0, 1), st.none() | st.integers(-(10**38) + 1, 10**38 - 1)),
                min_size=1,
                max_size=8,
            ),
        )
    ),
    st.lists(st.integers(0, 8), max_size=3),
)
def test_a_sum_of_decimals_is_python_s_or_refused_however_it_is_split_and_merged(
    case: tuple[int, list[tuple[int, int | None]]], cuts: list[int]
) -> None:
    """Polars wraps around in groups; 38 digits is all that a decimal has."""
    scale, digits = case
    rows = [(k, None if x is None else Decimal(x).scaleb(-scale, _EXACT)) for k, x in digits]
    frame = pl.DataFrame(rows, schema={"k": pl.Int64, "x": pl.Decimal(38, scale)}, orient="row")
    parts = cut(frame, cuts)
    expected = by_key(digits, 0)
    try:
        found = total(Summed(), parts)
    except ViewFailed as error:
        assert "38 digits" in error.message  # noqa: PT017
        split = [[(k, x) for k, x in one] for one in _digits(parts, scale)]
        assert max(abs(x) for x in _running([_frame(one) for one in split])) > 10**38 * 0.99
    else:
        assert {k: int(Decimal(x).scaleb(scale, _EXACT)) for k, x in found.items()} == expected


def _digits(parts: Sequence[pl.DataFrame], scale: int) -> list[list[tuple[int, int | None]]]:
    return [
        [(k, None if x is None else int(x.scaleb(scale, _EXACT))) for k, x in part.iter_rows()]
        for part in parts
    ]


def _frame(rows: list[tuple[int, int | None]]) -> pl.DataFrame:
    return pl.DataFrame({"k": [k for k, _ in rows], "x": pl.Series([x for _, x in rows], dtype=pl.Int128)})


@given(
    st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=6
    )
)
def test_products_and_differences_of_fields_are_python_s(rows: list[tuple[int, int]]) -> None:
    """`c("a") * c("b")` wraps around at 64 bits in Polars; here it is 128 bits wide."""
    frame = pl.DataFrame(
        {"k": [0] * len(rows), "a": [a for a, _ in rows], "b": [b for _, b in rows]},
        schema={"k": pl.Int64, "a": pl.Int64, "b": pl.Int64},
    )
    for of, value in (
        (c("a") - c("b") + 7, sum(a - b + 7 for a, b in rows)),
        (c("a") * c("b"), sum(a * b for a, b in rows)),
        (pl.when(c("a") > 0).then(1).otherwise(0) * c("b"), sum((a > 0) * b for a, b in rows)),
    ):
        if abs(value) < 2**126:
            try:
                assert total(summed(of), [frame]) == {0: str(value)}
            except ViewFailed as error:
                assert "128 bits" in error.message  # noqa: PT017


SCHEMA = pl.Schema(
    {
        "k": pl.Int64(),
        "a": pl.Int64(),
        "b": pl.Int64(),
        "f": pl.Float64(),
        "s": pl.String(),
        "t": pl.Datetime("us", "UTC"),
        "d": pl.Decimal(10, 2),
    }
)


@pytest.mark.parametrize(
    ("of", "why", "instead"),
    [
        (c("f"), "not exact", '(c("eur") * 100).round().cast(pl.Int64)'),
        (c("a") / 100, "not exact", "pl.Decimal(38, 2)"),
        (c("a") * 0.5, "not exact", "pl.Decimal(38, 2)"),
        (c("f").cast(pl.Float32), "not exact", "pl.Decimal"),
        (c("s"), "no sum of String", "pl.Int64"),
        (c("t") - c("t"), "no sum of Duration", "total_microseconds"),
        (c("t").dt.hour() * 3600, "calculates in Int16, which wraps", "Int128"),
        (c("a").cast(pl.Int32) * c("b").cast(pl.Int32), "calculates in Int32", "Int128"),
        (c("t").dt.timestamp("ns") * c("t").dt.timestamp("ns"), "calculates in Int64", "Int128"),
        (c("a") * c("b") * c("a"), "may pass 128 bits", ".cast(pl.Int32)"),
        (c("a").pow(3), "may pass 128 bits|calculates in", ".cast"),
        (c("a").max(), "which other events are at hand", "Fold"),
        (c("a").cum_sum(), "which other events are at hand", "Fold"),
        (c("a") - c("a").mean().cast(pl.Int64), "which other events are at hand", "Fold"),
        (c("a").unique(), "which other events are at hand", "Fold"),
        (pl.lit(1), "measures no field", "Count()"),
    ],
)
def test_what_cannot_be_summed_exactly_is_refused_before_any_event_is_read(
    of: pl.Expr, why: str, instead: str
) -> None:
    """On an empty frame, with the forms that are right."""
    with pytest.raises(ViewFailed, match=why) as caught:
        prepare(summed(of), SCHEMA)
    assert instead in caught.value.next_step
    assert "measure `x`" in caught.value.message


ROWS = pl.DataFrame(
    {
        "k": [0, 0],
        "a": [3_000_000_000, -7],
        "b": [4, -2],
        "f": [0.29, 0.1],
        "s": ["é", "ab"],
        "t": [datetime(2026, 3, 1, 23, tzinfo=UTC), datetime(2026, 3, 2, 14, tzinfo=UTC)],
        "d": [Decimal("0.10"), Decimal("0.20")],
    },
    schema=SCHEMA,
)


@pytest.mark.parametrize(
    ("of", "exact"),
    [
        ((c("f") * 100).round().cast(pl.Int64), 29 + 10),
        (c("f").cast(pl.Decimal(38, 2)), Decimal("0.39")),
        (c("d"), Decimal("0.30")),
        (c("t").dt.hour().cast(pl.Int64).cast(pl.Int128) * 3600, (23 + 14) * 3600),
        (c("a") * c("b").cast(pl.Int32) * c("b").cast(pl.Int16), 3_000_000_000 * 16 - 7 * 4),
        (c("a") * c("b") + c("a") - 1, 3_000_000_000 * 5 - 1 + 14 - 7 - 1),
        (c("a") > 5, 1),
        (c("a").filter(c("b") > 0), 3_000_000_000),
        (c("t").dt.hour(), 23 + 14),
        (c("a") // 100, 30_000_000 - 1),
        (pl.when(c("a") > 0).then(1).otherwise(0), 1),
        (c("s").str.len_chars(), 1 + 2),
    ],
)
def test_the_right_forms_are_taken_and_summed_exactly(of: pl.Expr, exact: int | Decimal) -> None:
    """Those that errors name among them."""
    assert total(summed(of), [ROWS[:1], ROWS[1:]]) == {0: str(exact)}


def view(measure: str, final: str = "rows") -> str:
    """A small view's source."""
    return f"""
class V(Projection):
    name = "v"
    reads = {{"Paid": ["cents", "occurred_on"]}}
    keys = {{"day": c("occurred_on")}}
    state = {{"x": Sum({measure})}}
    def final(self, rows):
        return {final}
"""


def test_a_total_beyond_64_bits_is_published_as_a_decimal_or_refused(world: Runtime, tmp_path: Path) -> None:
    """Two people, two buckets; the refusal says how, and so written it is exact."""
    send(world, [paid("ann", 5 * 10**17, event_id="1"), paid("bob", 5 * 10**17, event_id="2")])
    world.views.registry._views = registry(tmp_path, view('c("cents") * 10 + 1'))._views
    with pytest.raises(ViewFailed, match="1 of 1 values do not fit 64 bits") as caught:
        publish(world, "v")
    assert ".cast(pl.Decimal(38, 0))" in caught.value.next_step
    final = 'rows.with_columns(c("x").cast(pl.Decimal(38, 0)))'
    world.views.registry._views = registry(tmp_path, view('c("cents") * 10 + 1', final))._views
    publish(world, "v")
    assert world.views.as_reported("v").rows["x"].to_list() == [Decimal(10**19 + 2)]
    assert world.views.as_recomputed("v").rows["x"].to_list() == [Decimal(10**19 + 2)]


def test_a_float_measure_is_refused_when_the_view_is_built_and_before_it_reads(
    world: Runtime, tmp_path: Path
) -> None:
    """With file and line."""
    send(world, [paid("ann", 199, event_id="1")])
    world.views.registry._views = registry(tmp_path, view('c("cents") / 100'))._views
    with pytest.raises(ViewFailed, match=r"measure `x`.* at v\d+\.py:\d+"):
        world.views.builder.version_of(world.views.registry.get("v"))


def test_a_check_of_totals_does_not_wrap_around() -> None:
    """Two rows that together pass 64 bits."""
    rows = pl.DataFrame({"x": [2**62, 2**62, 2**62]})
    assert within("x", previous=0.1).test(rows, rows) is None
    moved = within("x", previous=0.1).test(rows[:2], rows)
    assert moved is not None


def test_days_are_right_at_the_edges() -> None:
    """A key of another type is kept as it is."""
    frame = pl.DataFrame({"k": [date(1, 1, 1)], "x": [1], "t": [datetime(1, 1, 1, tzinfo=UTC)]})
    assert total(Summed(), [frame]) == {date(1, 1, 1): "1"}  # type: ignore[comparison-overlap]
