"""CloudEvents whose attributes come in headers, of HTTP and Kafka alike, as one structured event. Pure.

What headers say holds: a body becomes the event's data and can say nothing else. One that is a single JSON
document stands there byte for byte; any other one stands there as base64, so that the event is a dead letter
with all that was sent, of the person that the headers name.

Formats: the HTTP and Kafka protocol bindings of CloudEvents 1.0.2.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal
from urllib.parse import unquote_to_bytes

import orjson

from lake.attributes import MEMBER

Attributes = Sequence[tuple[str, bytes | None]]
"""Names without the prefix of their headers, and values as UTF-8; null is the same as not there."""
_REQUIRED: Final = frozenset({"specversion", "id", "source", "type"})
_WHOLE_NUMBERS: Final = ("revision", "schemaversion")
_WHOLE_NUMBER: Final = re.compile(rb"[0-9]{1,10}")
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
_DEEP: Final = 500  # far less than the nesting that JSON readers refuse


def mode_of(content_type: str | None, names: Iterable[str]) -> Literal["structured", "batch", "binary"]:
    """How an event is sent.

    Args:
        content_type: goes before everything else.
        names: of the attributes that come in headers.
    """
    media = media_type(content_type)
    if media.startswith("application/cloudevents-batch"):
        return "batch"
    if media.startswith("application/cloudevents"):
        return "structured"
    return "structured" if _REQUIRED.isdisjoint(names) else "binary"


def media_type(content_type: str | None) -> str:
    """Without its parameters, in small letters."""
    return (content_type or "").partition(";")[0].strip().lower()


def header_value(raw: bytes) -> bytes:
    """An attribute out of an HTTP header: quotes and percent-encoding are taken off, once."""
    value = raw.strip(b" \t")
    if len(value) >= 2 and value[:1] == value[-1:] == b'"':
        value = _ESCAPED.sub(rb"\1", value[1:-1])
    return unquote_to_bytes(value)


def event_of(attributes: Attributes, body: bytes | None, *, opaque: bool = False) -> bytes:
    """The structured event in one line; what does not fit is in it so that the parser refuses it.

    Args:
        body: None or empty of an event without data.
        opaque: the body is no JSON, whatever it looks like.
    """
    members: dict[str, list[Any]] = {}
    for name, raw in attributes:
        if raw is not None:
            values = members.setdefault(_member(name), [])
            if (value := _value(name, raw)) not in values:
                values.append(value)
    event = {name: some[0] if len(some) == 1 else some for name, some in sorted(members.items())}
    head = orjson.dumps(event)
    if not body:
        return head
    join = head[:-1] + (b"," if event else b"")
    if not opaque and _is_json(body):
        line = join + b'"data":' + body + b"}"
        if body.count(b"[") + body.count(b"{") < _DEEP or _is_json(line):
            return line
    return join + b'"data_base64":"' + base64.b64encode(body) + b'"}'


def _member(name: str) -> str:
    """Never one of the members that hold the data."""
    return f"ce_{name}" if name in ("data", "data_base64") or not MEMBER.fullmatch(name) else name


def _value(name: str, raw: bytes) -> Any:
    if name in _WHOLE_NUMBERS and _WHOLE_NUMBER.fullmatch(raw):
        return int(raw)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}  # no attribute is an object


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
