"""From the columns of decoded CloudEvents to the frame of a type, and which rows need a closer look. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import polars as pl

from lake.eventtypes import DEAD_LETTER, EventType
from lake.typeregistry import TypeRegistry
from lake.validate import (
    Flaw,
    Flaws,
    needs_whole_schema,
    parse_time,
    role_flaws,
    rule_flaws,
    subject_flaw,
)

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
Line = tuple[int, bytes]
"""Number and content."""
LEFT: Final = Flaw("left")
"""Of a row that is left to `lake.cloudevents.parse_with_care`, which says what is wrong with it."""
_WHOLE_SECONDS: Final = r"^[1-9]\d{3}-\d\d-\d\dT\d\d:\d\d:[0-5]\dZ$"
_UTC_TIME: Final = r"^[1-9]\d{3}-\d\d-\d\dT\d\d:\d\d:[0-5]\d(\.\d{1,6})?(Z|\+00:00)$"
EXACT_BELOW: Final = 2.0**53
_USUAL_SUBJECT: Final = r"^[!-~]{1,512}$"


def quick_type(types: TypeRegistry, name: str, version: int | None) -> EventType | None:
    """The type of events of this name and version; None where columns cannot tell whether they fit."""
    versions = types.versions(name) if name != DEAD_LETTER else []
    if not versions or (version is not None and version not in versions):
        return None
    event_type = types.get(name, versions[-1] if version is None else version)
    return None if needs_whole_schema(event_type) else event_type


def framed(
    event_type: EventType, numbers: Sequence[int], head: Mapping[str, pl.Series], fields: Sequence[pl.Series]
) -> tuple[pl.DataFrame, Flaws]:
    """(a frame as in `lake.cloudevents.Parsed`, its rows that do not fit or need a closer look).

    Args:
        numbers: of the lines.
        head: `subject`, `source`, `id`, `time` as texts, and `revision`; nulls need a closer look.
        fields: of the type, in its order.
    """
    frame = pl.DataFrame(
        [
            head["subject"],
            head["source"],
            head["id"].alias("event_id"),
            _times(head["time"]),
            head["revision"],
            pl.Series("position", numbers, dtype=pl.Int64),
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
    for one in event_type.fields:
        if one.dtype == pl.Float64:  # whether it is what the digits say shows only in the digits
            incomplete |= (frame.get_column(one.name).abs() >= EXACT_BELOW).fill_null(False)
    flaws = dict.fromkeys(incomplete.arg_true().to_list(), LEFT)
    return frame, rule_flaws(event_type, frame) | role_flaws(event_type, frame) | flaws


def _times(texts: pl.Series) -> pl.Series:
    """RFC 3339 as UTC, null where it is none; the common form at once, others one by one."""
    texts = texts.alias("occurred_at")
    if texts.str.contains(_WHOLE_SECONDS).all():  # a third of the time
        seconds = texts.str.to_datetime("%Y-%m-%dT%H:%M:%SZ", strict=False, time_unit="us")
        return seconds.dt.replace_time_zone("UTC")
    common = texts.str.contains(_UTC_TIME).fill_null(False)
    local = texts.set(~common, None).str.strip_suffix("Z").str.strip_suffix("+00:00")
    usual = local.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", strict=False, time_unit="us")
    found = usual.dt.replace_time_zone("UTC")
    if common.all():
        return found
    others = (~common).arg_true()
    moments = [parse_time(text) for text in texts.gather(others).to_list()]
    return found.scatter(others, pl.Series(moments, dtype=pl.Datetime("us", "UTC")))
