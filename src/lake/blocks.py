"""Blocks: events of one (subject, type, version, facet) in one row, in the open and in the sealed part.

`seal_events` turns a frame of events into block rows; `open_blocks` turns rows back into events.
Both work on a whole batch a column at a time and touch Python once per block, not once per event.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
from attrs import frozen

from keys import Held, Opener, SealSession, Shredded
from keys.quiet import no_collections
from lake.bodies import pack, text_bounds
from lake.bodyreader import repeated, unpack
from lake.errors import CorruptBlock
from lake.events import sealing_context
from lake.eventtypes import OPEN_HEAD, SEALED_HEAD, TAG_FIELDS, EventType, Facet
from lake.runs import NO_RUNS, PREFIX_BYTES, Runs, open_events, prefix_of
from lake.siphash import HASH_BYTES, KEY_BYTES, siphashes

_MARK: Final = "\0"
MAX_BLOCK_EVENTS: Final = 4096
BUCKET_PREFIX_BYTES: Final = PREFIX_BYTES
L1_SOURCE: Final = 0
"""In place of a source's number, on blocks that a rewrite sealed again."""
PERSONAL_HEAD: Final = ("subject", "source", "event_id", "occurred_at", "position")
_GONE: Final = frozenset({Shredded, Held})
_HEADS: Final = dict(zip(SEALED_HEAD, PERSONAL_HEAD, strict=True))
BLOCK_COLUMNS: Final = (
    "block_id",
    "subject_ref",
    "generation",
    "event_type",
    "schema_version",
    "facet",
    "primary",
    "event_count",
    "ingested_at",
    "occurred_from",
    "occurred_to",
    "source",
    "source_from",
    "source_to",
    "open",
    "sealed",
    "tags",
)


def uuid7s(count: int, now_ms: int, random_bytes: Callable[[int], bytes] = os.urandom) -> list[bytes]:
    """`count` UUIDs of version 7 (RFC 9562) of one millisecond, 16 bytes each."""
    ids = np.frombuffer(random_bytes(16 * count), dtype=np.uint8).reshape(count, 16).copy()
    ids[:, :6] = np.frombuffer(struct.pack(">Q", now_ms)[2:], dtype=np.uint8)
    ids[:, 6] = 0x70 | ids[:, 6] & 0x0F
    ids[:, 8] = 0x80 | ids[:, 8] & 0x3F
    packed = ids.tobytes()
    return [packed[at : at + 16] for at in range(0, 16 * count, 16)]


def in_block_order(frame: pl.DataFrame) -> pl.DataFrame:
    """Each subject's events together, in the order of their lines."""
    return frame.sort("ref", "position", maintain_order=True)


def event_tags(frame: pl.DataFrame, tag_keys: Sequence[bytes], counts: Sequence[int]) -> pl.Series:
    """A number per event that is equal exactly for equal (source, id) of one subject.

    They stay in clear, so duplicates are still known after the subject's key is gone; keyed
    by the subject, they then say nothing else (SipHash-2-4).

    Args:
        frame: in block order.
        tag_keys: of each subject, who has so many events as `counts` says; nobody has none. The first 16
            bytes are used.
    """
    column = frame.select(_name(frame).cast(pl.Binary)).to_series()
    names = column.rechunk().to_arrow()
    bounds = text_bounds(names)
    text = np.frombuffer(names.buffers()[2] or b"", dtype=np.uint8)[bounds[0] : bounds[-1]]
    halves = np.frombuffer(b"".join([key[:KEY_BYTES] for key in tag_keys]), dtype="<u8").reshape(-1, 2)
    hashes = siphashes(np.repeat(halves, counts, axis=0), text, bounds - bounds[0])
    return pl.Series("_tag", hashes, dtype=pl.UInt64)


def _name(frame: pl.DataFrame) -> pl.Expr:
    """Source and id as one text. Where a source holds the mark between them, its length comes first."""
    plain = pl.concat_str("source", pl.lit(_MARK), "event_id")
    if not frame.get_column("source").str.contains(_MARK, literal=True).any():
        return plain
    length = pl.col("source").str.len_bytes().cast(pl.String)
    counted = pl.concat_str(pl.lit(_MARK), length, pl.lit(_MARK), "source", pl.lit(_MARK), "event_id")
    return pl.when(pl.col("source").str.contains(_MARK, literal=True)).then(counted).otherwise(plain)


def pack_tags(tags: pl.Series, cuts: Any) -> pl.Series:
    """The tags of consecutive blocks as Binary, little endian; cuts as for `pack`."""
    numbers = np.ascontiguousarray(tags.to_numpy(), dtype="<u8")
    buffers = [None, pa.py_buffer(np.asarray(cuts, dtype=np.int64) * HASH_BYTES), pa.py_buffer(numbers)]
    array = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(cuts) - 1, buffers)
    return pl.Series("tags", pl.from_arrow(array), dtype=pl.Binary)


def unpack_tags(packed: pl.Series, counts: Any) -> pl.Series:
    """The tags of blocks of so many events, one behind the other.

    Raises:
        CorruptBlock: a block has more or fewer than it has events.
    """
    array = packed.rechunk().to_arrow()
    bounds = text_bounds(array)
    if packed.null_count() or (np.diff(bounds) != HASH_BYTES * counts).any():
        raise CorruptBlock("a block has more or fewer tags than events")
    joined = memoryview(array.buffers()[2] or b"")[bounds[0] : bounds[-1]]
    return pl.Series("_tag", np.frombuffer(joined, dtype="<u8"), dtype=pl.UInt64)


def seal_events(
    frame: pl.DataFrame,
    event_type: EventType,
    facet: Facet,
    *,
    session: SealSession,
    table_uuid: bytes,
    ingested_at: datetime,
    source: int,
    one_each: bool = False,
) -> pl.DataFrame:
    """Block rows of events of one type.

    Args:
        frame: in block order; `ref`, `_tag`, `_rev`, `_day`, `subject`, `source`, `event_id`,
            `occurred_at`, `position` and the type's fields.
        facet: whose part is sealed; `ref` is that person's.
        one_each: a block per event.

    Returns:
        A frame of `BLOCK_COLUMNS`, as many rows as blocks; rows of subjects that were erased
        meanwhile are left out.
    """
    cuts = np.arange(frame.height + 1) if one_each else _cuts(frame.get_column("ref"))
    counts = np.diff(cuts)
    sealed_part = frame.with_columns(
        pl.col("subject").alias("_subject"),
        pl.col("source").alias("_source"),
        pl.col("event_id").alias("_id"),
        pl.col("occurred_at").dt.timestamp("us").alias("_time"),
        pl.col("position").alias("_position"),
    ).select(list(event_type.sealed_schema(facet)))
    starts = cuts[:-1]
    refs = frame.get_column("ref").gather(starts).to_list()
    block_ids = uuid7s(len(refs), time.time_ns() // 1_000_000)
    sealed = session.seal(
        sealing_context(table_uuid, event_type, facet), refs, block_ids, pack(sealed_part, cuts).to_list()
    )
    spans = _spans(frame, counts)
    envelopes = pl.Series([None if isinstance(s, Shredded) else s for s in sealed], dtype=pl.Binary)
    generation = envelopes.bin.slice(3, 2).bin.reinterpret(dtype=pl.UInt16, endianness="big")  # of their head
    rows = pl.DataFrame(
        {
            "block_id": pl.Series(block_ids, dtype=pl.Binary),
            "subject_ref": pl.Series(refs, dtype=pl.Binary),
            "generation": generation.cast(pl.Int32),
            "event_count": pl.Series(counts, dtype=pl.Int32),
            "occurred_from": spans.get_column("first"),
            "occurred_to": spans.get_column("last"),
            "source_from": spans.get_column("source_from"),
            "source_to": spans.get_column("source_to"),
            "open": pack(frame.select(list(event_type.open_schema)), cuts),
            "tags": pack_tags(frame.get_column("_tag"), cuts),
            "sealed": envelopes,
        }
    )
    return rows.filter(pl.col("sealed").is_not_null()).select(
        "block_id",
        "subject_ref",
        "generation",
        pl.lit(event_type.name).alias("event_type"),
        pl.lit(event_type.version, pl.Int32).alias("schema_version"),
        pl.lit(str(facet)).alias("facet"),
        pl.lit(facet == event_type.facets[0]).alias("primary"),
        "event_count",
        pl.lit(ingested_at).cast(pl.Datetime("us", "UTC")).alias("ingested_at"),
        "occurred_from",
        "occurred_to",
        pl.lit(source, pl.Int32).alias("source"),
        "source_from",
        "source_to",
        "open",
        "sealed",
        "tags",
    )


@frozen
class Opened:
    """Events of one (type, version, facet).

    Attributes:
        frame: one row per event: `subject_ref`, `ingest_day`, `_order` (block number), `occurred_on`,
            `shredded`, `_tag` and `_rev` where they were asked for, and the fields asked for; sealed ones are
            null where shredded.
        shredded_events, held_events: how many rows have no personal part, and why.
        shredded_refs: handles whose key is gone.
    """

    frame: pl.DataFrame
    shredded_events: int
    held_events: int
    shredded_refs: frozenset[bytes]


def open_blocks(
    rows: pl.DataFrame,
    event_type: EventType,
    facet: Facet,
    *,
    fields: Sequence[str],
    personal: bool,
    opener: Opener | None,
    table_uuid: bytes,
    tagged: bool = True,
    runs: Runs = NO_RUNS,
) -> Opened:
    """The events of block rows, in the order of rows and of records inside.

    Args:
        rows: `BLOCK_COLUMNS` of one (type, version, facet), and `_n`, the place in ingest order.
        fields: which of the type's fields and of `PERSONAL_HEAD` to decode.
        personal: whether to open the sealed part.
        opener: needed where `personal`.
        tagged: whether `_tag` and `_rev` are decoded.
        runs: of those rows that are of a run; the others have bodies of their own.

    Raises:
        EnvelopeError, KeysError: see `keys.Opener.open`.
        CorruptBlock: a body does not hold what its columns promise.
    """
    counts = rows.get_column("event_count").to_numpy()
    head = [name for name in OPEN_HEAD if tagged or name not in TAG_FIELDS]
    tags = [unpack_tags(rows.get_column("tags"), counts)] if tagged else []
    open_fields = [f.name for f in event_type.fields if f.anonymous and f.name in fields]
    base = open_events(rows, runs, event_type.open_schema, [*head, *open_fields])
    frame = base.rename({"_day": "occurred_on"}).with_columns(
        repeated(rows.get_column("subject_ref"), counts),
        repeated(rows.get_column("ingested_at").dt.date(), counts).alias("ingest_day"),
        repeated(rows.get_column("_n"), counts).alias("_order"),
        pl.lit(False).alias("shredded"),
        *tags,
    )
    if not personal:
        return Opened(frame, 0, 0, frozenset())
    assert opener is not None
    with no_collections():
        return _with_personal(frame, rows, event_type, facet, fields, opener, table_uuid)


def _with_personal(
    frame: pl.DataFrame,
    rows: pl.DataFrame,
    event_type: EventType,
    facet: Facet,
    fields: Sequence[str],
    opener: Opener,
    table_uuid: bytes,
) -> Opened:
    present = rows.get_column("sealed").is_not_null()
    there = rows if present.all() else rows.filter(present)
    refs = there.get_column("subject_ref").to_list()
    opened = opener.views(
        sealing_context(table_uuid, event_type, facet),
        refs,
        there.get_column("block_id").to_list(),
        there.get_column("sealed").to_list(),
    )
    schema = event_type.sealed_schema(facet)
    heads = {stored: name for stored, name in _HEADS.items() if name in fields}
    wanted = [*heads, *(name for name in schema if name in fields)]
    counts = rows.get_column("event_count").to_numpy()
    alive = present.to_numpy().copy()
    bodies = opened
    if not _GONE.isdisjoint(map(type, opened)):
        alive[alive] = [type(body) not in _GONE for body in opened]
        bodies = [body for body in opened if type(body) not in _GONE]
    sealed = unpack(bodies, counts[alive], schema, wanted).rename(heads)  # type: ignore[arg-type]
    if "occurred_at" in sealed.columns:
        sealed = sealed.with_columns(pl.from_epoch("occurred_at", "us").dt.replace_time_zone("UTC"))
    if alive.all():
        return Opened(frame.hstack(sealed.get_columns()), 0, 0, frozenset())
    gone = pl.Series(np.repeat(~alive, counts))
    living = frame.filter(~gone).hstack(sealed.get_columns())
    dead = frame.filter(gone).with_columns(shredded=pl.lit(True))
    together = pl.concat([living, dead], how="diagonal").sort("_order", maintain_order=True)
    of_present = counts[present.to_numpy()]
    held = sum(int(n) for n, body in zip(of_present, opened, strict=True) if isinstance(body, Held))
    dead_refs = frozenset(ref for ref, body in zip(refs, opened, strict=True) if isinstance(body, Shredded))
    return Opened(together, dead.height - held, held, dead_refs)


def bucket_of(refs: pl.Expr, bits: int) -> pl.Expr:
    """Bucket number of handles: their leading bits, as UInt32."""
    return (prefix_of(refs) // (1 << (16 - bits))).cast(pl.UInt32)


def severed_refs(refs: Sequence[bytes], random_bytes: Callable[[int], bytes] = os.urandom) -> list[bytes]:
    """Fresh handles that keep only the bucket: what the anonymous remainder of a dead block carries."""
    size = 16 - BUCKET_PREFIX_BYTES
    noise = random_bytes(size * len(refs))
    return [ref[:BUCKET_PREFIX_BYTES] + noise[at * size : (at + 1) * size] for at, ref in enumerate(refs)]


def _cuts(refs: pl.Series) -> Any:
    """Where blocks begin, and the end: at every change of subject and every MAX_BLOCK_EVENTS."""
    if refs.len() == 0:
        return np.zeros(1, dtype=np.int64)
    changed = (refs != refs.shift(1)).fill_null(True).to_numpy()
    starts = np.flatnonzero(changed)
    lengths = np.diff(np.append(starts, refs.len()))
    if lengths.max() > MAX_BLOCK_EVENTS:
        starts = np.concatenate(
            [np.arange(s, s + n, MAX_BLOCK_EVENTS) for s, n in zip(starts, lengths, strict=True)]
        )
    return np.append(starts, refs.len())


def _spans(frame: pl.DataFrame, counts: Any) -> pl.DataFrame:
    number = pl.Series("block", np.repeat(np.arange(len(counts), dtype=np.int64), counts))
    return (
        frame.select("_day", "position", number)
        .group_by("block", maintain_order=True)
        .agg(
            first=pl.col("_day").min(),
            last=pl.col("_day").max(),
            source_from=pl.col("position").min(),
            source_to=pl.col("position").max() + 1,
        )
    )
