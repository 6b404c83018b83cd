"""Attributes of a CloudEvent and where its data is, by the JSON format of CloudEvents 1.0.2. Pure.

A flaw names an attribute that the specification knows, never one that only the event has: its name is input.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from lake.validate import Flaw

KNOWN: Final = frozenset(
    {
        "specversion",
        "id",
        "source",
        "type",
        "subject",
        "time",
        "datacontenttype",
        "dataschema",
        "data",
        "data_base64",
        "revision",
        "schemaversion",
    }
)
"""Members of an event that are no extension attributes."""
MEMBER: Final = re.compile(r"[a-z0-9]+")
"""What an attribute may be called."""
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE: Final = re.compile(  # possessive: no text takes long to be refused
    rf'{_WORD}/{_WORD}(?:[ \t]*+;[ \t]*+(?:{_WORD}=(?:{_WORD}|"(?:\\.|[^"\\])*+"))?+)*+[ \t]*+', re.DOTALL
)
_ABSOLUTE_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+")
DESCRIBING: Final = {"datacontenttype": _MEDIA_TYPE, "dataschema": _ABSOLUTE_URI}
"""Attributes that say what the data is, and their forms."""
_INT32: Final = range(-(2**31), 2**31)


def specversion_flaw(event: Mapping[str, Any]) -> Flaw | None:
    """Why an event is not of the version that we read."""
    version = event.get("specversion")
    if version == "1.0":
        return None
    return Flaw("missing_attribute" if version is None else "unknown_specversion", "specversion")


@functools.lru_cache(maxsize=1024)
def describes(name: str, value: str) -> bool:
    """Whether this text may be the value of one of `DESCRIBING`."""
    return DESCRIBING[name].fullmatch(value) is not None


def optional_flaw(event: Mapping[str, Any]) -> Flaw | None:
    """The first flaw of what an event may have besides what it must: null is the same as not there."""
    for name in DESCRIBING:
        value = event.get(name)
        if value is not None and not isinstance(value, str):
            return Flaw("wrong_type", name)
        if value is not None and not describes(name, value):
            return Flaw("invalid_attribute", name)
    for name in event.keys() - KNOWN:
        if not MEMBER.fullmatch(name):
            return Flaw("invalid_attribute_name")
        if not _is_attribute_value(event[name]):
            return Flaw("invalid_extension")
    return None


def extensions(event: Mapping[str, Any]) -> Iterable[str]:
    """Names of the extension attributes that an event has and the lake does not keep."""
    return (name for name in event.keys() - KNOWN if event[name] is not None and MEMBER.fullmatch(name))


def data_of(event: Mapping[str, Any]) -> tuple[dict[str, Any], Flaw | None]:
    """The data as an object; an event without data has an empty one."""
    data, encoded = event.get("data"), event.get("data_base64")
    if encoded is not None:
        if data is not None:
            return {}, Flaw("ambiguous_data", "data_base64")
        if not isinstance(encoded, str):
            return {}, Flaw("wrong_type", "data_base64")
        try:
            data = orjson.loads(base64.b64decode(encoded, validate=True))
        except orjson.JSONDecodeError:
            return {}, Flaw("malformed_json", "data_base64")
        except ValueError:
            return {}, Flaw("malformed_base64", "data_base64")
    if data is None:
        return {}, None
    return (data, None) if isinstance(data, dict) else ({}, Flaw("wrong_type", "data"))


def data_bytes(members: Mapping[str, bytes]) -> bytes:
    """The data of an event that has some, as it was sent, out of the event's members as they were sent."""
    encoded = orjson.loads(members.get("data_base64", b"null"))
    return members["data"] if encoded is None else base64.b64decode(encoded)


def _is_attribute_value(value: object) -> bool:
    return value is None or isinstance(value, str | bool) or (type(value) is int and value in _INT32)
