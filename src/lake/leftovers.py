"""What commits leave behind: old metadata files, and the manifests of attempts that did not land."""

from __future__ import annotations

import contextlib

from pyiceberg.table import Table, Transaction
from pyiceberg.table.metadata import TableMetadata


def delete_old_metadata(table: Table, newer: TableMetadata) -> None:
    """Deletes metadata files that the table's log has let go; another process may have been first."""
    kept = {one.metadata_file for one in newer.metadata_log}
    for one in table.metadata.metadata_log:
        if one.metadata_file not in kept:
            with contextlib.suppress(OSError):
                table.io.delete(one.metadata_file)


def is_lost(base: TableMetadata, newest: TableMetadata) -> bool:
    """Whether a commit on `base` that `newest` does not know cannot have been there and expired since.

    A head does not expire, and it would still be the head where nobody has committed behind it.
    """
    return _head_number(newest) <= _head_number(base) + 1


def _head_number(metadata: TableMetadata) -> int:
    head = metadata.current_snapshot()
    return 0 if head is None else head.sequence_number or 0


def clean_up(transaction: Transaction) -> None:
    """Deletes the manifests of an attempt that is lost for certain."""
    for producer in transaction._snapshot_producers:
        producer._clean_all_uncommitted()
