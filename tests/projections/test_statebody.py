"""A bucket's state holds the values of that bucket and not a byte of another's, whatever the types."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from projections import DefinitionError, StateDamaged
from projections.compute import BUCKET
from projections.statebody import read, written

ROWS = 24
TEXTS = [f"value-of-row-{row:02d}-{'x' * (row % 7)}" for row in range(ROWS)]
OWN = pl.Categorical(pl.Categories("own", "tests", pl.UInt16))


def whole(kind: pl.DataType, values: list[Any]) -> pl.Series:
    """A column whose value in row n is the n-th."""
    return pl.Series("c", values, dtype=kind)


LEAVES: dict[str, pl.Series] = {
    "text": whole(pl.String(), TEXTS),
    "bytes": whole(pl.String(), TEXTS).cast(pl.Binary),
    "uuid": whole(pl.String(), [f"{row:08x}-1111-4222-8333-444455556666" for row in range(ROWS)]),
    "categorical": whole(pl.String(), TEXTS).cast(pl.Categorical),
    "own categories": whole(pl.String(), TEXTS).cast(OWN),
    "int8": whole(pl.Int8(), list(range(ROWS))),
    "int64": whole(pl.Int64(), [row * 10**15 - 5 * 10**15 for row in range(ROWS)]),
    "uint32": whole(pl.UInt32(), [2**32 - 1 - row for row in range(ROWS)]),
    "uint64": whole(pl.UInt64(), [2**64 - 1 - row for row in range(ROWS)]),
    "int128": whole(pl.Int128(), [row - 2**100 for row in range(ROWS)]),
    "uint128": whole(pl.UInt128(), [2**120 + row for row in range(ROWS)]),
    "decimal": whole(pl.Decimal(20, 2), [Decimal(row) / 100 for row in range(ROWS)]),
    "float16": whole(pl.Float32(), [row / 2 for row in range(ROWS)]).cast(pl.Float16),
    "float32": whole(pl.Float32(), [row / 3 for row in range(ROWS)]),
    "float64": whole(pl.Float64(), [float("nan") if row % 5 == 0 else row / 3 for row in range(ROWS)]),
    "bool": whole(pl.Boolean(), [row % 3 == 0 for row in range(ROWS)]),
    "date": whole(pl.Date(), [date(1900, 1, 1) + timedelta(row) for row in range(ROWS)]),
    "time": whole(pl.Time(), [time(1, 2, row) for row in range(ROWS)]),
    "datetime": whole(pl.Datetime("us"), [datetime(1970, 1, 1) + timedelta(row) for row in range(ROWS)]),
    "zoned": whole(
        pl.Datetime("ms"), [datetime(2020, 1, 1) + timedelta(row) for row in range(ROWS)]
    ).dt.replace_time_zone("Europe/Berlin"),
    "duration": whole(pl.Duration("ns"), [timedelta(seconds=row) for row in range(ROWS)]),
    "null": whole(pl.Null(), [None] * ROWS),
}


def hidden(column: pl.Series, mask: list[bool]) -> pl.Series:
    """Null where the mask says so; the values stay in memory under the null, as Polars leaves them."""
    return pl.DataFrame({"m": mask, "c": column}).select(pl.when(~pl.col("m")).then(pl.col("c")).alias("c"))[
        "c"
    ]


def listed(column: pl.Series, lengths: list[int]) -> pl.Series:
    """Lists of the row's value once or twice; for a length of 0 null, of 3 an empty list."""
    rows = pl.Series("row", range(len(lengths)))
    many = pl.DataFrame({"row": rows, "n": lengths, "c": column}).select(pl.all().repeat_by("n").explode())
    lists = many.drop_nulls("row").group_by("row", maintain_order=True).agg("c", pl.col("n").first())
    every = rows.to_frame().join(lists, on="row", how="left", maintain_order="left")
    return every.select(pl.col("c").list.head(pl.col("n") % 3))["c"]


def structured(column: pl.Series, other: pl.Series) -> pl.Series:
    """Structs with the row's value and another."""
    return pl.DataFrame({"a": column, "b": other}).to_struct("c")


def paired(column: pl.Series) -> pl.Series:
    """Arrays of two of the row's value."""
    return listed(column, [2] * ROWS).list.to_array(2)


MASKS = st.lists(st.booleans(), min_size=ROWS, max_size=ROWS)
LENGTHS = st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS)


def columns(kinds: list[str]) -> st.SearchStrategy[pl.Series]:
    """Leaves of these kinds, under nulls, lists, structs and arrays."""

    def leaf(kind: str) -> pl.Series:
        return LEAVES[kind]

    return st.recursive(
        st.sampled_from(kinds).map(leaf),
        lambda inner: st.one_of(
            st.builds(hidden, inner, MASKS),
            st.builds(listed, inner, LENGTHS),
            st.builds(structured, inner, inner),
            st.builds(paired, inner),
        ),
        max_leaves=4,
    )


BUCKETS = st.lists(st.integers(0, 4), min_size=ROWS, max_size=ROWS)


def framed(column: pl.Series, buckets: list[int]) -> pl.DataFrame:
    """The column beside its bucket."""
    return pl.DataFrame({BUCKET: pl.Series(buckets, dtype=pl.UInt32), "c": column})


# Whether texts are packed as UUIDs is decided for all of them: the one bit a body may tell of the others.
@given(column=columns(sorted(LEAVES.keys() - {"uuid"})), buckets=BUCKETS)
def test_a_states_body_depends_on_the_values_of_its_own_bucket_alone(
    column: pl.Series, buckets: list[int]
) -> None:
    """The same bytes with and without the others, so that nothing of theirs can be in them; none of their
    texts either, which also says it of a dictionary's categories and of what lies under a null."""
    frame = framed(column, buckets)
    bodies = dict(zip(range(5), written(frame, BUCKET, range(5)), strict=True))
    for bucket, body in bodies.items():
        own = frame.filter(pl.col(BUCKET) == bucket)
        assert body == written(own, BUCKET, [bucket])[0]
        others = [text for text, of in zip(TEXTS, buckets, strict=True) if of != bucket]
        assert not [text for text in others if text.encode() in body]


@given(column=columns(["uuid"]), buckets=BUCKETS)
def test_a_states_body_holds_no_uuid_of_another_bucket(column: pl.Series, buckets: list[int]) -> None:
    """Neither as text nor as its sixteen bytes."""
    bodies = written(framed(column, buckets), BUCKET, range(5))
    for text, of in zip(LEAVES["uuid"], buckets, strict=True):
        for body in (body for bucket, body in enumerate(bodies) if bucket != of):
            assert text.encode() not in body
            assert UUID(text).bytes not in body


@given(column=columns(sorted(LEAVES)), buckets=BUCKETS)
def test_a_state_reads_back_as_it_was_written(column: pl.Series, buckets: list[int]) -> None:
    """Of every type and depth, with empty buckets, in the order of the buckets."""
    frame = framed(column, buckets)
    order = [3, 0, 4, 1, 2]
    back = read(written(frame, BUCKET, order))
    wanted = pl.concat([frame.filter(pl.col(BUCKET) == bucket) for bucket in order])
    assert_frame_equal(back, wanted)


@pytest.mark.parametrize("kind", sorted(LEAVES))
def test_a_state_without_rows_keeps_every_type(kind: str) -> None:
    """So that it can be joined to those with rows."""
    frame = framed(LEAVES[kind], [1] * ROWS).clear()
    back = read(written(frame, BUCKET, [1, 2]))
    assert back.height == 0
    assert back.schema == frame.schema


def test_what_a_state_cannot_keep_is_refused_by_the_name_of_its_column() -> None:
    """Python objects have no bytes."""
    frame = framed(pl.Series("c", [object()] * ROWS, dtype=pl.Object), [0] * ROWS)
    with pytest.raises(DefinitionError, match="column `c`"):
        written(frame, BUCKET, [0])


@given(
    body=st.binary(max_size=40) | st.sampled_from([b"1", b"[1]", b"[[1,2]]", b"{}"]), at=st.integers(0, 2000)
)
def test_a_damaged_body_is_an_error_of_its_own(body: bytes, at: int) -> None:
    """Garbage, an older layout, a body cut off or too long: what is sealed cannot be changed otherwise."""
    frame = pl.DataFrame(
        {BUCKET: LEAVES["uint32"], "a": LEAVES["text"], "b": listed(LEAVES["categorical"], [2] * ROWS)}
    )
    bucket = frame[BUCKET][0]
    good = written(frame, BUCKET, [bucket])[0]
    of_this_layout = good[:1] + len(body).to_bytes(4, "big") + body
    for damaged in (body, of_this_layout, good[: at % len(good)], good + (body or b"\0")):
        with pytest.raises(StateDamaged):
            read([damaged])
