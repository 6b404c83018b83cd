"""An id is the characters that were sent, through every door; different ids are different people."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keys import InvalidName, SubjectId
from lake import TypeRegistry, UnreadableInput
from lake.cloudevents import parse_cloud_events
from lake.mapped import map_lines
from lake.mapping import parse_mapping
from lake.messages import CloudEventMessages, MappedMessages, Message, Messages
from lake.parsed import Parsed
from lake.sources import MappedFile
from lake.validate import Flaw
from lake.wireformat import SchemaRegistry, _key_of
from service.runtime import Runtime
from tests.world import PAID, erase, paid, send

_MAPPING = {
    "format": {"kind": "json"},
    "event": {"type": "Paid", "source": "s", "subject": "{who}", "id": "{eid}", "time": "at"},
    "fields": {"cents": "cents"},
}
_TIME = "2026-01-01T00:00:00Z"
UNUSUAL = [
    "1", "01", " 1", "1 ", "1.0", "1e2", "+1", "\u00a01", "1\u00a0", "1\u200d", "1\u00ad", "\u200b1", "\ufeff1",
    "\u00e9", "e\u0301", "\u212b", "\u00c5", "\u0661", "\uff11", "a\tb", "a\nb", "a\u2028b", "\x00", "a\x00",
    "\x7f", "\ue000", "\U000e0001", "\u0378", " ", "\u3000", "A", "a", "\u0130", "x" * 2000,
]  # fmt: skip
_IDS = st.sampled_from(UNUSUAL) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> TypeRegistry:
    registry = TypeRegistry(tmp_path_factory.mktemp("types"))
    registry.register(PAID)
    return registry


def _ids(parsed: Parsed) -> list[tuple[str, str]]:
    frames = [frame.select("position", "subject", "event_id") for _, frame in parsed.accepted]
    rows = pl.concat(frames).sort("position").rows() if frames else []
    return [(subject, event_id) for _, subject, event_id in rows]


def _doors(types: TypeRegistry, values: list[Any]) -> dict[str, Parsed]:
    """The same persons and ids, as JSON values, through each door for JSON."""
    mapping = parse_mapping(_MAPPING, types)
    events = [json.dumps(paid("x", event_id="x") | {"subject": v, "id": v}).encode() for v in values]
    rows = [json.dumps({"who": v, "eid": v, "at": _TIME, "cents": 1}).encode() for v in values]
    as_events = Messages.of(Message(at, raw) for at, raw in enumerate(events))
    as_rows = Messages.of(Message(at, raw) for at, raw in enumerate(rows))
    count = len(values)
    return {
        "CloudEvents": parse_cloud_events(list(enumerate(events)), types, 0, count),
        "CloudEvents, many": parse_cloud_events(list(enumerate(events * 300)), types, 0, 300 * count),
        "mapped JSON": map_lines(mapping, mapping.columns, list(enumerate(rows)), "d", 0, count),
        "Kafka": CloudEventMessages(types).parse("s", 0, count, as_events),
        "Kafka, mapped": MappedMessages(mapping).parse("s", 0, count, as_rows),
    }


@settings(max_examples=30)
@given(texts=st.lists(_IDS, min_size=1, max_size=6))
@example(texts=[one for one in UNUSUAL if one.strip()])
def test_every_text_is_an_id_and_stays_what_it_is_through_every_door(
    types: TypeRegistry, texts: list[str]
) -> None:
    """So no two of them fall together; a blank cell of a mapping alone names nobody."""
    for door, parsed in _doors(types, texts).items():
        sent = [one for one in texts if "mapped" not in door or one.strip(" \t\n\r\x0b\x0c")]
        if "mapped" in door:
            found = _ids(parsed)
            assert all(pair[0] == pair[1] for pair in found)
            assert set(found) >= {(one, one) for one in sent if one.strip()}
        else:
            assert _ids(parsed) == [(one, one) for one in sent] * (300 if "many" in door else 1), door


@settings(max_examples=30)
@given(numbers=st.lists(st.integers() | st.integers(2**64, 2**80), min_size=1, max_size=5))
@example(numbers=[0, 1, 10**40, -(10**40), 2**63, 2**64])
def test_a_whole_number_is_the_text_of_its_digits(types: TypeRegistry, numbers: list[int]) -> None:
    """However many there are."""
    for door, parsed in _doors(types, numbers).items():
        expected = [(str(one), str(one)) for one in numbers]
        assert _ids(parsed) == expected * (300 if "many" in door else 1), door


@pytest.mark.parametrize(
    "value", ["1.0", "1e2", "1E2", "-0.0", "true", "false", "null", "{}", "[1]", '{"a":1}']
)
@pytest.mark.parametrize("name", ["subject", "id"])
def test_any_other_value_of_json_is_a_letter(types: TypeRegistry, name: str, value: str) -> None:
    """It has no spelling that everybody agrees on."""
    mapping = parse_mapping(_MAPPING, types)
    event = json.dumps(paid("x", event_id="x") | {name: "@"}).replace('"@"', value).encode()
    column = {"subject": "who", "id": "eid"}[name]
    row = json.dumps({"who": "w", "eid": "e", "at": _TIME, "cents": 1} | {column: "@"})
    row = row.replace('"@"', value)
    for parsed in (
        parse_cloud_events([(0, event)], types, 0, 1),
        map_lines(mapping, mapping.columns, [(0, row.encode())], "d", 0, 1),
    ):
        assert len(parsed.rejected) == 1
        assert parsed.accepted == ()


def test_minus_zero_is_spelled_as_it_was_sent(types: TypeRegistry) -> None:
    """JSON knows it as a whole number; it is not the text 0."""
    event = json.dumps(paid("x", event_id="x") | {"subject": "@"}).replace('"@"', "-0").encode()
    assert _ids(parse_cloud_events([(0, event)], types, 0, 1)) == [("-0", "x")]


def test_people_with_unusual_ids_are_stored_apart_and_erased_apart(world: Runtime) -> None:
    """One key each, and an erasure takes one of them."""
    done = send(world, [paid(one, event_id=str(at)) for at, one in enumerate(UNUSUAL)])
    assert (done.events, done.dead) == (len(UNUSUAL), 0)
    refs = [world.keyring.ref_of(SubjectId(one)) for one in UNUSUAL]
    assert None not in refs
    assert len(set(refs)) == len(UNUSUAL)
    erase(world, "\u00a01")
    gone = [one for one, ref in zip(UNUSUAL, refs, strict=True) if ref and not world.keyring.purposes_of(ref)]
    assert gone == ["\u00a01"]


@pytest.mark.parametrize("text", ["", "\ud800", "a\udfff", "x" * 70_000])
def test_what_no_utf8_holds_is_no_id(text: str) -> None:
    """The one rule, and it is documented."""
    with pytest.raises(InvalidName):
        SubjectId(text)


def _file(folder: Path, text: str, types: TypeRegistry, **event: str) -> MappedFile:
    (folder / "f.csv").write_text(text)
    document = {
        "event": {"type": "Paid", "source": "s", "subject": "u{who}", "time": "at"} | event,
        "fields": {"cents": "cents"},
    }
    return MappedFile(folder / "f.csv", parse_mapping(document, types))


def test_no_column_is_shadowed_by_a_built_in_name(tmp_path: Path, types: TypeRegistry) -> None:
    """A column called `line` or `file` is read; the built-in names are others."""
    text = f"line,file,at,cents\n7,x,{_TIME},1\n8,y,{_TIME},2\n"
    source = _file(tmp_path, text, types, subject="{line}", id="{file}-{$line}")
    (parsed,) = source.read(0)
    assert _ids(parsed) == [("7", "x-2"), ("8", "y-3")]
    source = _file(tmp_path, text, types, subject="{line}")
    (parsed,) = source.read(0)
    assert [event_id for _, event_id in _ids(parsed)] == [f"{source.digest}:2", f"{source.digest}:3"]


@pytest.mark.parametrize(
    ("header", "event", "what"),
    [
        ("who,at,cents,who", {}, "who"),
        ("who,at,cents,x,x", {}, "x"),
        ("who,at,cents,$line", {"id": "{$line}"}, r"\$line"),
        ("who,at,cents", {"id": "{line}"}, "line"),
    ],
)
def test_a_header_that_can_be_misread_is_refused_by_name(
    tmp_path: Path, types: TypeRegistry, header: str, event: dict[str, str], what: str
) -> None:
    """Two columns of one name; a column that a template would mean otherwise; one that is not there."""
    with pytest.raises(UnreadableInput, match=what):
        _file(tmp_path, header + "\n", types, **event)


@pytest.mark.parametrize("value", ["nan", "NaN", "inf", "-Infinity", "1e999"])
def test_nan_and_infinity_are_letters_of_their_own_reason(tmp_path: Path, value: str) -> None:
    """In a cell as in JSON."""
    types = TypeRegistry(tmp_path / "types")
    rate = {"name": "Rate", "version": 1, "type": "object", "properties": {"r": {"type": "number"}}}
    types.register(rate)
    document = {
        "format": {"columns": ["who", "at", "r"]},
        "event": {"type": "Rate", "source": "s", "subject": "{who}", "time": "at"},
        "fields": {"r": "r"},
    }
    mapping = parse_mapping(document, types)
    lines = [(0, f"u,{_TIME},{value}".encode()), (1, f"u,{_TIME},1.5".encode())]
    parsed = map_lines(mapping, mapping.columns, lines, "d", 0, 2)
    assert [(one.line, one.flaw.reason, one.flaw.field) for one in parsed.rejected] == [
        (0, "not_finite", "r")
    ]
    if value in ("NaN", "-Infinity"):
        event = json.dumps(paid("x", event_id="x", type="Rate") | {"data": {"r": "@"}})
        parsed = parse_cloud_events([(0, event.replace('"@"', value).encode())], types, 0, 1)
        assert [(one.flaw.reason, one.flaw.field) for one in parsed.rejected] == [("not_finite", "r")]


def test_a_byte_order_mark_belongs_to_no_cell_and_no_event(tmp_path: Path, types: TypeRegistry) -> None:
    """The first person of a file is who they are."""
    (tmp_path / "f.csv").write_bytes(b"\xef\xbb\xbf" + f"u1,{_TIME},1\n".encode())
    document = {
        "format": {"columns": ["who", "at", "cents"]},
        "event": {"type": "Paid", "source": "s", "subject": "{who}", "time": "at"},
        "fields": {"cents": "cents"},
    }
    (parsed,) = MappedFile(tmp_path / "f.csv", parse_mapping(document, types)).read(0)
    assert [subject for subject, _ in _ids(parsed)] == ["u1"]


@pytest.mark.parametrize(
    ("found", "field"),
    [({"r": math.nan}, "r"), ({"a": {"b": [1, math.inf]}}, "a"), ({"r": None, "s": 1.0}, "no flaw")],
)
def test_nan_of_avro_and_protobuf_is_no_null(found: dict[str, Any], field: str) -> None:
    """JSON has no form of it, and a library writes null instead."""
    registry = SchemaRegistry("http://127.0.0.1:9")
    value = b"\0\0\0\0\1"
    key = _key_of(value)
    assert key is not None
    registry._decoders[key] = lambda value, context: found
    (answer,) = registry.as_json([Message(0, value)])
    assert answer == (
        json.dumps(found).replace(" ", "").encode() if field == "no flaw" else Flaw("not_finite", field)
    )
