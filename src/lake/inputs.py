"""What a publication was computed from stays readable: from its snapshot, or from a later one cut to it.

The live files of a snapshot say by their names how old their rows are (`lake.levels`). So the events that had
been committed by some snapshot can be told from any later one whose files do not mix rows from before and
after it. The tag `input-<sequence>` stands for such a place in the order of commits and names a snapshot that
tells it, mostly the newest: it pins no day that an erasure rewrote (docs/adr/0043).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pyiceberg.manifest import DataFile
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot

from lake.errors import SnapshotGone
from lake.levels import Sequenced, mixed_at, origin
from lake.references import sequences_of
from lake.retention import TagChanges
from lake.table import IcebergTable

_TAG: Final = re.compile(r"input-(\d+)")


def place_of(live: Sequence[Sequenced], sequence: int) -> int | None:
    """The newest ingest that these files have up to a commit; None where a file has later rows as well."""
    if mixed_at(live, sequence):
        return None
    return newest_ingest(one for one in live if origin(*one).newest <= sequence)


def newest_ingest(live: Iterable[Sequenced]) -> int:
    """The sequence number of the newest commit that these files have rows of; 0 where there are none."""
    return max((origin(*one).newest for one in live), default=0)


def cut(live: Sequence[Sequenced], sequence: int) -> list[DataFile] | None:
    """The files with just what had been committed by a commit; None where a file has later rows as well."""
    if mixed_at(live, sequence):
        return None
    return [file for file, at in live if origin(file, at).newest <= sequence]


def keeper_of(table: IcebergTable, snapshot_id: int, sequence: int) -> tuple[int, int | None]:
    """The kept snapshot that tells an input, and the sequence number to cut it at; None: as it is.

    Args:
        sequence: of the input's own snapshot.

    Raises:
        SnapshotGone: neither its snapshot is kept nor a later one that tells.
    """
    kept = {one.snapshot_id: one for one in table.history()}
    if snapshot_id in kept:
        return snapshot_id, None
    later = [one for one in kept.values() if (one.sequence_number or 0) > sequence]
    for one in sorted(later, key=lambda one: one.sequence_number or 0):
        if cut(table.sequenced_of(one), sequence) is not None:
            return one.snapshot_id, sequence
    raise SnapshotGone(
        f"snapshot {snapshot_id} has expired, and in every later one that is kept upkeep has put later"
        " events into the same files",
        next_step="What was reported is still answered as it was. A later publication can be recomputed;"
        " a tag on an input's snapshot keeps it for good.",
    )


def input_places(metadata: TableMetadata) -> dict[str, int]:
    """Tag → the sequence number that it stands for; older lakes named tags of inputs after snapshots."""
    found = {}
    for name, ref in metadata.refs.items():
        if (match := _TAG.fullmatch(name)) is not None:
            number = int(match[1])
            is_place = number != ref.snapshot_id and number < metadata.next_sequence_number()
            found[name] = number if is_place else (sequences_of(metadata, [ref.snapshot_id]) or [0])[0]
    return found


def marks_of(metadata: TableMetadata, tags: Mapping[str, int]) -> list[int]:
    """What merging does not cross: sequence numbers of tagged snapshots, and what inputs stand for."""
    return [*sequences_of(metadata, list(tags.values())), *input_places(metadata).values()]


class Inputs:
    """Keeps the inputs of publications of one table."""

    def __init__(self, table: IcebergTable) -> None:
        self._table = table

    def keep(self, inputs: Mapping[int, int]) -> None:
        """Tags inputs (snapshot id → its sequence number), on their snapshots where these are there still.

        Inputs between which nothing came in are one: they have one tag, which goes on to the later.
        """

        def choose(metadata: TableMetadata) -> TagChanges:
            tags: dict[str, int] = {}
            for snapshot_id, sequence in inputs.items():
                at = metadata.snapshot_by_id(snapshot_id) or metadata.current_snapshot()
                place = self._place(at, sequence) if at is not None else None
                if at is None or place is None:
                    continue  # expired between the build and its publication, and told by nothing
                name = f"input-{place}"
                held = metadata.refs.get(name)
                was = sequences_of(metadata, [held.snapshot_id]) if held is not None else []
                if not was or was[0] < (at.sequence_number or 0):
                    tags[name] = at.snapshot_id
            return TagChanges(tags, ())

        self._table.change_tags(choose)

    def forward(self, metadata: TableMetadata) -> TagChanges:
        """Tags of inputs that the head tells as well go on to it; those that stand for the same are one."""
        head = metadata.current_snapshot()
        places = input_places(metadata)
        if head is None or not places:
            return TagChanges({}, ())
        tags: dict[str, int] = {}
        gone: set[str] = set()
        for name, sequence in places.items():
            place = self._place(head, sequence)
            if place is not None:
                tags[f"input-{place}"] = head.snapshot_id
                gone.add(name)
        named = {name: ref.snapshot_id for name, ref in metadata.refs.items()}
        moved = {name: at for name, at in tags.items() if named.get(name) != at}
        return TagChanges(moved, tuple(sorted(gone - tags.keys())))

    def _place(self, snapshot: Snapshot, sequence: int) -> int | None:
        return place_of(self._table.sequenced_of(snapshot), sequence)
