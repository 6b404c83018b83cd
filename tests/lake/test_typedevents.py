"""The quick ways of parsing decide nothing: what they take is what the careful way would have taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from lake.cloudevents import parse_cloud_events, parse_with_care
from lake.eventcolumns import parse_columns
from lake.eventframe import Line
from lake.parsed import Parsed, joined
from lake.typedevents import parse_typed
from lake.typeregistry import TypeRegistry

_RIDE = {
    "name": "Ridden",
    "version": 1,
    "type": "object",
    "properties": {
        "class": {"type": "string", "anonymous": True, "maxLength": 8},
        "metres": {"type": "integer", "anonymous": True, "minimum": 0},
        "price": {"type": "number"},
        "shared": {"type": "boolean"},
        "day": {"type": "string", "format": "date"},
        "driver": {"type": "string", "subject_of": "driver"},
    },
    "required": ["metres"],
}
_NESTED = {
    "name": "Nested",
    "version": 1,
    "type": "object",
    "properties": {"items": {"type": "array"}, "n": {"type": "integer"}},
}
_NOTED = {
    "name": "Noted",
    "version": 1,
    "type": "object",
    "properties": {"word": {"type": "string"}, "weight": {"type": "number"}},
}
_GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "app",
    "type": "Ridden",
    "subject": "anna",
    "time": "2026-03-01T10:00:00Z",
    "data": {"class": "eco", "metres": 5, "price": 2.5, "shared": True, "day": "2026-03-01", "driver": "bob"},
}


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> TypeRegistry:
    folder: Path = tmp_path_factory.mktemp("types")
    registry = TypeRegistry(folder)
    for document in (_RIDE, {**_RIDE, "version": 2}, _NESTED, _NOTED, {**_NOTED, "name": "Heard"}):
        registry.register(document)
    return registry


_TIMES = [
    "2026-03-01T10:00:00.123456Z",
    "2026-03-01T10:00:00.1234567Z",
    "2026-03-01T10:00:60Z",
    "2026-03-01T24:00:00Z",
    "2026-02-30T10:00:00Z",
    "2026-03-01T10:00:00+02:00",
    "2026-03-01T10:00:00.5+00:00",
    "2026-03-01T10:00:00-00:00",
    "2026-03-01T10:00:00Z+00:00",
    "2026-03-01T10:00:00+00:00Z",
    "2026-03-01T10:00:00",
    "2026-03-01 10:00:00Z",
    "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "2026-3-1T1:2:3Z",
    "20260301T100000Z",
    "2026-03-01T10:00:00.Z",
    "2026-03-01T10:00:00z",
    "\u0662026-03-01T10:00:00Z",
    "",
]
_WHOLE = [0, 1, -1, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**30]
_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(_WHOLE),
    st.floats(allow_nan=False),
    st.text(max_size=12),
    st.sampled_from(_TIMES),
    st.sampled_from(["", " anna", "a" * 600, "2026-02-30", "2026-2-3", "\x00", "Ridden", "Nested", "1.0"]),
    st.sampled_from(["text/plain", "text", "http://a/b", "a:", "e30=", "W10=", "e30"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["class", "metres", "n"]), st.integers(), max_size=2),
)
_PLACES = st.sampled_from(
    [
        *(*_GOOD, "revision", "schemaversion", "traceparent", "data.unheard_of"),
        *("datacontenttype", "dataschema", "data_base64", "Capital", "my.ext"),
        *(f"data.{name}" for name in _RIDE["properties"]),
    ]
)


@st.composite
def _lines(draw: st.DrawFn) -> bytes:
    event = json.loads(json.dumps(_GOOD))
    for place in draw(st.lists(_PLACES, max_size=2)):
        holder = event
        if place.startswith("data.") and isinstance(event.get("data"), dict):
            holder, place = event["data"], place[5:]
        if draw(st.integers(0, 3)) == 0:
            holder.pop(place, None)
        else:
            holder[place] = draw(_VALUES)
    raw = json.dumps(event, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    if draw(st.integers(0, 4)) == 0:  # a flipped, lost or added byte anywhere
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(st.binary(max_size=2)) + raw[at + draw(st.integers(0, 2)) :]
    if draw(st.integers(0, 9)) == 0:  # a name that stands twice
        raw = raw.replace(b'"data":', b'"data": {"metres": 7}, "data":', 1)
    return raw.replace(b"\n", b" ")


def _as_dict(parsed: Parsed) -> dict[tuple[str, int], pl.DataFrame]:
    return {(kind.name, kind.version): frame.sort("position") for kind, frame in parsed.accepted}


@settings(max_examples=500, deadline=None)
@given(raws=st.lists(_lines(), min_size=1, max_size=6))
@example(
    raws=[
        b'{"id":"1","source":"s","type":"Ridden","subject":"a","time":"2026-03-01T10:00:00Z","z":"\xff",'
        b'"data":{"metres":1}}'
    ]
)
@example(raws=[b"[" * 100_000])
@example(raws=[b"", b"  ", b"null"])
@example(raws=[b'{"a": {}', b'{}, "b": 1}', b"{}{}"])
@example(raws=[json.dumps({**_GOOD, "time\0": "a name that ends early in C"}).encode()])
def test_all_ways_together_say_what_the_careful_one_says_alone(
    raws: list[bytes], types: TypeRegistry
) -> None:
    _check_same(raws, types)


@settings(max_examples=300, deadline=None)
@given(first=_lines(), raws=st.lists(_lines(), max_size=3))
def test_among_many_that_fit_the_odd_ones_are_found(
    first: bytes, raws: list[bytes], types: TypeRegistry
) -> None:
    """What the first event looks like says what is expected of the others."""
    good = json.dumps(_GOOD).encode()
    corrected = json.dumps({**_GOOD, "revision": 1, "schemaversion": 1}).encode()
    _check_same([first, good, corrected, good, *raws, good], types)


def test_all_ways_draw_the_same_bounds(types: TypeRegistry) -> None:
    """One event for each value at the edge of what a place takes."""
    edges = [{"time": time} for time in _TIMES]
    edges += [{name: number} for name in ("revision", "schemaversion") for number in _WHOLE]
    edges += [{"data": {"metres": number}} for number in _WHOLE]
    edges += [{"data": {"metres": 1, "price": number}} for number in (*_WHOLE, 0.1, -0.0)]
    edges += [{"data": {"metres": 1, "class": text}} for text in ("12345678", "123456789", "ääääääää")]
    for raw in [json.dumps({**_GOOD, **changed}).encode() for changed in edges]:
        _check_same([raw], types)


def _check_same(raws: list[bytes], types: TypeRegistry) -> None:
    lines = list(enumerate(raws))
    careful = parse_with_care(lines, types, 0, len(raws))
    _check_equal(parse_cloud_events(lines, types, 0, len(raws)), careful)
    _check_equal(_by_columns(lines, types), careful)


def _by_columns(lines: list[Line], types: TypeRegistry) -> Parsed:
    """What columns of however few events take, and the careful way of what they leave."""
    taken, left = parse_columns(lines, types, least=1)
    rest = parse_with_care(left, types, 0, len(lines))
    return joined([Parsed(0, len(lines), tuple(taken), (), 0), rest])


def _check_equal(found: Parsed, careful: Parsed) -> None:
    assert found.rejected == careful.rejected
    assert found.blank == careful.blank
    ours, theirs = _as_dict(found), _as_dict(careful)
    assert ours.keys() == theirs.keys()
    for key, frame in ours.items():
        assert_frame_equal(frame, theirs[key], check_exact=True)


def test_what_fits_is_taken_one_by_one_and_nothing_else(types: TypeRegistry) -> None:
    def raw(**changed: Any) -> bytes:
        return json.dumps({**_GOOD, **changed}).encode()

    fits = [
        raw(),
        raw(subject="änne", data={"metres": 0}),
        raw(time="2026-03-01T10:00:00+02:00"),
        raw(schemaversion=1, revision=3),
        raw(traceparent="00-1-2-3"),
        raw(data={"metres": 1, "price": 3}),
        raw(time="2026-03-01T10:00:00.5+00:00"),
    ]
    does_not = [
        raw(data={"metres": -1}),
        raw(data={}),
        raw(data={"metres": 1, "colour": "red"}),
        raw(data={"metres": 1.0}),
        raw(subject="a" * 70_000),
        raw(id=""),
        raw(specversion="0.3"),
        raw(type="Unheard"),
        raw(type="Nested", data={"items": [1]}),
        raw(data={"metres": 1, "driver": ""}),
        raw(data={"metres": 1, "day": "2026-02-30"}),
        raw(data={"metres": 1, "day": "0000-01-01"}),
        b"",
        b"{",
    ]

    accepted, left = parse_typed(list(enumerate([*fits, *does_not])), types)

    assert sorted(n for _, frame in accepted for n in frame["position"]) == list(range(len(fits)))
    assert [number for number, _ in left] == list(range(len(fits), len(fits) + len(does_not)))


def test_events_that_look_alike_are_taken_as_columns(types: TypeRegistry) -> None:
    """Of several types in turns, with attributes of their own, and the odd ones among them left."""

    def raw(at: int, **changed: Any) -> bytes:
        return json.dumps({**_GOOD, "id": f"{at}", "traceparent": f"00-{at}", **changed}).encode()

    class_only = {"class": "eco", "metres": 3}
    alike = [raw(at, data=class_only | ({"price": at / 2} if at % 2 else {})) for at in range(300)]
    odd = [
        raw(300, specversion=None),
        raw(301, data={"metres": -1}),
        raw(302, id=""),
        raw(303, type="Unheard"),
        raw(304, time="yesterday"),
        raw(305, data={"metres": 1, "day": "2026-02-30"}),
    ]
    taken, left = parse_columns(list(enumerate([*alike, *odd])), types)
    assert [(kind.name, frame.height) for kind, frame in taken] == [("Ridden", 300)]
    assert [number for number, _ in left] == list(range(300, 306))
    versions = [raw(at, schemaversion=1 + at % 2, revision=at) for at in range(600)]
    taken, left = parse_columns(list(enumerate(versions)), types)
    assert [(kind.version, frame.height, frame["revision"].sum()) for kind, frame in taken] == [
        (1, 300, sum(range(0, 600, 2)))
    ]
    assert len(left) == 300
    other = [json.dumps({**_GOOD, "type": "Nested", "data": {"n": 1}}).encode()] * 300
    mixed = [one for pair in zip(alike, other, strict=True) for one in pair]
    taken, left = parse_columns(list(enumerate(mixed)), types)
    assert [(kind.name, frame.height) for kind, frame in taken] == [("Ridden", 300)]
    assert [number for number, _ in left] == list(range(1, 600, 2))
    broken = [*alike[:150], alike[0][:-5], *alike[150:]]
    assert parse_columns(list(enumerate(broken)), types)[0] == []
    assert parse_columns(list(enumerate(alike[:100])), types)[0] == [], "too few to be worth it"


def _noted(**changed: Any) -> bytes:
    """An event of a type that asks for no field."""
    event = {**_GOOD, "type": "Noted", "data": {"word": "hm", "weight": 1.5}, **changed}
    return json.dumps(event, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "raws",
    [
        [_noted(), _noted(id="1") + _noted(id="2"), b" "],
        [_noted(), _noted(id="1") + _noted(id="2"), b""],
        [_noted(), _noted()[:-1], b', "extra": 1}', _noted() + _noted()],
        [_noted(), _noted()[:-1], b"}", _noted() + _noted()],
        [_noted(), _noted().replace(b"hm", b"h\xff")],
        [_noted(), _noted().replace(b"hm", b"h\xed\xa0\x80")],
        [_noted(revision=2), _noted(revision=None), _noted()],
        [_noted(revision=2), _noted(revision=-1), _noted(revision=2**31)],
        [_noted(), _noted(data=None), _noted()],
        [_noted(), _noted(specversion="0.3"), _noted(specversion=None)],
        [_noted(), _noted().replace(b"1.5", b"1e999"), _noted().replace(b"1.5", b"-1e999")],
        [_noted(), _noted().replace(b"1.5", b"NaN"), _noted().replace(b"1.5", b"-Infinity")],
        [_noted(), _noted().replace(b'"hm"', b"NaN")],
        [_noted(revision=1), _noted(revision=1).replace(b'"revision": 1', b'"revision": NaN')],
        [_noted(extra=1), _noted(extra=1).replace(b'"extra": 1', b'"extra": NaN')],
        [_noted(extra="a"), _noted(extra="a").replace(b'"extra": "a"', b'"extra": Infinity')],
        [_noted(schemaversion=1), _noted(schemaversion=None), _noted(schemaversion=7)],
        [_noted(), _noted(data={"word": None, "weight": 2})],
        [_noted(time="2026-03-01T10:00:00Z"), _noted(time=None)],
    ],
)
def test_columns_are_as_strict_as_care(raws: list[bytes], types: TypeRegistry) -> None:
    """Where the reader of columns is lax, or cannot tell what is absent from what is null."""
    _check_same(raws, types)


def test_types_with_the_same_fields_are_each_taken_as_columns(types: TypeRegistry) -> None:
    """Also where the first event is of the rarer one."""
    raws = [_noted(id=f"{at}", type="Heard" if at % 3 else "Noted") for at in range(900)]
    taken, left = parse_columns(list(enumerate(raws)), types)
    assert sorted((kind.name, frame.height) for kind, frame in taken) == [("Heard", 600), ("Noted", 300)]
    assert left == []


def test_a_line_that_is_too_long_is_left(types: TypeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lake.eventcolumns.MAX_LINE_BYTES", 1000)
    lines = list(enumerate([_noted()] * 9 + [_noted(data={"word": "x" * 1000})]))
    assert parse_columns(lines, types, least=1) == ([], lines)
    assert parse_columns(lines[:-1], types, least=1)[1] == []
