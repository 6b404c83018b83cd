"""What a Kafka message is to the lake: CloudEvents in both of their modes, or any JSON by a mapping. Pure.

Formats: the Kafka protocol binding of CloudEvents 1.0.2. The content type says the mode, and where it says
nothing the headers do. With attributes in headers a message without a value is an event without data; without
them it is a tombstone of a compacted topic and no event: it is counted as blank, like the offsets that
compaction and transaction markers leave empty.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Final, NamedTuple, Protocol

from attrs import define, evolve, field

from lake.binarymode import event_of, mode_of
from lake.cloudevents import parse_cloud_events
from lake.mapped import map_lines
from lake.mapping import Mapping
from lake.parsed import Parsed
from lake.typeregistry import TypeRegistry

_PREFIX: Final = "ce_"


Headers = Sequence[tuple[str, bytes | None]]


class Message(NamedTuple):
    """A message of one partition."""

    offset: int
    value: bytes | None
    headers: Headers | None = None


@define
class Messages:
    """Messages of one partition, a column each: most of what is done with them is done with all at once.

    Attributes:
        headers: None where no message has any.
    """

    offsets: list[int] = field(factory=list)
    values: list[bytes | None] = field(factory=list, repr=False)
    headers: list[Headers | None] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, messages: Iterable[Message]) -> Messages:
        """Out of single ones."""
        rows = list(messages)
        headers = [one.headers for one in rows]
        return cls(
            [one.offset for one in rows], [one.value for one in rows], headers if any(headers) else None
        )

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[Message]:
        return map(Message, self.offsets, self.values, self.headers or repeat(None))

    def part(self, start: int, end: int | None = None) -> Messages:
        """Some that are next to each other, by their places."""
        some = slice(start, end)
        headers = None if self.headers is None else self.headers[some]
        return Messages(self.offsets[some], self.values[some], headers)

    def extend(self, other: Messages) -> None:
        """Appends others."""
        if self.headers is not None or other.headers is not None:
            self.headers = [None] * len(self) if self.headers is None else self.headers
            self.headers += [None] * len(other) if other.headers is None else other.headers
        self.offsets += other.offsets
        self.values += other.values

    def size_bytes(self) -> int:
        """Of the values."""
        values = self.values if None not in self.values else [one or b"" for one in self.values]
        return sum(map(len, values))  # type: ignore[arg-type]


class MessageFormat(Protocol):
    """Reads messages of one partition."""

    def parse(self, source: str, start: int, end: int, messages: Messages) -> Parsed:
        """Offsets [start, end) of a source; those without a message are blank."""
        ...


class CloudEventMessages:
    """CloudEvents: structured JSON, or attributes in `ce_` headers with JSON data as the value."""

    def __init__(self, types: TypeRegistry) -> None:
        self._types = types

    def parse(self, source: str, start: int, end: int, messages: Messages) -> Parsed:
        values = messages.values
        if messages.headers is not None or None in values:
            values = [structured(one) for one in messages]
        lines: list[tuple[int, bytes]] = list(zip(messages.offsets, values, strict=True))  # type: ignore[arg-type]
        parsed = parse_cloud_events(lines, self._types, start, end)
        return evolve(parsed, blank=parsed.blank + end - start - len(messages))


class MappedMessages:
    """One JSON object per message, and a mapping of kind `json`.

    `{$file}` in a template stands for the topic and its partition, `{$line}` for the offset plus one.
    """

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping

    def parse(self, source: str, start: int, end: int, messages: Messages) -> Parsed:
        digest = hashlib.sha256(source.encode()).hexdigest()[:16]
        filled = [(one.offset, one.value) for one in messages if one.value is not None and one.value.strip()]
        return map_lines(self._mapping, self._mapping.columns, filled, digest, start, end)


def structured(message: Message) -> bytes:
    """A message as one structured CloudEvent; whatever it is, nothing of it is lost."""
    attributes = attributes_of(message)
    return event_of(attributes, message.value) if attributes else message.value or b""


def attributes_of(message: Message) -> list[tuple[str, bytes | None]]:
    """The attributes of a CloudEvent in binary mode; of any other message none."""
    content_type: bytes | None = None
    attributes: list[tuple[str, bytes | None]] = []
    for name, raw in message.headers or ():
        if name.startswith(_PREFIX):
            attributes.append((name[len(_PREFIX) :], raw))
        elif content_type is None and name.lower() == "content-type":
            content_type = raw
    text = None if content_type is None else content_type.decode(errors="replace")
    if mode_of(text, (name for name, _ in attributes)) != "binary":
        return []
    return attributes if content_type is None else [*attributes, ("datacontenttype", content_type)]
