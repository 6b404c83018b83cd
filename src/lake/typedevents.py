"""CloudEvents that fit their type, decoded one by one into typed columns: the middle way of parsing. Pure.

An event is taken only when nothing at all is wrong with it. Every other line is left to
`lake.cloudevents`, which decodes it again with care and says what is wrong; so this way decides nothing
and only has to be strict (a property test holds the two together). What is checked while decoding:
JSON (RFC 8259), the types of the attributes and fields, that no field is unknown.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Annotated, Any, Final, Literal, cast

import attrs
import msgspec
import polars as pl

from lake.attributes import KNOWN, MEMBER, describes
from lake.eventframe import MAX_LINE_BYTES, Line, framed, quick_type
from lake.eventtypes import EventType
from lake.typeregistry import TypeRegistry
from lake.validate import Flaws, column_of, without

_KNOWN_TYPES: Final = 256
_TYPES: Final[dict[str, Any]] = {
    "string": str,
    "date": str,
    "integer": Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)],
    "number": float,
    "boolean": bool,
}


class _Head(msgspec.Struct, gc=False):
    """Attributes of an event, its data not looked at yet."""

    id: str
    source: str
    type: str
    subject: str
    time: str
    data: msgspec.Raw
    specversion: Literal["1.0"]
    revision: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    schemaversion: int | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None


_Extension = str | bool | Annotated[int, msgspec.Meta(ge=-(2**31), lt=2**31)] | None
_Decoder = Callable[[bytes], _Head]
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@functools.lru_cache(maxsize=_KNOWN_TYPES)
def _head_with(extensions: frozenset[str]) -> _Decoder:
    """Decodes events that have no other extension attributes than these."""
    struct = msgspec.defstruct(
        "Head",
        [(f"_{at}", _Extension, None) for at, _ in enumerate(extensions)],
        bases=(_Head,),
        rename={f"_{at}": name for at, name in enumerate(extensions)},
        forbid_unknown_fields=True,
        gc=False,
    )
    return cast(_Decoder, msgspec.json.Decoder(struct).decode)


@attrs.define
class _Group:
    """Events of one type."""

    event_type: EventType
    decode: Callable[[msgspec.Raw], Any]
    lines: list[Line] = attrs.field(factory=list)
    heads: list[_Head] = attrs.field(factory=list)
    records: list[Any] = attrs.field(factory=list)


def parse_typed(
    lines: Sequence[Line], types: TypeRegistry
) -> tuple[list[tuple[EventType, pl.DataFrame]], list[Line]]:
    """(per event type a frame as in `lake.cloudevents.Parsed`, the lines that were not taken)."""
    groups: dict[tuple[str, int | None], _Group | None] = {}
    left: list[Line] = []
    heads = _Heads()
    for line in lines:
        raw = line[1]
        try:
            if len(raw) > MAX_LINE_BYTES:
                raise ValueError
            if not raw.isascii():
                raw.decode()  # the decoder does not look into what it skips
            head = heads.of(raw)
            key = head.type, head.schemaversion
            group = groups[key] if key in groups else groups.setdefault(key, _group(types, *key))
            if group is None:
                raise ValueError
            record = group.decode(head.data)
        except (ValueError, RecursionError):  # msgspec's errors and UnicodeDecodeError are ValueErrors
            left.append(line)
            continue
        group.lines.append(line)
        group.heads.append(head)
        group.records.append(record)
    accepted = []
    for group in groups.values():
        if group is not None and group.lines:
            frame, flaws = _typed(group)
            left += [group.lines[row] for row in flaws]
            frame = without(frame, flaws)
            if frame.height:
                accepted.append((group.event_type, frame))
    left.sort()
    return accepted, left


class _Heads:
    """Decodes attributes; events that follow each other mostly have the same ones."""

    def __init__(self) -> None:
        self._decode = _head_with(frozenset())

    def of(self, raw: bytes) -> _Head:
        """Raises ValueError where an attribute needs a closer look."""
        try:
            head = self._decode(raw)
        except msgspec.ValidationError:  # mostly of an extension attribute that the last event had not
            names = frozenset(_members(raw).keys() - _Head.__struct_fields__)
            if any(name in KNOWN or not MEMBER.fullmatch(name) for name in names):
                raise ValueError from None
            self._decode = _head_with(names)
            head = self._decode(raw)
        for name, text in (("datacontenttype", head.datacontenttype), ("dataschema", head.dataschema)):
            if text is not None and not describes(name, text):
                raise ValueError
        return head


def _group(types: TypeRegistry, name: str, version: int | None) -> _Group | None:
    event_type = quick_type(types, name, version)
    if event_type is None:
        return None
    return _Group(event_type, _decoder(tuple((one.name, one.kind) for one in event_type.fields)))


@functools.lru_cache(maxsize=_KNOWN_TYPES)
def _decoder(fields: tuple[tuple[str, str], ...]) -> Callable[[msgspec.Raw], Any]:
    """Decodes data with these fields, all optional here, into a Struct of `_0`, `_1`, … in their order."""
    struct = msgspec.defstruct(
        "Data",
        [(f"_{at}", _TYPES[kind] | None, None) for at, (_, kind) in enumerate(fields)],
        rename={f"_{at}": name for at, (name, _) in enumerate(fields)},  # a field may be a word of Python's
        forbid_unknown_fields=True,
        gc=False,
    )
    return msgspec.json.Decoder(struct).decode


def _typed(group: _Group) -> tuple[pl.DataFrame, Flaws]:
    flaws: Flaws = {}
    fields = [
        column_of(group.event_type, one, list(map(attrgetter(f"_{at}"), group.records)), flaws)
        for at, one in enumerate(group.event_type.fields)
    ]
    heads = group.heads
    head = {
        "subject": pl.Series("subject", [head.subject for head in heads], dtype=pl.String),
        "source": pl.Series("source", [head.source for head in heads], dtype=pl.String),
        "id": pl.Series("id", [head.id for head in heads], dtype=pl.String),
        "time": pl.Series("time", [head.time for head in heads], dtype=pl.String),
        "revision": pl.Series("revision", [head.revision for head in heads], dtype=pl.Int64),
    }
    frame, odd = framed(group.event_type, [number for number, _ in group.lines], head, fields)
    return frame, odd | flaws
