"""What a Kafka message is to the lake: CloudEvents in both of their modes, or any JSON by a mapping. Pure.

Formats: the Kafka protocol binding of CloudEvents 1.0.2. A message without a value (a tombstone of a
compacted topic) is no event: it is counted as blank, like the offsets that compaction and transaction
markers leave empty.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import orjson
from attrs import evolve

from lake.cloudevents import Parsed, parse_cloud_events
from lake.mapped import cells_of, map_rows
from lake.mapping import Mapping
from lake.typeregistry import TypeRegistry

_PREFIX: Final = "ce_"
_WHOLE_NUMBERS: Final = ("revision", "schemaversion")


class Message(NamedTuple):
    """A message of one partition."""

    offset: int
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] | None = None


class MessageFormat(Protocol):
    """Reads messages of one partition."""

    def parse(self, source: str, start: int, end: int, messages: Sequence[Message]) -> Parsed:
        """Offsets [start, end) of a source; those without a message are blank."""
        ...


class CloudEventMessages:
    """CloudEvents: structured JSON, or attributes in `ce_` headers with JSON data as the value."""

    def __init__(self, types: TypeRegistry) -> None:
        self._types = types

    def parse(self, source: str, start: int, end: int, messages: Sequence[Message]) -> Parsed:
        lines = [
            (one.offset, structured(one) if one.headers or one.value is None else one.value)
            for one in messages
        ]
        parsed = parse_cloud_events(lines, self._types, start, end)
        return evolve(parsed, blank=parsed.blank + end - start - len(messages))


class MappedMessages:
    """One JSON object per message, and a mapping of kind `json`.

    `{file}` in a template stands for the topic and its partition, `{line}` for the offset plus one.
    """

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping

    def parse(self, source: str, start: int, end: int, messages: Sequence[Message]) -> Parsed:
        digest = hashlib.sha256(source.encode()).hexdigest()[:16]
        rows = [
            (one.offset, one.value, cells_of(self._mapping, one.value))
            for one in messages
            if one.value is not None and one.value.strip()
        ]
        return map_rows(self._mapping, self._mapping.columns, rows, digest, start, end)


def structured(message: Message) -> bytes:
    """A message as one structured CloudEvent; whatever it is, nothing of it is lost."""
    value = message.value
    if value is None:
        return b""
    attributes = attributes_of(message)
    if "specversion" not in attributes:
        return value
    head = orjson.dumps(attributes)[:-1]
    return head + b',"data":' + (value or b"null") + b"}"


def attributes_of(message: Message) -> dict[str, str | int]:
    """The attributes of a CloudEvent that come in headers; none where there are no such headers."""
    return {
        name[len(_PREFIX) :]: _attribute(name[len(_PREFIX) :], raw)
        for name, raw in message.headers or ()
        if name.startswith(_PREFIX)
    }


def _attribute(name: str, raw: bytes | None) -> str | int:
    text = (raw or b"").decode(errors="replace")
    return int(text) if name in _WHOLE_NUMBERS and text.isdecimal() else text
