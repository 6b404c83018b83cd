"""Block bodies, packed and unpacked for many blocks at once (docs/formats/block-body.md)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake import bodies as written
from lake import bodyreader
from lake.bodies import pack
from lake.bodyreader import repeated, unpack
from lake.errors import CorruptBlock
from tests.lake.plain_body import read_body

SCHEMA: dict[str, pl.DataType] = {
    "text": pl.String(),
    "whole": pl.Int64(),
    "real": pl.Float64(),
    "raw": pl.Binary(),
    "flag": pl.Boolean(),
    "day": pl.Date(),
    "id": pl.String(),
}
KINDS = {
    "text": "string",
    "whole": "integer",
    "real": "number",
    "raw": "bytes",
    "flag": "boolean",
    "day": "date",
    "id": "string",
}
ids = st.uuids().map(str) | st.sampled_from(
    ["", str(uuid.UUID(int=7)).upper(), str(uuid.UUID(int=7)), "é" * 18]
)
often = st.sampled_from(["a page that is asked for again", "é" * 9, ""])
records = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.none() | st.text(max_size=3) | st.text(max_size=400) | often,
            "whole": st.none() | st.integers(0, 300) | st.integers(-(2**63), 2**63 - 1),
            "real": st.none() | st.floats(allow_nan=False) | st.just(0.5),
            "raw": st.none() | st.binary(max_size=300) | often.map(str.encode) | st.just(b"\xff" * 40),
            "flag": st.none() | st.booleans(),
            "day": st.none() | st.dates(),
            "id": st.none() | ids,
        }
    ),
    min_size=1,
    max_size=40,
)
only_uuids = st.lists(st.uuids().map(str), min_size=1, max_size=20)


@pytest.fixture(autouse=True, scope="module", params=[written.NUMBERED_FROM, 2])
def _numbered_from(request: pytest.FixtureRequest) -> Iterator[None]:
    """Small bodies number the texts that repeat as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(written, "NUMBERED_FROM", request.param)
        yield


def cuts_of(count: int, data: st.DataObject) -> Any:
    inner = data.draw(st.sets(st.integers(1, count)))
    return np.array(sorted({0, count} | inner))


@given(records, st.data())
def test_any_events_come_back_from_any_blocks(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    frame = pl.DataFrame(rows, schema=SCHEMA)
    cuts = cuts_of(frame.height, data)
    bodies = pack(frame, cuts)
    columns = data.draw(st.permutations(list(SCHEMA)).flatmap(lambda p: st.sampled_from([p, p[:2], p[:1]])))
    for given_as in (bodies, bodies.to_list()):
        assert unpack(given_as, np.diff(cuts), SCHEMA, columns).equals(frame.select(columns))


@given(records, st.data())
def test_a_reader_written_from_the_page_alone_reads_the_same(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    frame = pl.DataFrame(rows, schema=SCHEMA)
    cuts = cuts_of(frame.height, data)
    for body, start, end in zip(pack(frame, cuts).to_list(), cuts[:-1], cuts[1:], strict=True):
        assert read_body(body, end - start, KINDS) == frame[start:end].to_dict(as_series=False)


@pytest.mark.parametrize("few_spans", [64, 1])
@given(st.lists(records, min_size=1, max_size=3), only_uuids, st.data())
def test_bodies_of_several_writers_are_read_together(
    few_spans: int, batches: list[list[dict[str, Any]]], identifiers: list[str], data: st.DataObject
) -> None:
    """One writer met UUIDs alone and packs them so, one had enough events to number texts, another neither."""
    frames = [pl.DataFrame(rows, schema=SCHEMA) for rows in batches]
    first = frames[0].select(pl.exclude("id"))[: len(identifiers)]
    frames.append(first.with_columns(id=pl.Series(identifiers[: first.height])))
    frames.append(pl.concat([frames[0][:1]] * 300))
    frames = data.draw(st.permutations([*frames, *frames[:1]]))
    bodies = [pack(frame, np.array([0, frame.height]))[0] for frame in frames]
    counts = np.array([frame.height for frame in frames])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bodyreader, "_FEW_SPANS", few_spans)
        assert unpack(bodies, counts, SCHEMA, list(SCHEMA)).equals(pl.concat(frames))


@given(records, st.data())
def test_whatever_bytes_are_changed_reading_ends_in_the_one_error_or_in_events(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    frame = pl.DataFrame(rows, schema=SCHEMA)
    body = bytearray(pack(frame, np.array([0, frame.height]))[0])
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)))):
        body[at] = value
    body = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    try:
        again = unpack([bytes(body)], np.array([frame.height]), SCHEMA, list(SCHEMA))
    except CorruptBlock:
        return
    assert again.schema == frame.schema
    assert again.height == frame.height


@pytest.mark.parametrize("cuts", [[0, 3, 7, 8, 50], [0, 42, 45, 49, 50], [0, 42, 50]])
@pytest.mark.parametrize(("limit", "most"), [("MOST_BYTES", 20), ("MOST_EVENTS", 5)])
def test_more_bodies_than_can_be_read_at_once_are_read_in_parts(
    monkeypatch: pytest.MonkeyPatch, limit: str, most: int, cuts: list[int]
) -> None:
    frame = pl.DataFrame({"who": [f"somebody {n}" for n in range(50)], "n": range(50)})
    bodies = pack(frame, np.array(cuts))
    monkeypatch.setattr(bodyreader, limit, most)
    for given_as in (bodies, bodies.to_list()):
        assert unpack(given_as, np.diff(cuts), dict(frame.schema), ["n", "who"]).equals(
            frame.select("n", "who")
        )


def test_texts_that_come_again_and_again_are_stored_once_in_large_bodies() -> None:
    pages = [f"/shop/{n * n % 50} é" if n % 3 else f"/a longer one/{n % 20}" for n in range(2000)]
    frame = pl.DataFrame({"page": pages, "n": range(2000)}, schema={"page": pl.String(), "n": pl.Int64()})
    cuts = np.array([0, 1200, 1210, 2000])
    bodies = pack(frame, cuts)
    assert [body[0] & 7 for body in bodies.to_list()][::2] == [7, 7]
    assert bodies.bin.size().sum() < 2000 * 5
    assert unpack(bodies, np.diff(cuts), dict(frame.schema), ["n", "page"]).equals(frame.select("n", "page"))
    for body, start, end in zip(bodies.to_list(), cuts[:-1], cuts[1:], strict=True):
        read = read_body(body, end - start, {"page": "string", "n": "integer"})
        assert read == frame[start:end].to_dict(as_series=False)


def test_numbers_of_texts_that_a_body_does_not_hold_are_refused() -> None:
    schema: dict[str, pl.DataType] = {"page": pl.String()}
    pages = pl.DataFrame({"page": [f"/page/{n % 5}" for n in range(300)]})
    (body,) = pack(pages, np.array([0, 300]))
    assert body[0] == 7 | 1 << 3
    distinct, first_number, first_length = 5, 6, 6 + 600
    assert body[distinct] == 5
    for place, wrong in ((first_number, 5), (distinct, 4), (distinct, 120), (distinct, 0), (first_length, 9)):
        broken = bytearray(body)
        broken[place] = wrong
        with pytest.raises(CorruptBlock):
            unpack([bytes(broken)], np.array([300]), schema, ["page"])


@pytest.mark.parametrize("odd", [b"\xff\xfe", b"longer than twelve \xff"])
def test_a_numbered_text_that_is_none_is_refused_and_such_bytes_are_not(odd: bytes) -> None:
    frame = pl.DataFrame({"raw": [odd, b"another one of some length", b"seven!!"] * 200})
    (body,) = pack(frame, np.array([0, 600]))
    assert body[0] & 7 == 7
    with pytest.raises(CorruptBlock):
        unpack([body], np.array([600]), {"raw": pl.String()}, ["raw"])
    assert unpack([body], np.array([600]), {"raw": pl.Binary()}, ["raw"]).equals(frame)


@given(
    st.lists(
        st.tuples(st.none() | st.binary(max_size=30), st.none() | st.dates(), st.integers(1, 4)), max_size=9
    ),
    st.booleans(),
)
def test_a_block_s_values_are_repeated_for_its_events(
    blocks: list[tuple[Any, Any, int]], without_nulls: bool
) -> None:
    kept = [one for one in blocks if not without_nulls or None not in one]
    counts = np.array([count for *_, count in kept], dtype=np.int64)
    for at, kind in ((0, pl.Binary()), (1, pl.Date())):
        values = pl.Series("x", [one[at] for one in kept], dtype=kind)
        expected = pl.Series("x", [one[at] for one in kept for _ in range(one[2])], dtype=kind)
        assert repeated(values, counts).equals(expected)
        assert repeated(pl.concat([values[:2], values[2:]], rechunk=False), counts).equals(expected)


def test_uuids_take_sixteen_bytes_and_what_repeats_is_stored_once() -> None:
    rows = {"id": [str(uuid.UUID(int=n**20)) for n in range(50)], "who": ["somebody"] * 50}
    (body,) = pack(pl.DataFrame(rows), np.array([0, 50]))
    assert len(body) == 2 + 1 + 50 * 16 + len("somebody")


@pytest.mark.parametrize(
    "odd",
    [
        "ABCDEF00-1111-4222-8333-444455556666",
        "abcdef00-1111-4222-8333-44445555666g",
        "abcdef00-1111-4222-8333-4444555566 6",
        "abcdef00+1111-4222-8333-444455556666",
        "abcdef0011111-4222-8333-444455556666",
        "{abcdef00-1111-4222-8333-44445555666",
    ],
)
def test_what_is_nearly_a_uuid_comes_back_as_it_was(odd: str) -> None:
    frame = pl.DataFrame({"id": [str(uuid.UUID(int=n**20)) for n in range(9)] + [odd]})
    bodies = pack(frame, np.array([0, 10]))
    assert unpack(bodies, np.array([10]), {"id": pl.String()}, ["id"]).equals(frame)


def test_the_example_of_the_page_is_what_is_written() -> None:
    frame = pl.DataFrame({"page": ["/a"] * 3, "milliseconds": [300, None, 310]})
    (body,) = pack(frame, np.array([0, 3]))
    assert body.hex(" ") == "0d 51 02 05 2c 01 00 00 0a 2f 61"


def test_a_body_that_lost_its_end_or_holds_another_number_of_events_is_refused() -> None:
    schema: dict[str, pl.DataType] = {"whole": pl.Int64()}
    (body,) = pack(pl.DataFrame({"whole": [1, 2, 300]}, schema=schema), np.array([0, 3]))
    for wrong, count in ((body[:-1], 3), (body + b"\0", 3), (body, 4), (b"", 1), (body, 2_000_000)):
        for others in ([], [body]):
            counts = np.array([count, *(3 for _ in others)])
            with pytest.raises(CorruptBlock):
                unpack([wrong, *others], counts, schema, ["whole"])


def test_a_day_that_no_calendar_has_and_a_text_that_is_none_are_refused() -> None:
    (body,) = pack(pl.DataFrame({"whole": [2**40]}), np.array([0, 1]))
    with pytest.raises(CorruptBlock):
        unpack([body], np.array([1]), {"whole": pl.Date()}, ["whole"])
    for odd in (b"\xff\xfe", b"seven!!\xff", b"twelve!!!!!\xff", b"longer than twelve \xff"):
        for others in ([], [b"short"], [b"also longer than twelve"]):
            (body,) = pack(pl.DataFrame({"raw": [*others, odd]}), np.array([0, 1 + len(others)]))
            with pytest.raises(CorruptBlock):
                unpack([body], np.array([1 + len(others)]), {"raw": pl.String()}, ["raw"])


def test_a_column_of_another_type_is_refused() -> None:
    with pytest.raises(CorruptBlock, match="cannot be stored"):
        pack(pl.DataFrame({"x": [[1]]}), np.array([0, 1]))
