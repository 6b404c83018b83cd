"""Lines that a door may be given: events that fit, nearly fit, or are no events at all, as bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.lake.anyschema import VALUES

_NUMBERS = st.sampled_from(
    [
        "0",
        "-0",
        "-0.0",
        "1e400",
        "-1e400",
        "1E-400",
        "5.0",
        "1e2",
        "9007199254740993",
        "9" * 30,
        "-1",
        "0.1e1",
        "18446744073709551616",
        "1.0000000000000001",
        "01",
        "+1",
        ".5",
        "NaN",
        "Infinity",
        "1_0",
        "9223372036854775808",
        "4.9e-324",
        "123456789012345678.5",
        "1.7976931348623159e308",
        "0x1",
        "9" * 400,
    ]
) | st.builds("{}.{}e{}".format, st.integers(), st.integers(0, 10**18), st.integers(-330, 330))
_TEXTS = st.text(max_size=12).map(json.dumps) | st.text(max_size=12).map(
    lambda text: json.dumps(text, ensure_ascii=False)
)
_ODD_TEXTS = st.sampled_from(
    [
        '"\\ud800"',
        '"\\ud83c\\udf88"',
        '"\\u0000"',
        '"\x7f"',
        '"\\/"',
        '"\t"',
        '"\ufeff"',
        '"\\x"',
        '"base64,"',
        '"2026-02-30"',
        '"0000-01-01"',
        '"9999-12-31"',
        '"2026-03-01"',
        '"a\xa0b"',
        '"' + "y" * 600 + '"',
    ]
)
_LITERALS = st.sampled_from(["null", "true", "false", "{}", "[]", "", "[" * 300 + "]" * 300, "None", '"'])


def _gathered(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(_TEXTS, inner), max_size=3)  # names may stand twice
    return st.lists(inner, max_size=3).map(lambda some: f"[{','.join(some)}]") | pairs.map(_object)


def _object(pairs: Any, comma: str = ",") -> str:
    return "{" + comma.join(f"{name}:{value}" for name, value in pairs) + "}"


JSON = st.recursive(_NUMBERS | _TEXTS | _ODD_TEXTS | _LITERALS, _gathered, max_leaves=5)
"""What stands for a value, mostly valid JSON."""
_TIMES = st.sampled_from(
    ['"2026-03-01T12:00:00Z"'] * 6
    + ['"0001-01-01T00:00:00+01:00"', '"9999-12-31T23:59:59.999999Z"', '"2026-03-01t12:00:00.1234567+14:00"']
    + [
        '"2026-03-01 12:00:00-00:00"',
        '"2016-12-31T23:59:60Z"',
        '"1969-12-31T23:59:59Z"',
        '"1582-01-01T00:00:00Z"',
    ]
)
_PEOPLE = st.sampled_from(
    ['"ann"'] * 6 + ["7", "7.0", "1e3", '"a\\u00a0"', '""', '"' + "p" * 513 + '"', '" "', '"\\u0000"']
)
_SPACES = st.sampled_from([("", ","), ("", ","), (" ", " , "), ("\n", ",\n"), ("\t", ",\r\n")])


@st.composite
def event_texts(draw: st.DrawFn, name: str, kinds: Mapping[str, str]) -> str:
    """An event of a type, most of it right."""
    data = []
    for field, kind in kinds.items():
        dates = st.just('"2026-03-01"') if kind == "string" else st.nothing()
        fitting = VALUES[kind].map(json.dumps) | dates
        if draw(st.integers(0, 5)):
            data.append((json.dumps(field), draw(fitting if draw(st.integers(0, 3)) else JSON)))
    if not draw(st.integers(0, 5)):
        data += draw(st.lists(st.tuples(_TEXTS | st.just('"a"'), JSON), max_size=2))
    space, comma = draw(_SPACES)
    members = [
        ('"specversion"', '"1.0"'),
        ('"id"', draw(st.integers(0, 99).map(lambda n: f'"i{n}"') | JSON)),
        ('"source"', '"s"'),
        ('"type"', json.dumps(name)),
        ('"subject"', draw(_PEOPLE)),
        ('"time"', draw(_TIMES)),
        ('"data"', _object(data, comma)),
    ]
    attributes = ["specversion", "id", "source", "type", "subject", "time", "data", "data_base64", "revision"]
    attributes += ["schemaversion", "datacontenttype", "dataschema", "traceparent", "Ext", ""]
    for _ in range(draw(st.integers(0, 4)) // 3):
        members.append((json.dumps(draw(st.sampled_from(attributes))), draw(JSON)))
    if not draw(st.integers(0, 9)):
        members.pop(draw(st.integers(0, len(members) - 1)))
    return space + _object(draw(st.permutations(members)) if draw(st.booleans()) else members, comma) + space


_BYTES = st.sampled_from(
    [b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b'"', b"{", b"]", b"\n", b"\r", b"e9", b"\\"]
)


@st.composite
def changed(draw: st.DrawFn, raw: bytes) -> bytes:
    """The same with a few bytes put in, left out, written over or cut off; most often none."""
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        at, way = draw(st.integers(0, len(raw))), draw(st.integers(0, 3))
        put = draw(_BYTES | st.binary(min_size=1, max_size=3))
        kept = (at, at + 1, min(len(raw), at + len(put)), len(raw))[way]
        raw = raw[:at] + (b"" if way in (1, 3) else put) + raw[kept:]
    return raw


def lines_like(name: str, kinds: Mapping[str, str]) -> st.SearchStrategy[bytes]:
    """Lines of any bytes, most of them like an event of a type."""
    like = event_texts(name, kinds).map(lambda text: text.encode("utf-8", "surrogatepass")).flatmap(changed)
    return (
        like | like | like | st.binary(max_size=30) | JSON.map(lambda text: text.encode("utf-8", "replace"))
    )
