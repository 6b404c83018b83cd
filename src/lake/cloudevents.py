"""CloudEvents 1.0 in structured JSON, parsed and validated a batch at a time. Pure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import orjson
import polars as pl

from lake.attributes import data_bytes, data_of, optional_flaw, specversion_flaw
from lake.eventcolumns import parse_columns
from lake.eventframe import MAX_LINE_BYTES
from lake.eventtypes import DEAD_LETTER, EventType
from lake.parsed import Parsed, Rejected, joined
from lake.rawjson import WHOLE_NUMBER, json_flaw, members
from lake.salvage import NOTHING, UNEXPECTED, Aside, is_of_the_line, put_aside, salvaged, with_letters
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
    written_nulls,
)

_NUMBERS: Final = (int, float)


class _Candidate(NamedTuple):
    line: int
    raw: bytes
    event: dict[str, Any]


def parse_cloud_events(
    lines: Sequence[tuple[int, bytes]], types: TypeRegistry, start: int, end: int, aside: Aside = NOTHING
) -> Parsed:
    """CloudEvents 1.0 in structured JSON, one per line; whatever a line is, it costs at most itself.

    Args:
        aside: lines that are letters without being looked at.
    """
    lines, letters = put_aside(lines, aside, _letter)
    accepted, left = _quickly(lines, types)
    ways = [Parsed(start, end, tuple(accepted), (), 0)] if accepted else []
    if left or not ways:
        careful = functools.partial(_carefully, types)
        ways.append(salvaged(left, start, end, careful, _letter))
    return with_letters(joined(ways) if len(ways) > 1 else ways[0], letters)


def _letter(line: tuple[int, bytes], flaw: Flaw) -> Rejected:
    return Rejected(line[0], flaw, line[1], subject_in(line[1]))


def subject_in(raw: bytes) -> str | None:
    """Whose a line is that could not be taken, where that can be seen."""
    try:
        event, flaw = _decode(raw)
        if flaw is not None:
            return None
        _spell_names(event, raw)
    except UNEXPECTED:
        return None
    subject = event.get("subject")
    return subject if subject_flaw(subject) is None else None


def _quickly(
    lines: Sequence[tuple[int, bytes]], types: TypeRegistry
) -> tuple[list[tuple[EventType, pl.DataFrame]], Sequence[tuple[int, bytes]]]:
    """(what the quick ways take, the lines that are left); a way that breaks has taken nothing."""
    accepted: list[tuple[EventType, pl.DataFrame]] = []
    for way in (parse_columns, parse_typed):
        if lines:
            try:
                taken, lines = way(lines, types)
            except UNEXPECTED as error:
                if not is_of_the_line(error):
                    raise
                continue
            accepted += taken
    return accepted, lines


def _carefully(types: TypeRegistry, lines: Sequence[tuple[int, bytes]], start: int, end: int) -> Parsed:
    return parse_with_care(lines, types, start, end)


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
            _spell_names(event, raw)
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
        return {}, json_flaw(raw)
    return (event, None) if isinstance(event, dict) else ({}, Flaw("not_an_object"))


def _spell_names(event: dict[str, Any], raw: bytes) -> None:
    """A whole number as id or subject is the text of its digits, as they were sent."""
    if type(event.get("id")) in _NUMBERS or type(event.get("subject")) in _NUMBERS:
        sent = members(raw)
        for name in ("id", "subject"):
            if type(event.get(name)) in _NUMBERS and WHOLE_NUMBER.fullmatch(sent[name]):
                event[name] = sent[name].decode()


def _type_of(
    event: dict[str, Any], versions_of: Callable[[str], list[int]], names: dict[str, str | None]
) -> tuple[tuple[str, int], Flaw | None]:
    none = ("", 0)
    if (odd := specversion_flaw(event)) is not None:
        return none, odd
    for name in ("id", "source", "type"):
        value = event.get(name)
        if not isinstance(value, str) or not value:
            return none, Flaw("missing_attribute" if value in (None, "") else "wrong_type", name)
    subject = event.get("subject")
    if not isinstance(subject, str) or (flaw := names.get(subject, "new")) == "new":
        flaw = subject_flaw(subject)
        if isinstance(subject, str):
            names[subject] = flaw
    if flaw is not None:
        return none, Flaw(flaw, "subject")
    if (odd := optional_flaw(event)) is not None:
        return none, odd
    event["data"], odd = data_of(event)
    if odd is not None:
        return none, odd
    revision = 0 if event.get("revision") is None else event["revision"]
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

    @functools.lru_cache(maxsize=1)  # of one row after another
    def sent(row: int) -> dict[str, bytes]:
        return members(data_bytes(members(candidates[row].raw)))

    frame, flaws = typed_columns(event_type, records, sent)
    flaws = {**rule_flaws(event_type, frame, written_nulls(event_type, records)), **flaws}
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
            "revision": pl.Series([c.event.get("revision") or 0 for c in candidates], dtype=pl.Int64),
            "position": pl.Series([c.line for c in candidates], dtype=pl.Int64),
        }
    )
    refused = [
        Rejected(candidates[row].line, flaw, candidates[row].raw, candidates[row].event["subject"])
        for row, flaw in flaws.items()
    ]
    return without(pl.concat([head, frame], how="horizontal"), flaws), refused
