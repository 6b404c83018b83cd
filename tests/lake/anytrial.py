"""One trial: a schema, some bytes, and a door that they come through."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
from attrs import frozen
from hypothesis import assume
from hypothesis import strategies as st

from lake import SchemaError, TypeRegistry
from lake.errors import MappingError, UnreadableInput
from lake.mapping import Mapping as FieldMapping
from lake.mapping import parse_mapping
from lake.messages import CloudEventMessages, Message
from lake.sealedmessages import MAGIC
from service.runtime import Runtime
from tests.lake.anydoor import GOOD, Came, Doors, among, neighbours, outcomes
from tests.lake.anyevent import JSON, changed, lines_like
from tests.lake.anyschema import documents
from tests.world import PAID

_NUMBER = itertools.count()
_SEALED_PLACE = 11
_ALL = {f"good-{at}" for at in range(len(GOOD))}
_SCHEMAS = [
    (json.dumps({"title": "A", "type": "object", "properties": {"who": {"type": "string"}}}), "JSON"),
    (
        json.dumps(
            {
                "type": "record",
                "name": "Any",
                "fields": [
                    {"name": "who", "type": "string"},
                    {"name": "cents", "type": ["null", "long", "double", {"type": "map", "values": "bytes"}]},
                    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
                    {"name": "day", "type": {"type": "int", "logicalType": "date"}},
                    {
                        "name": "price",
                        "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
                    },
                ],
            }
        ),
        "AVRO",
    ),
    (json.dumps("double"), "AVRO"),
]


@frozen
class Trial:
    """What a door is tried with.

    Attributes:
        kind: name of the type that most lines are like; `kinds` are those of its fields.
    """

    doors: Doors
    types: TypeRegistry
    kind: str
    kinds: Mapping[str, str]
    draw: Callable[[Any], Any]

    def lines(self) -> list[bytes]:
        """Some like an event of the type."""
        return self.draw(st.lists(lines_like(self.kind, self.kinds), min_size=1, max_size=3))


def _file(trial: Trial) -> None:
    came = trial.doors.file(among(trial.lines()))
    trial.doors.check(came)
    assert neighbours(came) == _ALL


def _http(trial: Trial) -> None:
    lines = trial.lines()
    comma = trial.draw(st.sampled_from([b",", b" ,\n"]))
    for body in (b"[" + comma.join(among(lines)) + b"]", lines[0]):
        came = trial.doors.http(trial.draw(changed(body)))
        if came is not None:
            trial.doors.check(came)
    sound = [line for line in lines if _is_one(trial, line)]
    came = trial.doors.http(b" [" + comma.join(among(sound)) + b"] ")
    assert came is not None
    assert list(came.sent.values()) == [line.strip(b" \t\r\n") for line in among(sound)]
    assert neighbours(came) == _ALL
    trial.doors.check(came)


def _is_one(trial: Trial, line: bytes) -> bool:
    """Whether a line is JSON by itself, and no array."""
    return trial.doors.http(line) is not None and line.strip()[:1] != b"["


_ATTRIBUTES = st.sampled_from(
    [
        "specversion",
        "id",
        "source",
        "type",
        "subject",
        "time",
        "data",
        "revision",
        "schemaversion",
        "datacontenttype",
        "Id",
        "",
        "ext",
        "é",
        "\x00",
    ]
)


@st.composite
def _attributes(draw: Any, kind: str) -> list[tuple[str, bytes]]:
    right = {"specversion": "1.0", "id": "h", "source": "s", "type": kind, "subject": "ann"}
    found = [(name, text.encode()) for name, text in right.items()] + [("time", b"2026-03-01T12:00:00Z")]
    for name in draw(st.lists(_ATTRIBUTES, max_size=2)):
        value = draw(
            st.binary(max_size=8) | st.sampled_from([b"1", b"-1", b"99999999999", b'"\xff"', b"%ff"])
        )
        found.insert(draw(st.integers(0, len(found))), (name, value))
    if not draw(st.integers(0, 5)):
        found.pop(draw(st.integers(0, len(found) - 1)))
    return found


def _body(trial: Trial) -> bytes:
    data = {name: json.dumps(name) for name in trial.kinds}
    text = trial.draw(JSON | st.just(json.dumps(data)))
    body: bytes = trial.draw(changed(text.encode("utf-8", "surrogatepass")) | st.binary(max_size=20))
    return body


def _binary(trial: Trial) -> None:
    """Attributes in headers, over HTTP and in a message."""
    attributes, body = trial.draw(_attributes(trial.kind)), _body(trial)
    described = trial.draw(
        st.sampled_from(
            [b"", b"application/json", b"application/cloudevents+json", b"text/plain; a", b"\xff"]
        )
    )
    content = [(b"content-type", described)] if described else []
    headers = [(b"ce-" + name.encode(), value) for name, value in attributes] + content
    came = trial.doors.http(body, headers)
    if came is not None:
        trial.doors.check(came)
    named = [(f"ce_{name}", value) for name, value in attributes] + [("content-type", described or None)]
    messages = [Message(1, GOOD[0]), Message(3, trial.draw(st.none() | st.just(body)), named), *_after(4)]
    came = trial.doors.kafka(messages)
    trial.doors.check(came)
    assert neighbours(came) == _ALL


def _after(offset: int) -> list[Message]:
    return [Message(offset, GOOD[1]), Message(offset + 2, GOOD[2])]


def _kafka(trial: Trial) -> None:
    offsets = itertools.count(trial.draw(st.integers(0, 3)), trial.draw(st.integers(1, 2)))
    came = trial.doors.kafka([Message(next(offsets), line) for line in [*among(trial.lines()), None]])
    trial.doors.check(came)
    assert neighbours(came) == _ALL


def _framed(trial: Trial) -> None:
    key = trial.draw(st.integers(0, len(_SCHEMAS) + 1))
    framed = [b"\0" + key.to_bytes(4, "big") + line for line in [*trial.lines(), _body(trial)]]
    raw = [trial.draw(changed(one)) for one in framed] + [GOOD[0], b"\0\0\0\0\x01" + GOOD[0], None]
    headers = trial.draw(
        st.none()
        | _attributes(trial.kind).map(lambda some: [(f"ce_{name}", value) for name, value in some])
        | st.binary(max_size=18).map(lambda value: [("__value_schema_id", value)])
    )
    messages = [Message(at, value, headers if at == 0 else None) for at, value in enumerate(raw)]
    inner = CloudEventMessages(trial.types)
    came = trial.doors.framed(messages, _SCHEMAS, inner)
    trial.doors.check(came)
    assert neighbours(came) >= {"good-0"}


_CELLS = st.sampled_from(
    [
        "",
        "1",
        "-1",
        "5.0",
        "1e2",
        "1e400",
        "nan",
        "inf",
        "true",
        "ann",
        "2026-03-01",
        "a b",
        '"q',
        '""',
        '"a,b"',
        "9" * 30,
        "0.1234567891",
        "2026-03-01T12:00:00Z",
        "2026-02-30T00:00:00Z",
        " 7 ",
        "\x00",
        "é",
        "1_0",
        "0x1",
    ]
)
_TEMPLATES = st.sampled_from(["{who}", "c-{who}", "{$line}", "{$file}-{n}", "x", "{who}{n}", "{{{who}}}"])
_FORMATS = st.sampled_from(
    ["%Y-%m-%d", "%d/%m/%y %H:%M", "%s", "%Q", "%", "", "%Y-%m-%dT%H:%M:%S%z", "%j", "%c", "%F %T"]
)


@st.composite
def _mappings(draw: Any, kind: str, kinds: Mapping[str, str], form: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name in kinds:
        rule: dict[str, Any] = {"from": draw(st.sampled_from(["n", "who", "at", "x"]))}
        if not draw(st.integers(0, 4)):
            rule["scale"] = draw(st.sampled_from([1, 100, 10**9]))
        if not draw(st.integers(0, 4)):
            rule["date_format"] = draw(_FORMATS)
        fields[name] = rule
    event = {"type": kind, "source": "s", "subject": draw(_TEMPLATES), "id": draw(_TEMPLATES), "time": "at"}
    if not draw(st.integers(0, 3)):
        event["time_format"] = draw(_FORMATS)
    shape: dict[str, Any] = {"kind": form}
    if form == "whitespace" or (form == "csv" and draw(st.booleans())):
        shape["columns"] = ["who", "n", "at", "x"]
    if form == "csv":
        shape["delimiter"] = draw(st.sampled_from([",", ";", "\t", "|", "a", "\0"]))
    return {"format": shape, "event": event, "fields": fields}


def _mapping(trial: Trial, form: str) -> FieldMapping:
    document = trial.draw(_mappings(trial.kind, trial.kinds, form))
    try:
        return parse_mapping(document, trial.types)
    except MappingError:
        assume(False)
        raise


def _mapped(trial: Trial) -> None:
    """A row by itself comes to the same as among others."""
    form = trial.draw(st.sampled_from(["csv", "whitespace"]))
    mapping = _mapping(trial, form)
    join = " " if form == "whitespace" else mapping.delimiter
    rows = trial.draw(
        st.lists(st.lists(_CELLS, min_size=3, max_size=5) | st.lists(_CELLS, min_size=4, max_size=4))
    )
    lines = [trial.draw(changed(join.join(row).encode())) for row in rows]
    lines.insert(len(lines) // 2, join.join(["ann", "1", "2026-03-01T12:00:00Z", "x"]).encode())
    head = [] if mapping.columns else [join.join(["who", "n", "at", "x"]).encode()]
    try:
        came = trial.doors.mapped_file([*head, *lines], mapping)
    except UnreadableInput:
        assert not mapping.columns
        return
    trial.doors.check(came)
    found = outcomes(came)
    for at, line in came.sent.items():
        if at >= len(head) and line.strip():
            alone = outcomes(trial.doors.mapped_file([*head, line], mapping))
            assert alone.get(len(head)) == found.get(at)


def _mapped_messages(trial: Trial) -> None:
    mapping = _mapping(trial, "json")
    pairs = st.lists(st.tuples(st.sampled_from(['"who"', '"n"', '"at"', '"x"', '"y"']), JSON), max_size=5)
    texts = trial.draw(
        st.lists(pairs.map(lambda some: "{" + ",".join(map(":".join, some)) + "}"), max_size=4)
    )
    raws = [trial.draw(changed(text.encode("utf-8", "surrogatepass"))) for text in texts]
    raws.append(b'{"who":"ann","n":1,"at":"2026-03-01T12:00:00Z","x":"x"}')
    messages = [Message(2 * at, raw) for at, raw in enumerate(raws)]
    came = trial.doors.mapped_kafka(messages, mapping)
    trial.doors.check(came)
    for one in messages:
        alone = outcomes(trial.doors.mapped_kafka([one], mapping))
        assert alone == {at: what for at, what in outcomes(came).items() if at == one.offset}


def _sealed(trial: Trial) -> None:
    """What is in clear of a message is anybody's."""
    values: list[bytes | None] = list(trial.doors.sealing(among(trial.lines())))
    at = trial.draw(st.integers(0, len(values) - 1))
    one = values[at] or b""
    values[at] = trial.draw(changed(one) | _resealed(one) | st.just(forged(one)))
    came = trial.doors.sealed(values)
    trial.doors.check(came)
    assert came.parsed.sealed is not None
    assert {*came.parsed.sealed["source_from"]} >= {*range(len(values))} - {at}


def forged(value: bytes) -> bytes:
    """A message whose sealed part nobody sealed, and that looks like any other."""
    uuid, blocks = msgpack.unpackb(value[len(MAGIC) :])
    blocks[0][_SEALED_PLACE] = blocks[0][_SEALED_PLACE][:-1] + bytes([blocks[0][_SEALED_PLACE][-1] ^ 1])
    return MAGIC + bytes(msgpack.packb([uuid, blocks]))


@st.composite
def _resealed(draw: Any, value: bytes) -> bytes:
    """A message with something else at some of its places."""
    whole: Any = msgpack.unpackb(value[len(MAGIC) :])
    odd = st.sampled_from(
        [None, True, 0, 1, -1, 2**31, 2**63, -(2**63), 1.5, b"", b"\0" * 16, "", "Paid", [], {}]
    )
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from([whole, whole[1], *(one for one in whole[1] if isinstance(one, list))]))
        if place:
            place[draw(st.integers(0, len(place) - 1))] = draw(odd)
        if not isinstance(whole[1], list):
            break
    return MAGIC + bytes(msgpack.packb(whole))


DOORS: Mapping[str, Callable[[Trial], None]] = {
    "file": _file,
    "mapped": _mapped,
    "http": _http,
    "binary": _binary,
    "kafka": _kafka,
    "mapped_messages": _mapped_messages,
    "framed": _framed,
    "sealed": _sealed,
}


def tried(world: Runtime, door: str, data: st.DataObject) -> None:
    """One trial of a door; raises where an invariant breaks."""
    document, kinds = data.draw(documents())
    name = f"T{next(_NUMBER)}"
    folder = Path(tempfile.mkdtemp())
    try:
        types = TypeRegistry(folder)
        types.register(PAID)
        try:
            types.register({"name": name, **document})
        except SchemaError:
            assume(False)
        DOORS[door](Trial(Doors(world, types), types, name, kinds, data.draw))
    finally:
        shutil.rmtree(folder)


__all__ = ["DOORS", "Came", "tried"]
