"""The one rule for duplicates and corrections, against a plain reference."""

from __future__ import annotations

from datetime import date, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake.dedup import is_settled, settle

DAY = date(2026, 3, 1)
events = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 12)), max_size=14)


def frame_of(items: list[tuple[int, int, int]]) -> pl.DataFrame:
    """Events in ingest order: days never go back."""
    ordered = sorted(items, key=lambda item: item[2])
    return pl.DataFrame(
        {
            "n": pl.Series(range(len(ordered)), dtype=pl.Int64),
            "_tag": pl.Series([tag for tag, _, _ in ordered], dtype=pl.UInt64),
            "_rev": pl.Series([rev for _, rev, _ in ordered], dtype=pl.Int64),
            "ingest_day": pl.Series([DAY + timedelta(days=d) for _, _, d in ordered], dtype=pl.Date),
        }
    )


def reference(frame: pl.DataFrame, window_days: int) -> list[int]:
    """The rule, written as a person would say it."""
    memory: dict[int, tuple[date, int, int]] = {}
    counted: set[int] = set()
    for row in frame.iter_rows(named=True):
        known = memory.get(row["_tag"])
        if known is None or (row["ingest_day"] - known[0]).days > window_days:
            memory[row["_tag"]] = (row["ingest_day"], row["_rev"], row["n"])
            counted.add(row["n"])
        elif row["_rev"] > known[1]:
            counted.discard(known[2])
            counted.add(row["n"])
            memory[row["_tag"]] = (known[0], row["_rev"], row["n"])
    return sorted(counted)


@given(events, st.integers(0, 8))
def test_the_highest_revision_wins_and_of_equal_ones_the_first(
    items: list[tuple[int, int, int]], window_days: int
) -> None:
    """The vectorised rule is the reference, within and beyond the window."""
    frame = frame_of(items)
    assert settle(frame, window_days)["n"].to_list() == reference(frame, window_days)


@given(events, st.integers(0, 8))
def test_settling_twice_changes_nothing(items: list[tuple[int, int, int]], window_days: int) -> None:
    """What compaction dropped, a later reader would have dropped too."""
    once = settle(frame_of(items), window_days).drop("_first_day")
    within_day = settle(once, 0)
    assert within_day["n"].to_list() == once["n"].to_list()


def rows_of(*blocks: tuple[str, int, int, int]) -> pl.DataFrame:
    """Block rows; handles in hexadecimal."""
    return pl.DataFrame(
        [(bytes.fromhex(ref), *numbers) for ref, *numbers in blocks],
        schema={
            "subject_ref": pl.Binary,
            "source": pl.Int32,
            "generation": pl.Int32,
            "schema_version": pl.Int32,
        },
        orient="row",
    )


def test_the_rule_has_nothing_to_say_of_people_with_one_block_of_l1() -> None:
    assert is_settled(rows_of(("aa0101", 0, 1, 1), ("aa0102", 0, 2, 1), ("bb0101", 0, 1, 1))).all()
    assert is_settled(rows_of()).len() == 0


@pytest.mark.parametrize(
    "other",
    [
        ("aa0101", 0, 1, 1),  # of another day
        ("aa0109", 7, 1, 1),  # as ingested
        ("aa0109", 0, 0, 1),  # severed, and perhaps hers
        ("aa0109", 0, 1, 2),  # of another version
    ],
)
def test_a_bucket_with_anything_else_is_left_to_the_rule_as_a_whole(other: tuple[str, int, int, int]) -> None:
    rows = rows_of(("aa0101", 0, 1, 1), other, ("aa0201", 0, 1, 1), ("bb0101", 0, 1, 1))
    assert is_settled(rows).to_list() == [False, False, True, True]
