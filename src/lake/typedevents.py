"""CloudEvents that fit their type, decoded straight into typed columns: the quick half of parsing. Pure.

An event is taken only when nothing at all is wrong with it. Every other line is left to
`lake.cloudevents`, which decodes it again with care and says what is wrong; so this half decides nothing
and only has to be strict (a property test holds the two together). What is checked while decoding:
JSON (RFC 8259), the types of the attributes and fields, that no field is unknown.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Annotated, Any, Final, Literal

import attrs
import msgspec
import polars as pl

from lake.eventtypes import DEAD_LETTER, EventType
from lake.typeregistry import TypeRegistry
from lake.validate import (
    Flaw,
    Flaws,
    column_of,
    needs_whole_schema,
    parse_time,
    role_flaws,
    rule_flaws,
    subject_flaw,
    without,
)

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
Line = tuple[int, bytes]
"""Number and content."""
_UTC_TIME: Final = r"^[1-9]\d{3}-\d\d-\d\dT\d\d:\d\d:[0-5]\d(\.\d{1,6})?(Z|\+00:00)$"
_USUAL_SUBJECT: Final = r"^[!-~]{1,512}$"
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
    specversion: Literal["1.0"] = "1.0"
    revision: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    schemaversion: int | None = None


_head: Final = msgspec.json.Decoder(_Head).decode


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
    for line in lines:
        raw = line[1]
        try:
            if len(raw) > MAX_LINE_BYTES:
                raise ValueError
            if not raw.isascii():
                raw.decode()  # the decoder does not look into what it skips
            head = _head(raw)
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


def _group(types: TypeRegistry, name: str, version: int | None) -> _Group | None:
    """None where the quick half cannot read such events."""
    versions = types.versions(name) if name != DEAD_LETTER else []
    if not versions or (version is not None and version not in versions):
        return None
    event_type = types.get(name, versions[-1] if version is None else version)
    if needs_whole_schema(event_type):
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
    frame = pl.DataFrame(
        [
            pl.Series("subject", [head.subject for head in heads], dtype=pl.String),
            pl.Series("source", [head.source for head in heads], dtype=pl.String),
            pl.Series("event_id", [head.id for head in heads], dtype=pl.String),
            _times(pl.Series("occurred_at", [head.time for head in heads], dtype=pl.String)),
            pl.Series("revision", [head.revision for head in heads], dtype=pl.Int64),
            pl.Series("position", [number for number, _ in group.lines], dtype=pl.Int64),
            *fields,
        ]
    )
    people = frame.get_column("subject")
    unusual = people.filter(~people.str.contains(_USUAL_SUBJECT)).unique().to_list()
    odd = [one for one in unusual if subject_flaw(one) is not None]
    incomplete = (
        frame.get_column("occurred_at").is_null()
        | (frame.get_column("event_id") == "")
        | (frame.get_column("source") == "")
        | people.is_in(odd)
    )
    flaws |= dict.fromkeys(incomplete.arg_true().to_list(), Flaw("left"))
    return frame, rule_flaws(group.event_type, frame) | role_flaws(group.event_type, frame) | flaws


def _times(texts: pl.Series) -> pl.Series:
    """RFC 3339 as UTC, null where it is none; the common form at once, others one by one."""
    common = texts.str.contains(_UTC_TIME)
    local = texts.set(~common, None).str.strip_suffix("Z").str.strip_suffix("+00:00")
    usual = local.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", strict=False, time_unit="us")
    found = usual.dt.replace_time_zone("UTC")
    if common.all():
        return found
    others = (~common).arg_true()
    moments = [parse_time(text) for text in texts.gather(others).to_list()]
    return found.scatter(others, pl.Series(moments, dtype=pl.Datetime("us", "UTC")))
