"""CloudEvents in every mode, of HTTP and Kafka alike: one reading, and headers that no body overrides."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lake.attributes import describes, extensions
from lake.binarymode import event_of, header_value, mode_of
from lake.cloudevents import Parsed, parse_cloud_events
from lake.messages import CloudEventMessages, Message, Messages, structured
from lake.typeregistry import TypeRegistry
from service.batches import posted

VECTORS = Path(__file__).parents[1] / "vectors" / "cloudevents"
_CLOSED = {
    "name": "Closed",
    "version": 1,
    "type": "object",
    "properties": {"why": {"type": "string"}, "n": {"type": "integer"}},
}
_CORPUS = {
    "name": "io.cloudevents.test",
    "version": 1,
    "type": "object",
    "properties": {"xyz": {"type": "integer"}},
}
HEAD = {
    "specversion": "1.0",
    "id": "1",
    "source": "/shop",
    "type": "Closed",
    "subject": "dora",
    "time": "2026-03-01T12:00:00Z",
}
REASONS = {
    "invalidNoSpecVersion": ("missing_attribute", "specversion"),
    "invalidNoType": ("missing_attribute", "type"),
    "invalidNoSource": ("missing_attribute", "source"),
    "invalidTimeGarbage": ("invalid_time", "time"),
    "invalidTimeToMinute": ("invalid_time", "time"),
    "invalidTimeOffsetX": ("invalid_time", "time"),
    "invalidTimeOffsetOutOfRange": ("invalid_time", "time"),
    "invalidTimeOffsetNonInteger": ("invalid_time", "time"),
    "invalidTimeOffsetHourOnly": ("invalid_time", "time"),
    "invalidEmptyType": ("missing_attribute", "type"),
    "invalidEmptySource": ("missing_attribute", "source"),
    "invalidEmptySpecVersion": ("unknown_specversion", "specversion"),
    "invalidUnknownSpecVersion": ("unknown_specversion", "specversion"),
    "invalidNonRfc2046DataContentType": ("invalid_attribute", "datacontenttype"),
    "invalidEmptyDataContentType": ("invalid_attribute", "datacontenttype"),
    "invalidEmptyDataSchema": ("invalid_attribute", "dataschema"),
    "invalidEmptySubject": ("missing_subject", "subject"),
    "invalidCapitalizedExtension": ("invalid_attribute_name", None),
    "invalidPunctuatedExtension": ("invalid_attribute_name", None),
    "invalidNonIntegerExtensionValue": ("invalid_extension", None),
    "invalidBothDataAndDataBase64": ("ambiguous_data", "data_base64"),
}
_IDS = {None: ("missing_attribute", "id"), "": ("missing_attribute", "id")}


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> TypeRegistry:
    """Two types whose fields are all optional."""
    registry = TypeRegistry(tmp_path_factory.mktemp("types"))
    for document in (_CLOSED, _CORPUS):
        registry.register(document)
    return registry


def vectors(name: str) -> list[dict[str, Any]]:
    """Events of the conformance data."""
    return [json.loads(line) for line in (VECTORS / name).read_text().splitlines()]


def parsed(types: TypeRegistry, line: bytes) -> Parsed:
    """One line."""
    return parse_cloud_events([(0, line)], types, 0, 1)


# -- the two doors ----------------------------------------------------------------------------------

Headers = dict[str, str]
Door = Callable[[Headers, bytes, str], bytes]


def by_kafka(headers: Headers, body: bytes | None, content_type: str = "application/json") -> bytes:
    """What a message of these attributes becomes."""
    raw = [(f"ce_{k}", v.encode()) for k, v in headers.items()]
    return structured(Message(0, body, [*raw, ("content-type", content_type.encode())]))


def by_http(headers: Headers, body: bytes, content_type: str = "application/json") -> bytes:
    """What a request of these attributes becomes."""
    raw = [(f"ce-{k}".encode(), quote(v).encode()) for k, v in headers.items()]
    return posted([*raw, (b"content-type", content_type.encode())], body).body


DOORS = pytest.mark.parametrize("door", [by_kafka, by_http])
_BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b'{"why":"x"},"subject":"eve","id":"99"',
            b'{"why":"x"}}{"data":{"why":"y"}',
            b'{} , "subject":"eve"',
            b'null,"subject":"eve"',
            b'{"why":"x","subject":"eve"}',
            b'"text"',
            b"[" * 1023 + b"]" * 1023,
            b'{"n":' * 1023 + b"1" + b"}" * 1023,
            b'\xef\xbb\xbf{"why":"x"}',
            b'{"why":"\xff"}',
            b'{"n":NaN}',
            b" \n",
        ]
    ),
    st.dictionaries(st.sampled_from(["why", "n", "subject"]), st.text(max_size=5)).map(orjson.dumps),
)
_VALUES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


@DOORS
@given(body=_BODIES, subject=_VALUES, identifier=_VALUES)
@example(body=b'{"why":"x"},"subject":"eve","id":"99"', subject="dora", identifier="4")
def test_no_body_overrides_a_header(
    types: TypeRegistry, door: Door, body: bytes, subject: str, identifier: str
) -> None:
    """Whatever the body is: an event or a letter of the headers' person, and no byte of the body is lost."""
    line = door(HEAD | {"subject": subject, "id": identifier}, body, "application/json")
    event = orjson.loads(line)
    assert (event["subject"], event["id"], event["type"]) == (subject, identifier, "Closed")
    kept = base64.b64decode(event["data_base64"]) if "data_base64" in event else body
    assert kept == body
    assert "data_base64" in event or b'"data":' + body + b"}" in line or not body
    found = parsed(types, line)
    if found.rejected:
        (letter,) = found.rejected
        assert letter.subject in (subject, None)
        assert letter.subject == subject or letter.flaw.field == "subject"
        assert letter.raw == line
    else:
        ((_, frame),) = found.accepted
        assert frame["subject"].to_list() == [subject]
        assert frame["event_id"].to_list() == [identifier]


@DOORS
def test_an_event_in_binary_mode_is_the_same_in_structured_mode(types: TypeRegistry, door: Door) -> None:
    """The same attributes and fields."""
    line = door(
        HEAD | {"revision": "3", "subject": "Dora Ä 100%"}, b'{"why":"moved","n":2}', "application/json"
    )
    ((_, binary),) = parsed(types, line).accepted
    whole = HEAD | {"revision": 3, "subject": "Dora Ä 100%", "data": {"why": "moved", "n": 2}}
    ((_, other),) = parsed(types, orjson.dumps(whole)).accepted
    assert binary.equals(other)


@DOORS
@pytest.mark.parametrize("name", ["data", "data_base64", "My.Ext", "datacontenttype", "id"])
def test_headers_that_say_two_things_or_what_none_can_say_make_a_letter(
    types: TypeRegistry, door: Door, name: str
) -> None:
    """Neither is chosen silently."""
    headers = HEAD | {name: "one/thing"}
    if name == "id":
        line = event_of([*((k, v.encode()) for k, v in HEAD.items()), ("id", b"2")], b"{}")
    else:
        line = door(headers, b"{}", "another/thing")
    (letter,) = parsed(types, line).rejected
    assert letter.subject == "dora"


@pytest.mark.parametrize("raw", [b"\xff", b"%FF", b"do\xe9ra"])
def test_a_header_that_is_no_text_is_a_letter_and_no_other_person(types: TypeRegistry, raw: bytes) -> None:
    """Two of them would fall together if what cannot be read were replaced."""
    attributes = [(k, v.encode()) for k, v in HEAD.items() if k != "subject"]
    line = event_of([*attributes, ("subject", header_value(raw))], b"{}")
    (letter,) = parsed(types, line).rejected
    assert (letter.flaw.reason, letter.flaw.field, letter.subject) == ("wrong_type", "subject", None)


@given(_VALUES)
def test_what_the_binding_encodes_comes_back(value: str) -> None:
    """Percent-encoded as the HTTP binding says (3.1.3.2), quoted or not; decoded once."""
    coded = "".join(c if "!" <= c <= "~" and c not in '"%' else quote(c, safe="") for c in value)
    assert header_value(coded.encode()).decode() == value
    escaped = coded.replace("\\", "\\\\")
    assert header_value(f'"{escaped}"'.encode()).decode() == value


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"Euro%20%E2%82%AC", "Euro €"),
        (b"%2525", "%25"),
        (b"100%", "100%"),
        (b'"a \\"b\\" \\\\"', 'a "b" \\'),
        (b"  plain ", "plain"),
    ],
)
def test_header_values_are_decoded_as_the_specification_says(raw: bytes, value: str) -> None:
    """Its own examples among them."""
    assert header_value(raw).decode() == value


# -- without data -----------------------------------------------------------------------------------


def test_attributes_without_data_are_an_event_and_a_bare_tombstone_is_none(types: TypeRegistry) -> None:
    """Also an empty value; data that is null; no data in structured mode."""
    headers = [(f"ce_{k}", v.encode()) for k, v in HEAD.items()]
    values: list[bytes | None] = [
        None,
        b"",
        None,
        b"",
        orjson.dumps(HEAD),
        orjson.dumps(HEAD | {"data": None}),
    ]
    messages = Messages.of(Message(at, value, headers if at < 2 else None) for at, value in enumerate(values))
    found = CloudEventMessages(types).parse("t", 0, 6, messages)
    assert sum(frame.height for _, frame in found.accepted) == 4
    assert (found.rejected, found.blank) == ((), 2)


def test_data_as_base64_is_read_where_it_is_json(types: TypeRegistry) -> None:
    """And is a letter with its place where it is not."""
    good = orjson.dumps(HEAD | {"data_base64": base64.b64encode(b'{"n":3}').decode()})
    ((_, frame),) = parsed(types, good).accepted
    assert frame["n"].to_list() == [3]
    for encoded, reason in (
        ("e30", "malformed_base64"),
        ("aGVsbG8=", "malformed_json"),
        ("W10=", "wrong_type"),
    ):
        (letter,) = parsed(types, orjson.dumps(HEAD | {"data_base64": encoded})).rejected
        assert letter.flaw.reason == reason
        assert letter.subject == "dora"


# -- modes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "mode"),
    [
        ("application/cloudevents+json; charset=UTF-8", "structured"),
        ("Application/CloudEvents+JSON", "structured"),
        ("application/cloudevents-batch+json", "batch"),
        ("application/json", "binary"),
        (None, "binary"),
    ],
)
def test_the_content_type_says_the_mode(content_type: str | None, mode: str) -> None:
    """Headers only where it says nothing."""
    assert mode_of(content_type, HEAD) == mode
    assert mode_of(content_type, ["traceparent"]) == ("structured" if mode == "binary" else mode)


def test_a_structured_message_with_attributes_in_headers_too_is_its_value(types: TypeRegistry) -> None:
    """The headers are a copy for those who route."""
    headers = [("ce_specversion", b"1.0"), ("ce_id", b"other"), ("ce_subject", b"eve")]
    value = orjson.dumps(HEAD | {"data": {"n": 1}, "revision": None})
    message = Message(0, value, [*headers, ("content-type", b"application/cloudevents+json")])
    found = CloudEventMessages(types).parse("t", 0, 1, Messages.of([message]))
    ((_, frame),) = found.accepted
    assert (frame["subject"].to_list(), frame["event_id"].to_list()) == (["dora"], ["1"])
    assert frame["revision"].to_list() == [0]


# -- conformance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", vectors("valid.jsonl"), ids=lambda one: one["id"])
def test_valid_events_of_the_conformance_data_are_taken(types: TypeRegistry, event: dict[str, Any]) -> None:
    """Where they name a person and have an object as data; the others say what is missing."""
    found = parsed(types, orjson.dumps(event))
    wanted = {
        "validMinimalWithNullForOptional": ("missing_subject", "subject"),
        "validSimpleTextData": ("wrong_type", "data"),
    }.get(event["id"])
    assert [(one.flaw.reason, one.flaw.field) for one in found.rejected] == ([wanted] if wanted else [])
    assert bool(found.accepted) == (wanted is None)


@pytest.mark.parametrize("event", vectors("invalid.jsonl"), ids=lambda one: str(one.get("id")))
def test_invalid_events_of_the_conformance_data_are_letters_with_their_reason(
    types: TypeRegistry, event: dict[str, Any]
) -> None:
    """Each with its own; a number as id is its digits here, so it is left out."""
    identifier = event.get("id")
    if isinstance(identifier, int):
        return
    wanted = (
        ("wrong_type", "id") if isinstance(identifier, dict) else _IDS.get(identifier) or REASONS[identifier]
    )
    (letter,) = parsed(types, orjson.dumps(event)).rejected
    assert (letter.flaw.reason, letter.flaw.field) == wanted
    assert letter.raw == orjson.dumps(event)


def test_extension_attributes_that_are_not_kept_are_named() -> None:
    """To who sent them over HTTP."""
    event = HEAD | {"data": {}, "traceparent": "00-1", "other": 1, "unset": None}
    assert sorted(extensions(event)) == ["other", "traceparent"]
    assert posted([], orjson.dumps([event, HEAD])).not_kept == ("other", "traceparent")


@given(st.text(st.sampled_from(' \t;="\\a/'), max_size=60))
def test_no_media_type_takes_long_to_be_refused(text: str) -> None:
    """Blanks and semicolons in a row would, with a careless pattern."""
    assert not describes("datacontenttype", f"a/b{text}" + "; \t" * 200 + "\x00")
