"""How a day becomes L1, one commit after another. Pure.

Handles are random, so their leading bits part a day into even shares of its people. Files whose bounds share
no leading sixteen bits hold nobody in common and are rewritten without each other. What hangs together and
fits into memory becomes one sorted file; what does not is first divided by some more leading bits, row by
row, a few files at a time. Everything is decided by the bounds, names and sizes of the live files: whoever
comes after a kill goes on where it was, and nothing is written down but the table itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from attrs import frozen
from pyiceberg.manifest import DataFile

from lake.blocks import BUCKET_PREFIX_BYTES
from lake.events import SUBJECT_REF_FIELD_ID
from lake.levels import Level, Sequenced, origin, size_bytes

_PREFIX_BITS: Final = 8 * BUCKET_PREFIX_BYTES
_MOST_BITS_AT_ONCE: Final = 5
"""So that what a few files are divided into does not become too small: 32 files of 8 MB."""
_TOO_LARGE: Final = 1.5
"""Even shares differ a little; one that was divided must not be divided again for that."""


@frozen
class Rewrite:
    """Files that one commit replaces; together they are in memory.

    Attributes:
        bits: they are divided by so many leading bits of the handles, rows as they are; 0: they become one
            sorted file.
    """

    files: tuple[Sequenced, ...]
    bits: int = 0


@frozen
class _Cluster:
    """Files that hang together, and the leading sixteen bits of their lowest and highest handles."""

    files: tuple[Sequenced, ...]
    low: int
    high: int

    @property
    def size_bytes(self) -> int:
        return size_bytes(self.files)

    @property
    def shared_bits(self) -> int:
        """Leading bits that all of their handles have in common."""
        return _PREFIX_BITS - (self.low ^ self.high).bit_length()


def rewrites(live: Sequence[Sequenced], piece_bytes: int, stale: Collection[str] = ()) -> list[Rewrite]:
    """What is to be done for a day as it is now; empty when it is sorted.

    What was divided is to be sorted afterwards: look again behind each commit.

    Args:
        live: files of one day.
        piece_bytes: about how many are rewritten together; more only where sixteen bits do not part them.
        stale: paths of sorted files that have to be written anew.
    """
    found: list[Rewrite] = []
    pack: list[Sequenced] = []
    for cluster in _clusters(live):
        finished = _is_finished(cluster, stale)
        if pack and (finished or size_bytes(pack) + cluster.size_bytes > piece_bytes):
            found.append(Rewrite(tuple(pack)))
            pack = []
        if finished:
            continue
        if bits := _bits_to_divide_by(cluster, piece_bytes):
            found.extend(Rewrite(group, bits) for group in _groups(cluster, bits, piece_bytes))
        else:
            pack.extend(cluster.files)
    return [*found, Rewrite(tuple(pack))] if pack else found


def sorted_files(live: Sequence[Sequenced], piece_bytes: int, stale: Collection[str] = ()) -> int:
    """About how many files of a day there are when it is sorted: exact where nothing has to be divided."""
    clusters = list(_clusters(live))
    finished = sum(_is_finished(one, stale) for one in clusters)
    whole = sum(not one.bits for one in rewrites(live, piece_bytes, stale))
    parts = sum(
        1 << _bits_for(one.size_bytes, piece_bytes)
        for one in clusters
        if not _is_finished(one, stale) and _bits_to_divide_by(one, piece_bytes)
    )
    return finished + whole + parts


def _clusters(live: Sequence[Sequenced]) -> Iterator[_Cluster]:
    """By handles, lowest first; no two have leading sixteen bits in common."""
    together: list[Sequenced] = []
    low = high = -1
    for one in sorted(live, key=lambda one: (*_span(one[0]), one[1], one[0].file_path)):
        first, last = _span(one[0])
        if together and first > high:
            yield _Cluster(tuple(together), low, high)
            together = []
        low, high = (low, max(high, last)) if together else (first, last)
        together.append(one)
    if together:
        yield _Cluster(tuple(together), low, high)


def _span(file: DataFile) -> tuple[int, int]:
    """The leading sixteen bits of the lowest and of the highest handle; without bounds, of everybody."""
    low = (file.lower_bounds or {}).get(SUBJECT_REF_FIELD_ID, b"")
    high = (file.upper_bounds or {}).get(SUBJECT_REF_FIELD_ID, b"\xff" * BUCKET_PREFIX_BYTES)
    return _prefix(low, b"\0"), _prefix(high, b"\xff")


def _prefix(handle: bytes, filling: bytes) -> int:
    return int.from_bytes(handle[:BUCKET_PREFIX_BYTES].ljust(BUCKET_PREFIX_BYTES, filling), "big")


def _is_finished(cluster: _Cluster, stale: Collection[str]) -> bool:
    (file, sequence), *others = cluster.files
    return not others and origin(file, sequence).level is Level.SORTED and file.file_path not in stale


def _bits_to_divide_by(cluster: _Cluster, piece_bytes: int) -> int:
    """0 where it fits, or where sixteen bits do not part it."""
    size = cluster.size_bytes
    if size <= _TOO_LARGE * piece_bytes or cluster.shared_bits == _PREFIX_BITS:
        return 0
    more = min(_MOST_BITS_AT_ONCE, _bits_for(size, piece_bytes))
    return min(_PREFIX_BITS, cluster.shared_bits + more)


def _bits_for(size_bytes: int, piece_bytes: int) -> int:
    return max(1, math.ceil(math.log2(size_bytes / piece_bytes)))


def _groups(cluster: _Cluster, bits: int, piece_bytes: int) -> Iterator[tuple[Sequenced, ...]]:
    """The files that reach over a border, oldest first, as many together as fit."""
    group: list[Sequenced] = []
    for one in sorted(cluster.files, key=lambda one: (origin(*one).oldest, one[0].file_path)):
        low, high = (prefix >> (_PREFIX_BITS - bits) for prefix in _span(one[0]))
        if low == high:
            continue
        if group and size_bytes(group) + one[0].file_size_in_bytes > piece_bytes:
            yield tuple(group)
            group = []
        group.append(one)
    if group:
        yield tuple(group)
