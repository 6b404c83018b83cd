"""Reads block bodies (docs/formats/block-body.md) of many blocks at once, and only the fields asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs
import numpy as np
import polars as pl
import pyarrow as pa
from attrs import frozen

from lake import uuidtext
from lake.bodies import (
    ALL_NULL,
    ONE_VALUE,
    SIZE_BYTES,
    SLACK_BYTES,
    SOME_NULL,
    UUIDS,
    WIDTHS,
    Array,
    Blocks,
    Schema,
    bitmap_bytes,
    is_sized,
    text_bounds,
)
from lake.errors import CorruptBlock

_LAST_WIDTH: Final = 4
_MASKS: Final = np.array([0, 2**8 - 1, 2**16 - 1, 2**32 - 1, 2**64 - 1, 0, 0, 0], dtype=np.uint64)
_SIGN_SHIFTS: Final = np.array([0, 56, 48, 32, 0, 0, 0, 0], dtype=np.int64)
_LONGEST: Final = 2**31
MOST_BYTES: Final = 2**30  # read at once; views into them have offsets of 32 bits
MOST_EVENTS: Final = 2**17  # read at once; columns of so many stay in the processor's cache


@frozen(eq=False)
class _Place:
    """Where one field lies in every block; see docs/formats/block-body.md for the parts."""

    codes: Array
    nulls: Array
    bases: Array
    at_bits: Array
    at_values: Array
    totals: Array | None = None
    at_data: Array | None = None

    def of(self, chosen: Array) -> _Place:
        """The same for some of the blocks."""
        return _Place(**{name: part[chosen] for name, part in attrs.asdict(self).items() if part is not None})


def unpack(
    bodies: pl.Series | Sequence[bytes], counts: Array, schema: Schema, columns: Sequence[str]
) -> pl.DataFrame:
    """The events of bodies of one schema, in order.

    Args:
        bodies: one per block.
        counts: events of each block; none is 0.
        columns: what is materialised.

    Raises:
        CorruptBlock: a body does not hold so many events of the schema.
    """
    if len(counts) == 0:
        return pl.DataFrame(schema={name: schema[name] for name in columns})
    if len(counts) > 1 and counts.sum() > MOST_EVENTS:
        return _halves(bodies, counts, schema, columns)
    data, bounds = _joined(bodies)
    if len(counts) > 1 and bounds[-1] > MOST_BYTES:
        return _halves(bodies, counts, schema, columns)
    blocks = Blocks.counted(counts)
    words: Array = np.ndarray((len(data) - 7,), "<u8", data.data, strides=(1,))
    places = _places(data, words, bounds, blocks, schema)
    try:
        return pl.DataFrame(
            [_column(name, schema[name], places[name], data, words, blocks) for name in columns]
        )
    except pl.exceptions.PolarsError as error:
        raise CorruptBlock("a body does not hold what its schema says") from error


def _halves(
    bodies: pl.Series | Sequence[bytes], counts: Array, schema: Schema, columns: Sequence[str]
) -> pl.DataFrame:
    half = len(counts) // 2
    parts = ((bodies[:half], counts[:half]), (bodies[half:], counts[half:]))
    return pl.concat([unpack(some, of_some, schema, columns) for some, of_some in parts])


def _joined(bodies: pl.Series | Sequence[bytes]) -> tuple[Array, Array]:
    """(all bytes and some more, where each body begins and the last one ends)."""
    if isinstance(bodies, pl.Series):
        array = bodies.rechunk().to_arrow()
        bounds = text_bounds(array)
        joined = memoryview(array.buffers()[2] or b"")[bounds[0] : bounds[-1]]
        bounds = bounds - bounds[0]
        parts: tuple[Any, ...] = (joined, b"\0" * SLACK_BYTES)
    else:
        bounds = np.concatenate([[0], np.cumsum(np.fromiter(map(len, bodies), np.int64, len(bodies)))])
        parts = (*bodies, b"\0" * SLACK_BYTES)
    return np.frombuffer(b"".join(parts), dtype=np.uint8), bounds


def _places(data: Array, words: Array, bounds: Array, blocks: Blocks, schema: Schema) -> dict[str, _Place]:
    """Every field's place in every body; the parts of a body add up to it, so all places are inside."""
    firsts, ends, counts = bounds[:-1], bounds[1:], blocks.counts
    if len(firsts) != len(counts) or (ends - firsts < len(schema)).any():
        raise CorruptBlock("a body is shorter than its head")
    at = firsts + len(schema)
    places = {}
    for number, (name, kind) in enumerate(schema.items()):
        heads = data[firsts + number]
        codes, base_codes, nulls = heads & 7, heads >> 3 & 7, heads >> 6
        is_text = kind in (pl.String, pl.Binary)
        most = UUIDS if is_text else _LAST_WIDTH
        if codes.max() > most or base_codes.max() > _LAST_WIDTH or nulls.max() > ALL_NULL:
            raise CorruptBlock("a body's head says what no writer writes")
        sized = is_sized(codes)
        at_total = at
        at_bits = at + SIZE_BYTES * sized if is_text else at
        at_base = at_bits + bitmap_bytes(nulls, counts)
        at_values = at_base + WIDTHS[base_codes]
        at = at_values + WIDTHS[codes] * counts
        if (at > ends).any():
            raise CorruptBlock("a body ends before its values")
        shifts = _SIGN_SHIFTS[base_codes]
        bases = ((words[at_base] & _MASKS[base_codes]).view(np.int64) << shifts) >> shifts
        totals = None
        if is_text:
            if bases.min() < 0 or bases.max() > _LONGEST:
                raise CorruptBlock("a body holds a text of an impossible length")
            stored = words[at_total].view(np.int64) & (2**32 - 1)
            even = np.where(codes == UUIDS, uuidtext.BYTES, bases) * np.where(codes == ONE_VALUE, 1, counts)
            totals = np.where(sized, stored, even)
        places[name] = _Place(codes, nulls, bases, at_bits, at_values, totals)
    for name, place in places.items():
        if place.totals is not None:
            places[name] = attrs.evolve(place, at_data=at)
            at = at + place.totals
    if (at != ends).any():
        raise CorruptBlock("a body is longer or shorter than what it holds")
    return places


def _column(
    name: str, kind: pl.DataType, place: _Place, data: Array, words: Array, blocks: Blocks
) -> pl.Series:
    if kind in (pl.String, pl.Binary):
        series = _texts(place, data, words, blocks).cast(kind)
    else:
        values = _numbers(place, words, blocks)
        if kind == pl.Float64:
            series = pl.Series(values.view(np.float64))
        elif kind == pl.Boolean:
            series = pl.Series(values != 0)
        else:
            series = pl.Series(values).cast(kind)
    if place.nulls.any():
        series = series.set(pl.Series(~_present(place, data, blocks)), None)
    return series.alias(name)


def _present(place: _Place, data: Array, blocks: Blocks) -> Array:
    present: Array = place.nulls[blocks.of] == 0
    mapped = np.flatnonzero(place.nulls[blocks.of] == SOME_NULL)
    within = blocks.within[mapped]
    bits = data[place.at_bits[blocks.of[mapped]] + (within >> 3)]
    present[mapped] = bits >> (within & 7).astype(np.uint8) & 1
    return present


def _numbers(place: _Place, words: Array, blocks: Blocks) -> Array:
    """int64 per event: the block's base and the event's offset to it, modulo 2^64."""
    bases: Array = place.bases[blocks.of]
    if not place.codes.any():
        return bases
    same = (place.codes == place.codes[0]).all()
    codes = place.codes[0] if same else place.codes[blocks.of]
    offsets: Array = words[place.at_values[blocks.of] + WIDTHS[codes] * blocks.within]
    return bases + (offsets & _MASKS[codes]).view(np.int64)


def _texts(place: _Place, data: Array, words: Array, blocks: Blocks) -> pl.Series:
    """Binary, or String for UUIDs, per event."""
    uuids = place.codes == UUIDS
    if uuids.all():
        return _uuids(place, words, blocks)
    if not uuids.any():
        return _plain_texts(place, data, words, blocks)
    others = ~uuids
    events = np.concatenate([np.flatnonzero(chosen[blocks.of]) for chosen in (uuids, others)])
    parts = [
        _uuids(place.of(uuids), words, Blocks.counted(blocks.counts[uuids])).cast(pl.Binary),
        _plain_texts(place.of(others), data, words, Blocks.counted(blocks.counts[others])),
    ]
    return pl.concat(parts)[np.argsort(events)]


def _uuids(place: _Place, words: Array, blocks: Blocks) -> pl.Series:
    assert place.at_data is not None
    at = place.at_data[blocks.of] + uuidtext.BYTES * blocks.within
    return uuidtext.texts(np.stack([words[at], words[at + 8]], axis=1).view(np.uint8))


def _plain_texts(place: _Place, data: Array, words: Array, blocks: Blocks) -> pl.Series:
    """Views into the bodies themselves: what lies between two blocks' texts is a text that nobody picks."""
    assert place.totals is not None
    assert place.at_data is not None
    once = place.codes == ONE_VALUE
    stored = blocks
    if once.any():
        stored = Blocks.counted(np.where(once, 1, blocks.counts))
    lengths = _numbers(place, words, stored)
    if (np.add.reduceat(lengths, stored.starts) != place.totals).any() or lengths.min() < 0:
        raise CorruptBlock("a body's texts are longer or shorter than it says")
    gaps = np.diff(place.at_data, prepend=0)
    gaps[1:] -= place.totals[:-1]
    pieces = np.empty(len(lengths) + len(gaps) + 1, dtype=np.int64)
    pieces[0] = 0
    pieces[stored.starts + np.arange(len(gaps)) + 1] = gaps
    places = np.arange(len(lengths)) + stored.of + 1
    pieces[places + 1] = lengths
    buffers = [None, pa.py_buffer(np.cumsum(pieces)), pa.py_buffer(data)]
    array = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(pieces) - 1, buffers)
    picked = places
    if once.any():
        firsts = stored.starts + np.arange(len(gaps)) + 1
        picked = firsts[blocks.of] + np.where(once[blocks.of], 0, blocks.within)
    return pl.Series("text", pl.from_arrow(array), dtype=pl.Binary)[picked]
