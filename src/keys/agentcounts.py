"""What a key agent has handed out, in a file that a kill does not take along: counts, and never a name.

JSON Lines; each line is what was added since the one before, for example
`{"at": "2026-03-01T12:00:00+00:00", "counts": {"ingest: sealing calls": 3, "ingest: sealing items": 2100}}`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

from attrs import field, frozen

COUNTS_NAME: Final = "counts.jsonl"


@frozen
class Counted:
    """The sum of a file.

    Attributes:
        since, until: when the first and the last line were written; None where there is none.
        counts: `role: operation calls` and `role: operation items` → how many.
    """

    since: str | None = None
    until: str | None = None
    counts: Mapping[str, int] = field(factory=dict)


class CountBook:
    """Appends to the file of one agent.

    Args:
        path: made with mode 0600; whoever wants it shorter moves it away.
        clock: gives the time of a line.
    """

    def __init__(self, path: Path, clock: Callable[[], datetime]) -> None:
        self._path = path
        self._clock = clock
        self._written: Counter[str] = Counter()

    def note(self, counts: Mapping[str, int]) -> None:
        """Writes what was added since the last call, and waits until it is on the disk.

        Raises:
            OSError: it was not written; the next call writes it as well.
        """
        added = Counter(counts) - self._written
        if not added:
            return
        line = json.dumps({"at": self._clock().isoformat(timespec="seconds"), "counts": added}) + "\n"
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            torn = size and os.pread(descriptor, 1, size - 1) != b"\n"  # an agent was killed while it wrote
            os.write(descriptor, (b"\n" if torn else b"") + line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._written += added


def read_counts(path: Path) -> Counted:
    """The sum of every whole line; nothing where no agent ever wrote one."""
    total: Counter[str] = Counter()
    times: list[str] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        total.update(found["counts"])
        times.append(found["at"])
    return Counted(times[0], times[-1], dict(total)) if times else Counted()
