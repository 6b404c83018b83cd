"""People whom L1 has left nothing to settle, read without what settles them."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve
from pyiceberg.manifest import DataFile

from lake.dedup import is_settled
from lake.eventreader import Read
from lake.selection import Selection, StoredBlocks, are_apart, stored_blocks
from lake.table import IcebergTable


def parted(
    table: IcebergTable, files: Sequence[DataFile], known: Read, wanted: Selection
) -> tuple[StoredBlocks, StoredBlocks | None]:
    """(blocks that need not be settled, the others with what settles them; None where there are none).

    Where people have one block each, as in sorted files of one day, tags are read of those alone who turn
    out to have more to settle.

    Raises:
        StorageFailed, CorruptBlock: see `stored_blocks`.
    """
    everything = list({*known.settled_columns, *known.columns})
    if are_apart([file for file in files if wanted.may_be_in(file)]):
        plain, others = _split(stored_blocks(table, files, wanted, known.settled_columns))
        if others is None:
            return plain, None
        if others.rows.height <= plain.rows.height:
            refs = others.rows.get_column("subject_ref").unique().to_list()
            return plain, stored_blocks(table, files, evolve(wanted, refs=refs), everything)
    return _split(stored_blocks(table, files, wanted, everything))


def _split(blocks: StoredBlocks) -> tuple[StoredBlocks, StoredBlocks | None]:
    is_plain = is_settled(blocks.rows)
    if is_plain.all():
        return blocks, None
    plain, others = blocks.rows.filter(is_plain), blocks.rows.filter(~is_plain)
    return evolve(blocks, rows=plain), evolve(blocks, rows=others)
