"""Reads block bodies (docs/formats/block-body.md) of many blocks at once, and only the fields asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import attrs
import numpy as np
import polars as pl
import pyarrow as pa
from attrs import frozen

from keys import Body
from lake import uuidtext
from lake.bodies import (
    ALL_NULL,
    NUMBERED,
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
_WIDEST: Final = 8
_STORES: Final = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}
_LENGTH_BYTES: Final = 4
_VIEW: Final = np.dtype("V16")
_INLINE: Final = 12  # bytes of a text that lie in an Arrow view itself, behind its length
_HEAD_MASKS: Final = np.array([(2 ** (8 * min(n, 4)) - 1) << 32 for n in range(13)], dtype=np.uint64)
_REST_MASKS: Final = np.array([2 ** (8 * max(n - 4, 0)) - 1 for n in range(13)], dtype=np.uint64)
_NOT_ASCII: Final = 0x8080808080808080
_MASKS: Final = np.array([0, 2**8 - 1, 2**16 - 1, 2**32 - 1, 2**64 - 1, 0, 0, 0], dtype=np.uint64)
_SIGN_SHIFTS: Final = np.array([0, 56, 48, 32, 0, 0, 0, 0], dtype=np.int64)
_LONGEST: Final = 2**31
MOST_BYTES: Final = 2**30  # read at once; views into them have offsets of 32 bits
MOST_EVENTS: Final = 2**16  # read at once; what is counted for each body and event stays in the cache
_LARGE: Final = 1024  # events in a body: little is counted for each then,
_MORE: Final = 16  # and so many times as many are read at once
_FEW_SPANS: Final = 64  # of blocks whose texts are kept alike; more are put in order event by event


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
    bodies: pl.Series | Sequence[Body], counts: Array, schema: Schema, columns: Sequence[str]
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
    ends = np.cumsum(counts)
    most = MOST_EVENTS if ends[-1] < _LARGE * len(counts) else _MORE * MOST_EVENTS
    if len(counts) > 1 and ends[-1] > most:
        starts = np.flatnonzero(np.diff((ends - 1) // most, prepend=-1))
        cuts = [*starts, len(counts)] if len(starts) > 1 else [0, len(counts) // 2, len(counts)]
        return _in_parts(bodies, counts, cuts, schema, columns)
    data, bounds = _joined(bodies)
    if len(counts) > 1 and bounds[-1] > MOST_BYTES:
        return _in_parts(bodies, counts, [0, len(counts) // 2, len(counts)], schema, columns)
    blocks = Blocks.counted(counts)
    words: Array = np.ndarray((len(data) - 7,), "<u8", data.data, strides=(1,))
    places = _places(data, words, bounds, blocks, schema)
    try:
        return pl.DataFrame([_column(name, schema[name], places[name], data, blocks) for name in columns])
    except pl.exceptions.PolarsError as error:
        raise CorruptBlock("a body does not hold what its schema says") from error


def _in_parts(
    bodies: pl.Series | Sequence[Body],
    counts: Array,
    cuts: Sequence[int],
    schema: Schema,
    columns: Sequence[str],
) -> pl.DataFrame:
    parts = [unpack(bodies[a:b], counts[a:b], schema, columns) for a, b in pairwise(cuts)]
    return pl.concat(parts)


def _joined(bodies: pl.Series | Sequence[Body]) -> tuple[Array, Array]:
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
        most = NUMBERED if is_text else _LAST_WIDTH
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


def _column(name: str, kind: pl.DataType, place: _Place, data: Array, blocks: Blocks) -> pl.Series:
    if kind in (pl.String, pl.Binary):
        series = _texts(kind, place, data, blocks)
    else:
        values = _numbers(place, data, blocks)
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


def _numbers(place: _Place, data: Array, blocks: Blocks) -> Array:
    """int64 per event: the block's base and the event's offset to it, modulo 2^64."""
    values = np.empty(blocks.events, dtype=np.int64)
    if blocks.events >= _LARGE * len(blocks.counts):
        for start, count, width, base, at in zip(
            blocks.starts, blocks.counts, WIDTHS[place.codes], place.bases, place.at_values, strict=True
        ):
            some = values[start : start + count]
            some[:] = np.frombuffer(data, _STORES[width], count, at) if width else 0
            some += base
        return values
    for chosen, count, width in _alike(blocks.counts, WIDTHS[place.codes]):
        some = np.repeat(place.bases[chosen], count)
        if width:
            some += _runs(data, place.at_values[chosen], count * width).view(_STORES[width]).astype(np.int64)
        if len(chosen) == len(blocks.counts):
            return some
        _put(values, blocks.starts[chosen], count, some)
    return values


def _alike(counts: Array, widths: Array) -> Iterator[tuple[Array, int, int]]:
    """(blocks with as many events and the same width each, how many events, the width)."""
    keys = counts * (_WIDEST + 1) + widths
    if (keys == keys[0]).all():
        yield np.arange(len(keys)), int(counts[0]), int(widths[0])
        return
    order = np.argsort(keys, kind="stable")
    begins = np.flatnonzero(np.diff(keys[order], prepend=-1))
    for chosen in np.split(order, begins[1:]):
        yield chosen, int(counts[chosen[0]]), int(widths[chosen[0]])


def _runs(data: Array, places: Array, width: int) -> Array:
    """So many bytes from each place on, one behind the other: one copy a run, however long it is."""
    return np.ndarray((len(data) - width + 1,), f"V{width}", data.data, strides=(1,))[places]


def _put(values: Array, places: Array, count: int, some: Array) -> None:
    """So many values to each place, the opposite of `_runs`."""
    width, step = count * values.itemsize, values.itemsize
    whole = np.ndarray((len(values) - count + 1,), f"V{width}", values.data, strides=(step,))
    whole[places] = some.view(f"V{width}")


def _texts(kind: pl.DataType, place: _Place, data: Array, blocks: Blocks) -> pl.Series:
    """Of the kind (String or Binary), per event."""

    def read(chosen: Array) -> pl.Series:
        reader = _READERS[int(readers[chosen[0]])]
        return reader(place.of(chosen), data, Blocks.counted(blocks.counts[chosen])).cast(kind)

    readers = np.where(place.codes >= UUIDS, place.codes, 0)
    begins = np.flatnonzero(np.diff(readers, prepend=-1))
    if len(begins) <= _FEW_SPANS:
        return pl.concat([read(span) for span in np.split(np.arange(len(readers)), begins[1:])])
    kinds = np.unique(readers)
    events = np.concatenate([np.flatnonzero((readers == one)[blocks.of]) for one in kinds])
    return pl.concat([read(np.flatnonzero(readers == one)) for one in kinds])[np.argsort(events)]


def _uuids(place: _Place, data: Array, blocks: Blocks) -> pl.Series:
    assert place.at_data is not None
    packed = np.empty(blocks.events, dtype=f"V{uuidtext.BYTES}")
    for chosen, count, _ in _alike(blocks.counts, np.zeros_like(blocks.counts)):
        runs = _runs(data, place.at_data[chosen], count * uuidtext.BYTES)
        _put(packed, blocks.starts[chosen], count, runs)
    return uuidtext.texts(packed.view(np.uint8).reshape(-1, uuidtext.BYTES))


def _plain_texts(place: _Place, data: Array, blocks: Blocks) -> pl.Series:
    """Views into the bodies themselves."""
    assert place.totals is not None
    assert place.at_data is not None
    once = place.codes == ONE_VALUE
    stored = Blocks.counted(np.where(once, 1, blocks.counts)) if once.any() else blocks
    lengths = _numbers(place, data, stored)
    if (np.add.reduceat(lengths, stored.starts) != place.totals).any() or lengths.min() < 0:
        raise CorruptBlock("a body's texts are longer or shorter than it says")
    views, is_ascii = _views(data, _begins(lengths, stored, place.at_data), lengths)
    if once.any():
        views = np.repeat(views, np.repeat(np.where(once, blocks.counts, 1), stored.counts), axis=0)
    return _viewed(views, data, is_ascii)


def _numbered_texts(place: _Place, data: Array, blocks: Blocks) -> pl.Series:
    """Views into the distinct values of each body; whether these are texts is looked at once."""
    assert place.totals is not None
    assert place.at_data is not None
    heads = _LENGTH_BYTES * place.bases
    if place.bases.min() < 1 or (heads > place.totals).any():
        raise CorruptBlock("a body has fewer texts than it says")
    distinct = Blocks.counted(place.bases)
    firsts = zip(place.bases, place.at_data, strict=True)
    lengths = np.concatenate([np.frombuffer(data, "<u4", n, at) for n, at in firsts]).astype(np.int64)
    if (np.add.reduceat(lengths, distinct.starts) != place.totals - heads).any():
        raise CorruptBlock("a body's texts are longer or shorter than it says")
    found, is_ascii = _views(data, _begins(lengths, distinct, place.at_data + heads), lengths)
    once, views = found.view(_VIEW).reshape(-1), np.empty(blocks.events, dtype=_VIEW)
    for start, count, first, many, at in zip(
        blocks.starts, blocks.counts, distinct.starts, distinct.counts, place.at_values, strict=True
    ):
        numbers = np.frombuffer(data, "<u2", count, at)
        if numbers.max() >= many:
            raise CorruptBlock("a body numbers texts that it does not hold")
        np.take(once[first : first + many], numbers, out=views[start : start + count], mode="clip")
    return _viewed(views, data, is_ascii or _is_text(found, data))


def _begins(lengths: Array, blocks: Blocks, at_data: Array) -> Array:
    """Where each text begins, of those that lie one behind the other in each block."""
    begins: Array = np.cumsum(lengths) - lengths
    begins += np.repeat(at_data - begins[blocks.starts], blocks.counts)
    return begins


def _is_text(views: Array, data: Array) -> bool:
    try:
        _viewed(views, data, False).cast(pl.String)
    except pl.exceptions.PolarsError:
        return False
    return True


def _viewed(views: Array, data: Array, are_texts: bool) -> pl.Series:
    kind = pa.string_view() if are_texts else pa.binary_view()
    array = pa.Array.from_buffers(kind, len(views), [None, pa.py_buffer(views), pa.py_buffer(data)])
    return pl.Series("text", pl.from_arrow(array))


def _views(data: Array, begins: Array, lengths: Array) -> tuple[Array, bool]:
    """(uint64 (n, 2): what Arrow's columnar format calls views, whether all of it is known to be ASCII).

    Texts of up to twelve bytes lie in their views; what others say is not looked at.
    """
    found = _runs(data, begins, SLACK_BYTES).view(np.uint64).reshape(-1, 2)
    first, second = found[:, 0], found[:, 1]
    heads, places = first << 32, begins.view(np.uint64) << 32
    short = lengths <= _INLINE
    all_short = bool(short.all())
    if short.any():
        known = lengths if all_short else np.minimum(lengths, _INLINE)
        heads &= _HEAD_MASKS[known]
        inline = (first >> 32 | second << 32) & _REST_MASKS[known]
        found[:, 1] = inline if all_short else np.where(short, inline, places)
    else:
        found[:, 1] = places
    is_ascii = all_short and not np.bitwise_or.reduce(heads | second) & _NOT_ASCII
    found[:, 0] = heads | lengths.view(np.uint64)
    return found, is_ascii


def repeated(values: pl.Series, counts: Array) -> pl.Series:
    """Each value so many times: an Arrow view for each of bytes, which stay where they are.

    Args:
        values: numbers, dates or Binary.
    """
    if values.null_count():
        return values.gather(np.repeat(np.arange(len(values)), counts))
    if values.dtype != pl.Binary:
        again = np.repeat(values.to_physical().to_numpy(), counts)
        return pl.Series(values.name, again).cast(values.dtype)
    array = values.rechunk().to_arrow(compat_level=pl.CompatLevel.newest())
    _, views, *data = array.buffers()
    every = np.frombuffer(views, dtype=_VIEW)[array.offset : array.offset + len(array)]
    again = np.repeat(every, counts)
    found = pa.Array.from_buffers(array.type, len(again), [None, pa.py_buffer(again), *data])
    return pl.Series(values.name, pl.from_arrow(found))


_READERS: Final = {0: _plain_texts, UUIDS: _uuids, NUMBERED: _numbered_texts}
"""By the code of the offsets; 0 stands for those that are one width or one value."""
