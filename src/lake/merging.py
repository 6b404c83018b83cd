"""Which small L0 files are put together. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import Final

from pyiceberg.manifest import DataFile

from lake.levels import Level, Sequenced, origin

MERGE_FILES: Final = 32
L0_FILE_BYTES: Final = 128 * 1024 * 1024
L1_FILE_BYTES: Final = 256 * 1024 * 1024
_UNIX: Final = date(1970, 1, 1)


def day_of(file: DataFile) -> date:
    """The ingest day of a data file."""
    value = file.partition[0]
    return value if isinstance(value, date) else _UNIX + timedelta(days=int(value))


def mergeable(
    live: Sequence[Sequenced], marks: Iterable[int], at_least: int, piece_bytes: int
) -> list[list[Sequenced]]:
    """Groups of small L0 files that become one file each.

    Args:
        live: files of one day.
        marks: sequence numbers of snapshots; files from before and after one are not put together.
        at_least: a group has so many files.
        piece_bytes: a group has about so many bytes at the most; larger files are left alone.
    """
    bounds = sorted(set(marks))
    groups: list[list[Sequenced]] = []
    open_groups: dict[int, list[Sequenced]] = {}
    sizes: dict[int, int] = {}
    for file, sequence in sorted(live, key=lambda one: one[1]):
        what = origin(file, sequence)
        small = file.file_size_in_bytes < piece_bytes // 2
        between = bisect_left(bounds, what.oldest)
        if what.level not in (Level.INGESTED, Level.MERGED) or not small:
            continue
        if between != bisect_left(bounds, what.newest):
            continue  # made before the mark was set
        group = open_groups.setdefault(between, [])
        if group and sizes[between] + file.file_size_in_bytes > piece_bytes:
            groups.append(group)
            group = open_groups[between] = []
        sizes[between] = (sizes[between] if group else 0) + file.file_size_in_bytes
        group.append((file, sequence))
    groups.extend(open_groups.values())
    return [group for group in groups if len(group) >= at_least]
