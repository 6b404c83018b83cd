"""A schema that is registered can be run, and says the same whichever engine runs it."""

from __future__ import annotations

import http.server
import itertools
import json
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lake import SchemaError, TypeRegistry
from lake.cloudevents import parse_cloud_events
from lake.fieldrules import is_valid
from lake.parsed import Parsed
from tests.lake.anyschema import ANY, VALUES, bodies

_NUMBER = itertools.count()


def _document(body: dict[str, Any], required: bool, **more: Any) -> dict[str, Any]:
    document = {"name": f"T{next(_NUMBER)}", "version": 1, "type": "object", "properties": {"f": body}}
    return document | ({"required": ["f"]} if required else {}) | more


def _parsed(document: dict[str, Any], events: list[dict[str, Any]]) -> Parsed:
    with tempfile.TemporaryDirectory() as folder:
        types = TypeRegistry(Path(folder))
        types.register(document)
        head = {"specversion": "1.0", "source": "s", "subject": "u", "time": "2026-01-01T00:00:00Z"}
        lines = [
            json.dumps(head | {"id": str(at), "type": document["name"], "data": data}).encode()
            for at, data in enumerate(events)
        ]
        return parse_cloud_events(list(enumerate(lines)), types, 0, len(lines))


def _accepted(parsed: Parsed) -> set[int]:
    return {number for _, frame in parsed.accepted for number in frame["position"]}


@settings(max_examples=150, deadline=None)
@given(field=bodies(), required=st.booleans(), data=st.data())
@example(field=("integer", {"type": "integer", "minimum": 10**30}), required=False, data=None)
@example(field=("string", {"type": "string", "pattern": "(a+)+$"}), required=True, data=None)
def test_what_is_registered_takes_or_refuses_every_event_and_means_the_same_in_both_engines(
    field: tuple[str, dict[str, Any]], required: bool, data: st.DataObject | None
) -> None:
    """A keyword that says nothing moves a type from one engine to the other; the answers stay."""
    kind, body = field
    values = st.lists(VALUES[kind] | ANY, max_size=6)
    found = data.draw(values) if data is not None else [0, 1, "a" * 40 + "!", None]
    events: list[dict[str, Any]] = [{"f": value} for value in found] + [{}, {"f": None}]
    try:
        quick = _parsed(_document(body, required), events)
    except SchemaError:
        with pytest.raises(SchemaError):
            _parsed(_document(body, required, minProperties=0), events)
        return
    careful = _parsed(_document(body, required, minProperties=0), events)
    for parsed in (quick, careful):
        assert len(_accepted(parsed)) + len(parsed.rejected) == len(events)
        assert not [one for one in parsed.rejected if "unprocessable" in one.flaw.reason]
    assert _accepted(quick) == _accepted(careful)
    may_be_null = isinstance(body.get("type"), list) or "anyOf" in body
    assert (len(events) - 2 in _accepted(quick)) == (not required)
    if not (may_be_null and required):
        assert (len(events) - 1 in _accepted(quick)) == (not required)
    for at, value in enumerate(found):
        if value is not None and at in _accepted(quick):
            assert is_valid(body, value)


@pytest.mark.parametrize(
    "note", [{}, {"examples": ["x"]}, {"default": ""}, {"const": "Bonn"}, {"deprecated": True}]
)
def test_null_is_absent_whatever_else_the_schema_says(note: dict[str, Any]) -> None:
    """An annotation decides nothing."""
    parsed = _parsed(_document({"type": "string", **note}, False), [{"f": None}, {}, {"f": "Bonn"}])
    assert _accepted(parsed) == {0, 1, 2}


def test_what_generators_write_for_a_plain_field_is_one() -> None:
    """References into the document, unions with null, a single allOf; also within objects."""
    defs = {
        "short": {"type": "string", "maxLength": 3},
        "tree": {"properties": {"in": {"$ref": "#/$defs/tree"}}},
    }
    for body in (
        {"$ref": "#/$defs/short"},
        {"allOf": [{"$ref": "#/$defs/short"}]},
        {"anyOf": [{"$ref": "#/$defs/short"}, {"type": "null"}]},
        {"type": ["string", "null"], "maxLength": 3},
    ):
        document = _document(body, False, **{"$defs": defs})
        assert _accepted(_parsed(document, [{"f": "abc"}, {"f": "abcd"}, {"f": None}, {"f": 1}])) == {0, 2}
    document = _document({"type": "object", "$ref": "#/$defs/tree"}, False, **{"$defs": defs})
    assert _accepted(_parsed(document, [{"f": {"in": {"in": {}}}}])) == {0}


def test_a_required_field_that_may_be_null_must_be_there() -> None:
    """Null is a value of it, absence is none."""
    parsed = _parsed(_document({"type": ["string", "null"]}, True), [{"f": None}, {}, {"f": "a"}])
    assert _accepted(parsed) == {0, 2}


def test_a_reference_never_leads_out_of_the_document(tmp_path: Path) -> None:
    """Neither to a server nor to a file, at registration or later; nobody is asked."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    (tmp_path / "s.json").write_text('{"type": "string"}')
    places = [
        f"http://127.0.0.1:{server.server_port}/s.json",
        (tmp_path / "s.json").as_uri(),
        "s.json",
        "other#/a",
    ]
    try:
        for place in places:
            for key in ("$ref", "$dynamicRef"):
                for body in (
                    {key: place},
                    {"type": "array", "items": {key: place}},
                    {"type": "string", "not": {key: place}},
                    {"type": "object", "properties": {"a": {"anyOf": [{key: place}]}}},
                ):
                    with pytest.raises(SchemaError):
                        _parsed(_document(body, False), [{"f": "a"}])
            with pytest.raises(SchemaError):
                _parsed(_document({"type": "string"}, False, allOf=[{"$ref": place}]), [{"f": "a"}])
            assert _accepted(
                _parsed(
                    _document(
                        {"type": "string"}, False, **{"$id": places[0], "$schema": place.split("#")[0]}
                    ),
                    [{}],
                )
            )
    finally:
        server.shutdown()
        thread.join()
    assert asked == []


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ({"type": "string", "pattern": "(?=a)"}, {}),
        ({"type": "string", "pattern": "(?<!a)b"}, {}),
        ({"type": "string", "pattern": r"(a)\1"}, {}),
        ({"type": "object", "patternProperties": {"(?=a)": {}}}, {}),
        ({"type": "array", "items": {"pattern": "["}}, {}),
        ({"$ref": "#/$defs/a"}, {"$defs": {"a": {"$ref": "#/$defs/a"}}}),
        ({"type": "array", "$ref": "#/$defs/a"}, {"$defs": {"a": {"$ref": "#/$defs/a"}}}),
        ({"$ref": "#/$defs/nowhere"}, {}),
        ({"type": "array", "items": {"$id": "http://x/", "$ref": "#/a"}}, {}),
        ({"type": "integer", "enum": ["a"]}, {}),
        (True, {}),
        ({"type": "string"}, {"required": ["g"]}),
        ({"type": "string"}, {"dedup_window_days": 10**12}),
        ({"type": "string", "identity": 5}, {}),
        ({"type": "string", "subject_of": ["a"]}, {}),
        ({"type": "string", "anonymous": "yes"}, {}),
        ({"type": ["string", "integer"]}, {}),
        ({"type": "string", "purpose": 7}, {}),
    ],
)
def test_what_cannot_be_run_is_refused_when_it_is_registered(body: Any, more: dict[str, Any]) -> None:
    """With the reason, and not by a traceback on every event."""
    with pytest.raises(SchemaError):
        _parsed(_document(body, False) | more, [])


def test_no_text_stops_a_pattern() -> None:
    """Time grows with the text alone; an engine that tries again and again would need years for this."""
    evil = "a" * 100_000 + "!"
    document = _document({"type": "array", "items": {"type": "string", "pattern": "^(a+)+$"}}, False)
    assert _accepted(_parsed(document, [{"f": [evil]}, {"f": ["aaa"]}])) == {1}
