"""Runs of Avro records, cut at any place and joined again."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake.avro import decode, encode
from lake.errors import CorruptBlock

SCHEMA = {
    "text": pl.String(),
    "whole": pl.Int64(),
    "real": pl.Float64(),
    "raw": pl.Binary(),
    "flag": pl.Boolean(),
}
rows = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.none() | st.text(max_size=40),
            "whole": st.none() | st.integers(-(2**63), 2**63 - 1),
            "real": st.none() | st.floats(allow_nan=False),
            "raw": st.none() | st.binary(max_size=300),
            "flag": st.none() | st.booleans(),
        }
    ),
    min_size=1,
    max_size=12,
)


@given(rows, st.data())
def test_any_records_come_back_from_any_cut(records: list[dict[str, object]], data: st.DataObject) -> None:
    """Sizes computed from columns are those written, whatever the values."""
    frame = pl.DataFrame(records, schema=SCHEMA)
    body, offsets = encode(frame)
    cut = data.draw(st.integers(0, len(records)))
    at = int(offsets[cut])
    again = decode([body[:at], body[at:]], [cut, len(records) - cut], SCHEMA, list(SCHEMA))
    assert again.equals(frame)


@given(rows)
def test_columns_can_be_left_out(records: list[dict[str, object]]) -> None:
    """Only the columns asked for are materialised."""
    frame = pl.DataFrame(records, schema=SCHEMA)
    body, _ = encode(frame)
    assert decode([body], [len(records)], SCHEMA, ["flag", "text"]).equals(frame.select("flag", "text"))


def test_a_truncated_body_is_an_error() -> None:
    """A body that lost its end never decodes to fewer records."""
    body, _ = encode(pl.DataFrame({"whole": [1, 2, 300]}, schema={"whole": pl.Int64()}))
    with pytest.raises(CorruptBlock):
        decode([body[:-1]], [3], {"whole": pl.Int64()}, ["whole"])


def test_more_records_than_promised_are_an_error() -> None:
    """Counts in the columns and records in the body must agree."""
    body, _ = encode(pl.DataFrame({"whole": [1, 2, 3]}, schema={"whole": pl.Int64()}))
    with pytest.raises(CorruptBlock):
        decode([body], [4], {"whole": pl.Int64()}, ["whole"])
