"""The forms of everything that stands in clear around the data: names, summaries, properties. Pure.

An allow-list, because nobody knows what an identifier looks like. A finding says the place alone; what stands
there may be somebody.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from lake.letterkeys import LETTERS
from lake.moments import EXPIRED_PROPERTY
from lake.offsets import BATCH, BUILD, COUNTS, DROPPED, EPOCH, KIND, OFFSETS, RANGES, RELEASE, SETTLED, TOTALS

_SOURCE: Final = re.compile(
    r"file:[0-9a-f]{64}|http:[0-9a-f]{32}|intake:[0-9a-f]{32}|kafka:[\w-]{1,64}:[\w+/-]{1,64}:\d+"
)
_DIGITS: Final = re.compile(r"-?\d+")
_DIGEST: Final = re.compile(r"[0-9a-f]{32}")
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_BATCH: Final = re.compile(r"[0-9a-f]{32}|\d{1,20}")  # the latter: a snapshot that was emptied
_WORD: Final = re.compile(r"ingest|upkeep|redaction|publication|head|emptied")
_COUNTED: Final = re.compile(r"(added|deleted|removed|total|changed)-[a-z-]+")
_TAG: Final = re.compile(
    r"main|hour-\d{4}-\d\d-\d\dT\d\d|day-\d{4}-\d\d-\d\d|month-\d{4}-\d\d"
    r"|build-[\dT-]+-[0-9a-f]+|input-\d+|republish-[0-9a-f]+"
    r"|[a-z]{1,20}(-\d{4}-\d\d(-\d\d)?)?"  # of operators and auditors: one word, and a date
)
_PROPERTY: Final = re.compile(r"(write|commit|history|read|schema|format|owner|gc)[a-z0-9._-]*")
_PROPERTY_VALUE: Final = re.compile(
    r"true|false|-?\d{1,12}|none|counts|full|truncate\(\d+\)|snapshot|serializable|zstd|gzip|snappy|lz4"
    r"|uncompressed|parquet|avro|orc|hash|range|copy-on-write|merge-on-read"
)
_EXPIRED: Final = re.compile(r"(\d+:\d+:\d+(,\d+:\d+:\d+)*)?")
_UUID: Final = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_OBJECT: Final = re.compile(
    rf"/(lake/events|views/[a-z0-9_]+)/"
    rf"(data/(ingested_at_day=\d{{4}}-\d\d-\d\d/|[0-9a-f]{{8}}/)?((l0|dv|l1|rw)-\d+-\d+-)?[0-9a-f]{{32}}\.parquet"
    rf"|metadata/(\d+-{_UUID}(\.gz)?\.metadata\.json|{_UUID}-m\d+\.avro|snap-\d+-\d+-{_UUID}\.avro"
    rf"|[0-9a-f]{{32}}\.sources\.jsonl"
    rf"|\.\d+-{_UUID}(\.gz)?\.metadata\.json\.crc))"  # a REST catalog over Hadoop's local files
)

_FOLDER: Final = re.compile(
    r"/((lake|views)/|(lake/events|views/[a-z0-9_]+)/"
    r"(metadata/|data/(ingested_at_day=\d{4}-\d\d-\d\d/|[0-9a-f]{8}/)?)?)?"
)


def summary_findings(summary: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with a snapshot's summary."""
    for key, value in summary.items():
        form = _SUMMARY_FORMS.get(key)
        if form is None and not _COUNTED.fullmatch(key):
            yield "a key of a snapshot's summary that is not ours"
        elif not _holds(form or _matches(_DIGITS), value):
            yield f"the value of `{key}` in a snapshot's summary"


def property_findings(properties: Mapping[str, str], ours: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with a table's properties, of which we set some."""
    for key, value in properties.items():
        known = ours.get(key) == value or (key == EXPIRED_PROPERTY and _EXPIRED.fullmatch(value))
        if not known and not (_PROPERTY.fullmatch(key) and _PROPERTY_VALUE.fullmatch(value)):
            yield "a table property"


def is_tag(name: str) -> bool:
    """Whether a snapshot may be called so."""
    return _TAG.fullmatch(name) is not None


def is_object(path: str) -> bool:
    """Whether a file below the tables may be called so; the path begins behind the warehouse's root.

    Some stores list folders as well, with a slash at their end.
    """
    return (_FOLDER if path.endswith("/") else _OBJECT).fullmatch(path) is not None


def _holds(form: Callable[[str], bool], value: str) -> bool:
    try:
        return form(value)
    except (ValueError, TypeError, AttributeError):
        return False


def _matches(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda value: pattern.fullmatch(value) is not None


def _numbers(found: Any) -> bool:
    return all(type(one) is int for one in found)


def _by_source(value: str, holds: Callable[[Any], bool]) -> bool:
    found = json.loads(value)
    return all(_SOURCE.fullmatch(name) is not None and holds(one) for name, one in found.items())


def _counts(found: Mapping[str, int]) -> bool:
    return found.keys() <= {
        "lines",
        "events",
        "dead",
        "suppressed",
        "blank",
        "superseded",
        "redacted",
        "expired",
        "future",
    } and _numbers(found.values())


def _lists(value: str) -> bool:
    return all(
        re.fullmatch(r"[0-9a-f]{32}\.sources\.jsonl", name)
        and re.fullmatch(r"[0-9a-f]{64}", digest)
        and type(count) is int
        for name, digest, count in json.loads(value)
    )


def _letters(value: str) -> bool:
    found = json.loads(value)
    return (
        found.keys() == {"keys", "until", "owes"}
        and type(found["owes"]) is bool
        and all(_DAY.fullmatch(day) and _DIGEST.fullmatch(ref) for day, ref in found["keys"].items())
        and (found["until"] is None or _DAY.fullmatch(found["until"]) is not None)
    )


_SUMMARY_FORMS: Final[dict[str, Callable[[str], bool]]] = {
    KIND: _matches(_WORD),
    OFFSETS: lambda value: _by_source(value, _numbers),
    RANGES: lambda value: _by_source(value, _numbers),
    COUNTS: lambda value: _by_source(value, _counts),
    TOTALS: lambda value: _counts(json.loads(value)),
    SETTLED: _lists,
    BATCH: _matches(_BATCH),
    BUILD: _matches(_DIGEST),
    RELEASE: _matches(_DIGITS),
    EPOCH: _matches(_DIGITS),
    DROPPED: _matches(_DIGITS),
    LETTERS: _letters,
    "operation": _matches(re.compile(r"append|overwrite|replace|delete")),
}
