"""Parts of a JSON document as the bytes that were received. Pure.

Nothing that was taken is written anew: one library reads what another does not write (deep nesting), and
numbers lose digits on the way. The documents were read by a parser before, so they are valid JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Final

import msgspec
import orjson

from lake.validate import Flaw

_ELEMENTS: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_MEMBERS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
WHOLE_NUMBER: Final = re.compile(rb"-?[0-9]+")
"""In the form of JSON that has no fraction and no exponent."""
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)
_OPENS: Final = (b"[", b"{")
_CLOSES: Final = (b"]", b"}")


def json_flaw(raw: bytes) -> Flaw:
    """Why a document is no JSON."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return Flaw("invalid_utf8")
    return _numbers_flaw(raw) or Flaw("malformed_json")


def _numbers_flaw(raw: bytes) -> Flaw | None:
    """Of a line that would be JSON, if `NaN`, `Infinity` and numbers beyond a double's were part of it."""
    odd: list[Flaw] = []

    def constant(_: str) -> float:
        odd.append(Flaw("not_finite"))
        return math.nan

    def number(text: str) -> float:
        if math.isinf(found := float(text)):
            odd.append(Flaw("out_of_range"))
        return found

    try:
        event = json.loads(raw, parse_constant=constant, parse_float=number)
    except (ValueError, RecursionError):
        return None
    data = event.get("data") if isinstance(event, dict) else None
    if not odd or not isinstance(data, dict):
        return odd[0] if odd else None
    at = next((k for k, v in data.items() if isinstance(v, float) and not math.isfinite(v)), None)
    return Flaw(odd[0].reason, at)


def elements(document: bytes) -> list[bytes]:
    """The elements of an array, each as its bytes; a document that is no array is its only element."""
    body = document.strip(b" \t\r\n")
    if body[:1] != b"[":
        return [body]
    try:
        return [bytes(one) for one in _ELEMENTS(body)]
    except (msgspec.DecodeError, RecursionError):  # nested deeper than this parser goes
        return [part for part in _parts(body) if part]


def members(document: bytes) -> dict[str, bytes]:
    """The values of an object by their names, each as its bytes; of a name that stands twice the last."""
    try:
        return {name: bytes(value) for name, value in _MEMBERS(document).items()}
    except (msgspec.DecodeError, RecursionError):
        pairs = (part for part in _parts(document.strip(b" \t\r\n")) if part)
        return dict(_pair(part) for part in pairs)


def _pair(part: bytes) -> tuple[str, bytes]:
    name = _TOKEN.match(part)
    assert name is not None, "a member of an object begins with its name"
    rest = part[name.end() :].lstrip(b" \t\r\n")
    return orjson.loads(name.group()), rest[1:].strip(b" \t\r\n")


def _parts(body: bytes) -> Iterator[bytes]:
    """What stands between the commas of an array or object, without a call per level."""
    depth, start = 0, 1
    for token in _TOKEN.finditer(body):
        mark = token.group()
        if mark in _OPENS:
            depth += 1
        elif mark in _CLOSES:
            depth -= 1
            if depth == 0:
                yield body[start : token.start()].strip(b" \t\r\n")
        elif mark == b"," and depth == 1:
            yield body[start : token.start()].strip(b" \t\r\n")
            start = token.end()
