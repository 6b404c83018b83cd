"""Reads one block body a value at a time, written from docs/formats/block-body.md alone."""

from __future__ import annotations

import struct
import uuid
from datetime import date, timedelta
from typing import Any

WIDTHS = (0, 1, 2, 4, 8, 0, 0, 2)


def read_body(body: bytes, events: int, schema: dict[str, str]) -> dict[str, list[Any]]:
    """Field → its values. Kinds: string, bytes, integer, date, boolean, number."""
    at = len(schema)
    columns: dict[str, list[Any]] = {}
    texts: list[tuple[str, int, list[bool], list[int], int, int]] = []
    for number, (name, kind) in enumerate(schema.items()):
        head = body[number]
        code, base_code, nulls = head & 7, head >> 3 & 7, head >> 6
        is_text = kind in ("string", "bytes")
        total = 0
        if is_text and code in (1, 2, 3, 4, 7):
            total = int.from_bytes(body[at : at + 4], "little")
            at += 4
        present = [nulls == 0] * events
        if nulls == 1:
            present = [bool(body[at + event // 8] >> event % 8 & 1) for event in range(events)]
            at += (events + 7) // 8
        base = int.from_bytes(body[at : at + WIDTHS[base_code]], "little", signed=True)
        at += WIDTHS[base_code]
        width = WIDTHS[code]
        numbers = []
        first = 0 if code == 7 else base
        for _ in range(events):
            number = (first + int.from_bytes(body[at : at + width], "little")) % 2**64
            numbers.append(number - 2**64 if number >= 2**63 else number)
            at += width
        if is_text:
            texts.append((name, code, present, numbers, total, base))
        columns[name] = [_value(kind, n) if here else None for n, here in zip(numbers, present, strict=True)]
    for name, code, present, lengths, total, base in texts:
        before, values = at, []
        distinct = []
        if code == 7:
            sizes = struct.unpack(f"<{base}I", body[at : at + 4 * base])
            at += 4 * base
            for size in sizes:
                distinct.append(body[at : at + size])
                at += size
        for event in range(events):
            if code == 7:
                values.append(distinct[lengths[event]])
            elif code == 5:
                values.append(body[at : at + lengths[0]])
            elif code == 6:
                values.append(str(uuid.UUID(bytes=body[at : at + 16])).encode())
                at += 16
            else:
                values.append(body[at : at + lengths[event]])
                at += lengths[event]
        at += lengths[0] if code == 5 else 0
        assert code in (0, 5, 6) or at - before == total
        shown = [v.decode() if schema[name] == "string" else v for v in values]
        columns[name] = [v if here else None for v, here in zip(shown, present, strict=True)]
    assert at == len(body)
    return columns


def _value(kind: str, number: int) -> Any:
    if kind == "date":
        return date(1970, 1, 1) + timedelta(days=number)
    if kind == "number":
        return struct.unpack("<d", struct.pack("<q", number))[0]
    return bool(number) if kind == "boolean" else number
