"""What a data file of the events table is, told by its name alone.

Ingest writes L0 files under random names. Upkeep writes the age of what is inside before its own: the
sequence numbers of the oldest and the newest commit whose rows a file holds. So "what came after that
snapshot" can be answered from the live files, though the snapshots in between were expired.

=======================  ===========================================================================
`<uuid>`                 L0, as ingested
`l0-<old>-<new>-<uuid>`  L0 files put together, row by row as they were
`dv-<old>-<new>-<uuid>`  rows of a range of handles as they were: a large day on its way to L1
`l1-<old>-<new>-<uuid>`  L1: people of a day rewritten, sorted, duplicates dropped
`rw-<old>-<new>-<uuid>`  a file that dead blocks, or dead letters, were taken out of
=======================  ===========================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

from attrs import frozen
from pyiceberg.manifest import DataFile

_NAME: Final = re.compile(r".*/(l0|dv|l1|rw)-(\d+)-(\d+)-[0-9a-f]{32}\.parquet")
Sequenced = tuple[DataFile, int]
"""A live data file and the sequence number of the commit that added it."""


class Level(Enum):
    """How a file came to be."""

    INGESTED = ""
    MERGED = "l0"
    DIVIDED = "dv"
    SORTED = "l1"
    REWRITTEN = "rw"


@frozen
class Origin:
    """A file's level, and the sequence numbers of the oldest and newest commit it has rows of."""

    level: Level
    oldest: int
    newest: int

    @property
    def prefix(self) -> str:
        """What the file's name begins with."""
        return f"{self.level.value}-{self.oldest}-{self.newest}-"


def origin(file: DataFile, sequence: int) -> Origin:
    """What a live file is."""
    found = _NAME.fullmatch(file.file_path)
    if found is None:
        return Origin(Level.INGESTED, sequence, sequence)
    return Origin(Level(found[1]), int(found[2]), int(found[3]))


def is_sorted(file: DataFile) -> bool:
    """Whether L1 wrote it."""
    return origin(file, 0).level is Level.SORTED


def together(level: Level, files: Iterable[Sequenced]) -> Origin:
    """What becomes of files that are rewritten as one."""
    origins = [origin(*one) for one in files]
    return Origin(level, min(one.oldest for one in origins), max(one.newest for one in origins))


def added_after(live: Sequence[Sequenced], sequence: int) -> list[DataFile] | None:
    """The files with just what was ingested after a commit; None where a file has older rows as well."""
    if mixed_at(live, sequence):
        return None
    return [file for file, at in live if origin(file, at).newest > sequence]


def mixed_at(live: Sequence[Sequenced], sequence: int) -> list[DataFile]:
    """The files with rows from before (or of) a commit and from after it."""
    return [file for file, at in live if (what := origin(file, at)).oldest <= sequence < what.newest]


def size_bytes(files: Iterable[Sequenced]) -> int:
    """Of files together."""
    return sum(file.file_size_in_bytes for file, _ in files)
