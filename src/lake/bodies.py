"""Block bodies: what the events of a block say, column by column, packed for many blocks at once.

The format is docs/formats/block-body.md. A frame is packed with a few NumPy passes a field over all its
blocks; Python is touched once per field, and for each block of some hundred events, where texts are numbered.
`lake.bodyreader` unpacks.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from attrs import frozen

from lake import uuidtext
from lake.errors import CorruptBlock

Array = np.ndarray[Any, np.dtype[Any]]
Schema = dict[str, pl.DataType]

WIDTHS: Final = np.array([0, 1, 2, 4, 8, 0, 0, 2], dtype=np.int64)  # bytes per value, by code
ONE_VALUE: Final = 5
UUIDS: Final = 6
NUMBERED: Final = 7
SOME_NULL: Final = 1
ALL_NULL: Final = 2
SIZE_BYTES: Final = 4
SLACK_BYTES: Final = 16  # behind the last body, so that twelve bytes can be had at any place in it
NUMBERED_FROM: Final = 256
"""Events in a body from which on it is tried whether its texts repeat."""
_MOST_NUMBERED: Final = 1 << 16
_STORES: Final = ("", "<u1", "<u2", "<u4", "<u8", "", "", "<u2")
_LIMITS: Final = np.array([1, 1 << 8, 1 << 16, 1 << 32], dtype=np.uint64)
_BASE_LIMITS: Final = np.array([1 << 7, 1 << 15, 1 << 31], dtype=np.uint64)
_HIGHEST: Final = np.iinfo(np.int64).max


@frozen(eq=False)
class Blocks:
    """How events lie in blocks.

    Attributes:
        counts: events of each block; none is 0.
        starts: its first event.
    """

    counts: Array
    starts: Array

    @classmethod
    def counted(cls, counts: Array) -> Blocks:
        """Blocks of so many events each."""
        counts = np.asarray(counts, dtype=np.int64)
        return cls(counts, np.cumsum(counts) - counts)

    @property
    def events(self) -> int:
        """Of all blocks."""
        return int(self.starts[-1] + self.counts[-1]) if len(self.counts) else 0

    @cached_property
    def of(self) -> Array:
        """The block of each event."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def within(self) -> Array:
        """The place of each event in its block."""
        places: Array = np.arange(self.events) - np.repeat(self.starts, self.counts)
        return places


@frozen(eq=False)
class _Field:
    """One field of all blocks, ready to be written.

    Attributes:
        codes, base_codes, nulls: of the head byte, by block.
        bases: by block; `offsets` to them: by event.
        present: by event, None where no value is missing.
        totals: bytes of the values, by block, where lengths are stored; None for what is no text.
        data: the values of texts, by block.
    """

    codes: Array
    base_codes: Array
    nulls: Array
    bases: Array
    offsets: Array
    present: Array | None
    totals: Array | None = None
    data: pa.LargeBinaryArray | None = None


def pack(frame: pl.DataFrame, cuts: Array) -> pl.Series:
    """The bodies of consecutive blocks.

    Args:
        frame: `n` rows of Int64, Date, Boolean, Float64, String or Binary.
        cuts: where each block begins, and `n`: one more than there are blocks. No block is empty.

    Returns:
        Binary, one body per block.

    Raises:
        CorruptBlock: a column is of a type that cannot be stored, or too large.
    """
    if frame.height == 0:
        return pl.Series("body", [], dtype=pl.Binary)
    blocks = Blocks.counted(np.diff(cuts))
    fields = [_field(column, blocks) for column in frame.iter_columns()]
    fixed = pa.scalar(b"", pa.large_binary())
    parts = [_fixed(fields, blocks), *(field.data for field in fields if field.data is not None)]
    bodies = pc.binary_join_element_wise(*parts, fixed) if len(parts) > 1 else parts[0]
    return pl.Series("body", pl.from_arrow(bodies), dtype=pl.Binary)


def _fixed(fields: list[_Field], blocks: Blocks) -> pa.LargeBinaryArray:
    """Head bytes and everything of fixed width, by block."""
    sizes = np.full(len(blocks.counts), len(fields), dtype=np.int64)
    places = []
    for field in fields:
        begins = sizes
        at_bits = begins + (SIZE_BYTES * is_sized(field.codes) if field.totals is not None else 0)
        at_base = at_bits + bitmap_bytes(field.nulls, blocks.counts)
        at_values = at_base + WIDTHS[field.base_codes]
        sizes = at_values + WIDTHS[field.codes] * blocks.counts
        places.append((begins, at_bits, at_base, at_values))
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    firsts = bounds[:-1]
    out = np.zeros(int(bounds[-1]) + SLACK_BYTES, dtype=np.uint8)
    for number, (field, place) in enumerate(zip(fields, places, strict=True)):
        out[firsts + number] = field.codes | field.base_codes << 3 | field.nulls << 6
        _write(out, field, blocks, *(firsts + at for at in place))
    return _slices(out, bounds)


def _write(
    out: Array, field: _Field, blocks: Blocks, begins: Array, at_bits: Array, at_base: Array, at_values: Array
) -> None:
    if field.totals is not None:
        sized = is_sized(field.codes)
        _every(out, "<u4")[begins[sized]] = field.totals[sized]
    if field.present is not None:
        weights = np.where(field.present, 1 << (blocks.within & 7), 0)
        first_of_eight = np.flatnonzero(blocks.within & 7 == 0)
        eights = np.add.reduceat(weights, first_of_eight)
        mapped = field.nulls[blocks.of[first_of_eight]] == SOME_NULL
        event = first_of_eight[mapped]
        out[at_bits[blocks.of[event]] + (blocks.within[event] >> 3)] = eights[mapped]
    for code in np.unique(field.base_codes[field.base_codes > 0]):
        chosen = field.base_codes == code
        _every(out, _STORES[code])[at_base[chosen]] = field.bases[chosen].view(np.uint64)
    stored = field.codes[WIDTHS[field.codes] > 0]
    for code in np.unique(stored):
        places = at_values[blocks.of] + WIDTHS[code] * blocks.within
        if len(stored) == len(field.codes) and (stored == code).all():
            _every(out, _STORES[code])[places] = field.offsets
        else:
            chosen = field.codes[blocks.of] == code
            _every(out, _STORES[code])[places[chosen]] = field.offsets[chosen]


def is_sized(codes: Array) -> Array:
    """Whether the bytes that a text's values take together are stored too."""
    sized: Array = (codes > 0) & (codes != ONE_VALUE) & (codes != UUIDS)
    return sized


def bitmap_bytes(nulls: Array, counts: Array) -> Array:
    """Bytes of the bitmap of present values."""
    return np.where(nulls == SOME_NULL, (counts + 7) >> 3, 0)


def _field(column: pl.Series, blocks: Blocks) -> _Field:
    kind = column.dtype
    present = column.is_not_null().to_numpy() if column.null_count() else None
    if kind in (pl.String, pl.Binary):
        return _text(column, present, blocks)
    if kind == pl.Float64:
        values = _filled(column, 0.0, present).to_numpy().view(np.int64)
    elif kind in (pl.Int64, pl.Date, pl.Boolean):
        values = _filled(column.cast(pl.Int64), 0, present).to_numpy()
    else:
        raise CorruptBlock(f"a column of type {kind} cannot be stored")
    return _numbers(values, present, blocks)


def _filled(column: pl.Series, blank: float | bytes, present: Array | None) -> pl.Series:
    """Without nulls; a tenth of a millisecond that most columns need not pay."""
    return column if present is None else column.fill_null(blank)


def _numbers(values: Array, present: Array | None, blocks: Blocks) -> _Field:
    nulls = _nulls(present, blocks)
    known = values if present is None else np.where(present, values, _HIGHEST)
    bases = np.minimum.reduceat(known, blocks.starts)
    bases[nulls == ALL_NULL] = 0
    offsets = (values - bases[blocks.of]).view(np.uint64)  # modulo 2^64, as the reader adds
    if present is not None:
        offsets[~present] = 0
    codes = np.searchsorted(_LIMITS, np.maximum.reduceat(offsets, blocks.starts), side="right")
    return _Field(codes.astype(np.uint8), _base_codes(bases), nulls, bases, offsets, present)


def _text(column: pl.Series, present: Array | None, blocks: Blocks) -> _Field:
    plain = _filled(column.cast(pl.Binary), b"", present).rechunk().to_arrow()
    bounds = text_bounds(plain)
    data = np.frombuffer(plain.buffers()[2] or b"", dtype=np.uint8)
    lengths = np.diff(bounds)
    field = _numbers(lengths, None, blocks)
    nulls = _nulls(present, blocks)
    same = _same(plain, blocks) & (nulls == 0)
    begins = bounds[blocks.starts]
    ends = np.where(same, begins + lengths[blocks.starts], bounds[blocks.starts + blocks.counts])
    bases, codes = field.bases, np.where(same, ONE_VALUE, field.codes).astype(np.uint8)
    if (ends - begins).max() >= 1 << 8 * SIZE_BYTES:
        raise CorruptBlock(f"the values of `{column.name}` in one block take more than four gigabytes")
    packed = uuidtext.parse(data[bounds[0] : bounds[-1]], lengths) if present is None else None
    offsets = field.offsets
    if packed is not None and packed.size < int((ends - begins).sum()):
        codes = np.full_like(codes, UUIDS)
        bases = np.zeros_like(bases)
        data, begins = packed.reshape(-1), uuidtext.BYTES * blocks.starts
        ends = begins + uuidtext.BYTES * blocks.counts
    else:
        bases, offsets, behind, size = bases.copy(), offsets.copy(), [data], len(data)
        for at in np.flatnonzero((blocks.counts >= NUMBERED_FROM) & (codes < ONE_VALUE)):
            first, count = int(blocks.starts[at]), int(blocks.counts[at])
            distinct, numbers = _numbered(plain.slice(first, count))
            plainly = ends[at] - begins[at] + WIDTHS[codes[at]] * count
            if numbers.max() < _MOST_NUMBERED and len(distinct) + WIDTHS[NUMBERED] * count < plainly:
                codes[at], bases[at] = NUMBERED, numbers.max() + 1
                offsets[first : first + count] = numbers
                behind.append(distinct)
                begins[at], ends[at] = size, size + len(distinct)
                size += len(distinct)
        data = np.concatenate(behind) if len(behind) > 1 else data
    return _Field(
        codes,
        _base_codes(bases),
        nulls,
        bases,
        offsets,
        present,
        ends - begins,
        _slices(data, np.stack([begins, ends], axis=1).reshape(-1)).take(
            pa.array(np.arange(0, 2 * len(begins), 2))
        ),
    )


def _numbered(values: pa.LargeBinaryArray) -> tuple[Array, Array]:
    """(lengths and bytes of the distinct values, in the order they first come; the number of each value)."""
    coded = values.dictionary_encode()
    lengths = np.diff(text_bounds(coded.dictionary)).astype("<u4")
    text = np.frombuffer(coded.dictionary.buffers()[2] or b"", dtype=np.uint8)[: int(lengths.sum())]
    return np.concatenate([lengths.view(np.uint8), text]), coded.indices.to_numpy()


def text_bounds(array: pa.LargeBinaryArray) -> Array:
    """Where each value begins in the array's bytes, and where the last one ends."""
    every: Array = np.frombuffer(array.buffers()[1], dtype=np.int64)
    return every[array.offset : array.offset + len(array) + 1]


def _same(values: pa.LargeBinaryArray, blocks: Blocks) -> Array:
    """Blocks in which all values are the same."""
    again = np.ones(len(values), dtype=bool)
    again[1:] = pc.equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
    again[blocks.starts] = True
    return np.logical_and.reduceat(again, blocks.starts)


def _nulls(present: Array | None, blocks: Blocks) -> Array:
    if present is None:
        return np.zeros(len(blocks.counts), dtype=np.uint8)
    known = np.add.reduceat(present.astype(np.int64), blocks.starts)
    nulls = np.where(known == blocks.counts, 0, np.where(known == 0, ALL_NULL, SOME_NULL))
    return nulls.astype(np.uint8)


def _base_codes(bases: Array) -> Array:
    """The least width that holds a signed number; 0 for 0."""
    magnitude = (bases ^ (bases >> 63)).astype(np.uint64)
    codes = np.searchsorted(_BASE_LIMITS, magnitude, side="right") + 1
    return np.where(bases == 0, 0, codes).astype(np.uint8)


def _slices(data: Array, bounds: Array) -> pa.LargeBinaryArray:
    """What lies between consecutive bounds."""
    offsets = pa.py_buffer(np.ascontiguousarray(bounds, dtype=np.int64))
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(bounds) - 1, [None, offsets, pa.py_buffer(np.ascontiguousarray(data))]
    )


def _every(data: Array, kind: str) -> Array:
    """A view of the numbers that begin at every byte."""
    width = np.dtype(kind).itemsize
    return np.ndarray((len(data) - width + 1,), kind, data.data, strides=(1,))
