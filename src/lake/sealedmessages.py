"""Messages of a sealed topic: events sealed before a broker saw a byte (docs/formats/sealed-topic.md).

A message is one event: a block for each of its facets, bound to one lake's table. Reading it opens
nothing, so whoever follows the topic needs no key to open with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any, Final

import msgpack
import polars as pl

from keys.subjects import REF_BYTES
from lake.blocks import BLOCK_COLUMNS, open_blocks
from lake.errors import CorruptBlock, UnknownEventType
from lake.eventtypes import Facet
from lake.messages import Messages
from lake.parsed import Parsed, Rejected
from lake.typeregistry import TypeRegistry
from lake.validate import Flaw

MAGIC: Final = b"SLT1"
_UNIX: Final = date(1970, 1, 1)
_UUID_BYTES: Final = 16
_NUMBERS: Final = ("generation", "schema_version", "event_count")
"""Of 32 bits in the table."""
_FIELDS: Final[Mapping[str, type]] = {
    "block_id": bytes,
    "subject_ref": bytes,
    "generation": int,
    "event_type": str,
    "schema_version": int,
    "facet": str,
    "primary": bool,
    "event_count": int,
    "occurred_from": int,
    "occurred_to": int,
    "open": bytes,
    "sealed": bytes,
    "tags": bytes,
}
_TYPES: Final[dict[str, pl.DataType]] = {
    "block_id": pl.Binary(),
    "subject_ref": pl.Binary(),
    "generation": pl.Int32(),
    "event_type": pl.String(),
    "schema_version": pl.Int32(),
    "facet": pl.String(),
    "primary": pl.Boolean(),
    "event_count": pl.Int32(),
    "occurred_from": pl.Date(),
    "occurred_to": pl.Date(),
    "open": pl.Binary(),
    "sealed": pl.Binary(),
    "tags": pl.Binary(),
    "source_from": pl.Int64(),
    "source_to": pl.Int64(),
}


def encode_blocks(table_uuid: bytes, blocks: Sequence[Mapping[str, Any]]) -> bytes:
    """A message of block rows: of one event to be ingested, or of one stored block."""
    packed = [[_plain(block[name]) for name in _FIELDS] for block in blocks]
    return MAGIC + bytes(msgpack.packb([table_uuid, packed]))


def decode_blocks(value: bytes, table_uuid: bytes) -> list[dict[str, Any]] | Flaw:
    """The block rows of a message, or why it is none."""
    if value[: len(MAGIC)] != MAGIC:
        return Flaw("not_sealed")
    try:
        uuid, packed = msgpack.unpackb(value[len(MAGIC) :])
        blocks = [dict(zip(_FIELDS, block, strict=True)) for block in packed]
    except (ValueError, TypeError, msgpack.exceptions.UnpackException):
        return Flaw("malformed")
    if uuid != table_uuid:
        return Flaw("another_table")
    for block in blocks:
        if any(type(block[name]) is not kind for name, kind in _FIELDS.items()):
            return Flaw("malformed")
        if len(block["block_id"]) != _UUID_BYTES or len(block["subject_ref"]) != REF_BYTES:
            return Flaw("malformed")
        if not all(0 <= block[name] < 2**31 for name in _NUMBERS):
            return Flaw("malformed")
        try:
            for name in ("occurred_from", "occurred_to"):
                block[name] = _UNIX + timedelta(days=block[name])
        except OverflowError:
            return Flaw("malformed")
    if [block["primary"] for block in blocks].count(True) != 1:
        return Flaw("malformed")
    return blocks


class SealedMessages:
    """The format of a sealed topic.

    What is wrong in the part in clear is found here; whether the sealed part is what a holder of the keys
    sealed is asked where it is taken (`lake.sealer`).

    Args:
        table_uuid: 16 bytes, of the table that the producer sealed for.
    """

    def __init__(self, types: TypeRegistry, table_uuid: bytes) -> None:
        self._types = types
        self._table_uuid = table_uuid

    def parse(self, source: str, start: int, end: int, messages: Messages) -> Parsed:
        """See `MessageFormat.parse`."""
        rows: list[dict[str, Any]] = []
        raws: dict[int, bytes] = {}
        flaws: dict[int, Flaw] = {}
        blank = end - start - len(messages)
        for offset, value, _ in messages:
            if not value:
                blank += 1
                continue
            raws[offset] = value
            found = decode_blocks(value, self._table_uuid)
            if isinstance(found, Flaw):
                flaws[offset] = found
            elif any(block["event_count"] != 1 for block in found):
                flaws[offset] = Flaw("several_events")
            else:
                rows += [block | {"source_from": offset, "source_to": offset + 1} for block in found]
        frame = pl.DataFrame(rows, schema=_TYPES)
        flaws |= self._clear_flaws(frame)
        good = frame.filter(~pl.col("source_from").is_in(list(flaws)))
        rejected = tuple(Rejected(offset, flaws[offset], raws[offset]) for offset in sorted(flaws))
        return Parsed(start, end, (), rejected, blank, good)

    def _clear_flaws(self, frame: pl.DataFrame) -> dict[int, Flaw]:
        """Lines whose type is not registered, or whose open part is not what the type says."""
        flaws: dict[int, Flaw] = {}
        for (name, version, facet), rows in frame.group_by("event_type", "schema_version", "facet"):
            try:
                event_type = self._types.get(str(name), int(str(version)))
            except UnknownEventType:
                flaws |= dict.fromkeys(rows["source_from"].to_list(), Flaw("unknown_type"))
                continue
            known = next((one for one in event_type.facets if str(one) == facet), None)
            if known is None:
                flaws |= dict.fromkeys(rows["source_from"].to_list(), Flaw("unknown_facet"))
            elif not _decodes(rows, event_type, known):
                flaws |= {
                    rows["source_from"][at]: Flaw("malformed")
                    for at in range(rows.height)
                    if not _decodes(rows[at : at + 1], event_type, known)
                }
        return flaws


def _decodes(rows: pl.DataFrame, event_type: Any, facet: Facet) -> bool:
    fields = [one.name for one in event_type.fields if one.anonymous]
    placed = rows.with_columns(
        pl.int_range(pl.len(), dtype=pl.Int64).alias("_n"),
        pl.lit(None, pl.Datetime("us", "UTC")).alias("ingested_at"),
        pl.lit(0, pl.Int32).alias("source"),
    ).select(*BLOCK_COLUMNS, "_n")
    try:
        open_blocks(placed, event_type, facet, fields=fields, personal=False, opener=None, table_uuid=b"")
    except CorruptBlock:
        return False
    return True


def _plain(value: Any) -> Any:
    return (value - _UNIX).days if isinstance(value, date) else value
