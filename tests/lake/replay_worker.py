"""Reads a lake in pieces in a process of its own and says what it took, as JSON on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lake import EventRead
from service.runtime import open_replay

READ = EventRead("Paid", ("cents", "event_id", "occurred_at", "note"))


def peak_bytes() -> int:
    """The most that was resident."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    """Arguments: the lake's folder, bytes of memory for a piece, and how many 256ths of the handles to read before."""
    replay = open_replay(Path(sys.argv[1]))
    memory_bytes = int(sys.argv[2])
    head = replay.resolve(None)
    assert head is not None
    files = replay.files(head.snapshot_id)
    replay.events(files, READ, ref_range=(b"", bytes([int(sys.argv[3])])))
    before = peak_bytes()
    sizes = []
    cents = 0
    for piece in replay.frames(files, READ, memory_bytes=memory_bytes):
        sizes.append(piece.frame.height)
        cents += int(piece.frame["cents"].sum())
    found = {"pieces": len(sizes), "events": sum(sizes), "cents": cents, "took": peak_bytes() - before}
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
