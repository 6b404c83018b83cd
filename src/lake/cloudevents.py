"""CloudEvents 1.0 in structured JSON, parsed and validated a batch at a time. Pure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import orjson
import polars as pl
from attrs import field, frozen

from lake.eventcolumns import parse_columns
from lake.eventframe import MAX_LINE_BYTES
from lake.eventtypes import DEAD_LETTER, EventType
from lake.typedevents import parse_typed
from lake.typeregistry import TypeRegistry
from lake.validate import (
    Flaw,
    parse_time,
    role_flaws,
    rule_flaws,
    schema_flaws,
    subject_flaw,
    typed_columns,
    without,
)


@frozen
class Rejected:
    """An event that did not fit; `raw` goes to the dead letters, sealed."""

    line: int
    flaw: Flaw
    raw: bytes = field(repr=False)
    subject: str | None = field(default=None, repr=False)


@frozen
class Parsed:
    """Lines [start, end) of a source.

    Attributes:
        accepted: per event type a frame of `subject`, `source`, `event_id`, `occurred_at`, `revision`,
            `position` (the line) and its fields.
        rejected: what goes to the dead letters.
        blank: empty lines and the header: neither events nor errors.
        sealed: block rows that a producer has sealed, `source_from` being their line.
    """

    start: int
    end: int
    accepted: tuple[tuple[EventType, pl.DataFrame], ...] = field(repr=False)
    rejected: tuple[Rejected, ...]
    blank: int
    sealed: pl.DataFrame | None = field(default=None, repr=False)


def joined(pieces: Sequence[Parsed]) -> Parsed:
    """Consecutive pieces as one; at least one."""
    frames: dict[tuple[str, int], list[tuple[EventType, pl.DataFrame]]] = {}
    for piece in pieces:
        for event_type, frame in piece.accepted:
            frames.setdefault((event_type.name, event_type.version), []).append((event_type, frame))
    sealed = [piece.sealed for piece in pieces if piece.sealed is not None]
    return Parsed(
        pieces[0].start,
        pieces[-1].end,
        tuple((parts[0][0], pl.concat(frame for _, frame in parts)) for parts in frames.values()),
        tuple(rejected for piece in pieces for rejected in piece.rejected),
        sum(piece.blank for piece in pieces),
        pl.concat(sealed) if sealed else None,
    )


class _Candidate(NamedTuple):
    line: int
    raw: bytes
    event: dict[str, Any]


def parse_cloud_events(
    lines: Sequence[tuple[int, bytes]], types: TypeRegistry, start: int, end: int
) -> Parsed:
    """CloudEvents 1.0 in structured JSON, one per line."""
    accepted, left = parse_columns(lines, types)
    ways = [Parsed(start, end, tuple(accepted), (), 0)]
    if left:
        accepted, left = parse_typed(left, types)
        ways.append(Parsed(start, end, tuple(accepted), (), 0))
    if left:
        ways.append(parse_with_care(left, types, start, end))
    return joined(ways) if len(ways) > 1 else ways[0]


def parse_with_care(lines: Sequence[tuple[int, bytes]], types: TypeRegistry, start: int, end: int) -> Parsed:
    """The same an event at a time, so that it can be said of each what is wrong with it."""
    rejected: list[Rejected] = []
    groups: dict[tuple[str, int], list[_Candidate]] = {}
    versions_of = functools.cache(types.versions)  # the registry is a folder: asked once a batch
    names: dict[str, str | None] = {}  # subject → its flaw: people come again and again
    blank = 0
    for line, raw in lines:
        if not raw.strip():
            blank += 1
            continue
        event, flaw = _decode(raw)
        if flaw is None:
            key, flaw = _type_of(event, versions_of, names)
            if flaw is None:
                groups.setdefault(key, []).append(_Candidate(line, raw, event))
                continue
        subject = event.get("subject")
        usable = subject if subject_flaw(subject) is None else None
        rejected.append(Rejected(line, flaw, raw, usable))
    accepted = []
    for (name, version), candidates in groups.items():
        event_type = types.get(name, version)
        frame, refused = _group(event_type, candidates)
        rejected.extend(refused)
        if frame.height:
            accepted.append((event_type, frame))
    rejected.sort(key=lambda r: r.line)
    return Parsed(start, end, tuple(accepted), tuple(rejected), blank)


def _decode(raw: bytes) -> tuple[dict[str, Any], Flaw | None]:
    if len(raw) > MAX_LINE_BYTES:
        return {}, Flaw("line_too_large")
    try:
        event = orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            raw.decode()
        except UnicodeDecodeError:
            return {}, Flaw("invalid_utf8")
        return {}, Flaw("malformed_json")
    return (event, None) if isinstance(event, dict) else ({}, Flaw("not_an_object"))


def _type_of(
    event: dict[str, Any], versions_of: Callable[[str], list[int]], names: dict[str, str | None]
) -> tuple[tuple[str, int], Flaw | None]:
    none = ("", 0)
    if event.get("specversion", "1.0") != "1.0":
        return none, Flaw("unknown_specversion", "specversion")
    for name in ("id", "source", "type"):
        value = event.get(name)
        if not isinstance(value, str) or not value:
            return none, Flaw("missing_attribute" if not value else "wrong_type", name)
    subject = event.get("subject")
    if not isinstance(subject, str) or (flaw := names.get(subject, "new")) == "new":
        flaw = subject_flaw(subject)
        if isinstance(subject, str):
            names[subject] = flaw
    if flaw is not None:
        return none, Flaw(flaw, "subject")
    if not isinstance(event.get("data"), dict):
        return none, Flaw("missing_attribute", "data")
    revision = event.get("revision", 0)
    if type(revision) is not int or not 0 <= revision < 2**31:
        return none, Flaw("wrong_type", "revision")
    version = event.get("schemaversion")
    versions = versions_of(event["type"]) if event["type"] != DEAD_LETTER else []
    if not versions:
        return none, Flaw("unknown_event_type", "type")
    if version is None:
        return (event["type"], versions[-1]), None
    if type(version) is not int or version not in versions:
        return none, Flaw("unknown_schema_version", "schemaversion")
    return (event["type"], version), None


def _group(event_type: EventType, candidates: list[_Candidate]) -> tuple[pl.DataFrame, list[Rejected]]:
    records = [c.event["data"] for c in candidates]
    times = [parse_time(c.event.get("time")) for c in candidates]
    frame, flaws = typed_columns(event_type, records)
    flaws = {**rule_flaws(event_type, frame), **flaws}
    flaws = {**schema_flaws(event_type, enumerate(records)), **flaws}
    for row, moment in enumerate(times):
        if moment is None:
            flaws.setdefault(row, Flaw("invalid_time", "time"))
    flaws = {**role_flaws(event_type, frame), **flaws}
    head = pl.DataFrame(
        {
            "subject": [c.event["subject"] for c in candidates],
            "source": [c.event["source"] for c in candidates],
            "event_id": [c.event["id"] for c in candidates],
            "occurred_at": pl.Series(times, dtype=pl.Datetime("us", "UTC")),
            "revision": pl.Series([c.event.get("revision", 0) for c in candidates], dtype=pl.Int64),
            "position": pl.Series([c.line for c in candidates], dtype=pl.Int64),
        }
    )
    refused = [
        Rejected(candidates[row].line, flaw, candidates[row].raw, candidates[row].event["subject"])
        for row, flaw in flaws.items()
    ]
    return without(pl.concat([head, frame], how="horizontal"), flaws), refused
