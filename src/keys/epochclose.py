"""Closing an epoch: the root is rotated, every node key rewrapped, the old versions retired and tried.

What a copy of the page store holds of before is unreadable from then on, whoever has today's root.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from attrs import frozen

from keys import tree
from keys.custodian import Custodian
from keys.effects import Effects
from keys.errors import RootKeyRetired, StaleWrite
from keys.pagestore import NodeRow, PageStore, PageWriter

_CANARY: Final = "root_canary"
_CANARY_BYTES: Final = 32


@frozen
class EpochClose:
    """What closing an epoch did.

    Attributes:
        root_version: the version that is in force now.
        nodes: how many node keys were rewrapped.
        custodian_calls: counted, other threads' included; few, whatever the number of subjects.
        old_wrap_refused: a wrap kept from before was tried and refused: the proof.
    """

    root_version: int
    nodes: int
    custodian_calls: int
    old_wrap_refused: bool


def close_epoch(
    store: PageStore,
    custodian: Custodian,
    rotating: Callable[[], AbstractContextManager[tuple[PageWriter, int]]],
    tree_id: str,
    random_bytes: Callable[[int], bytes],
    effects: Effects,
) -> EpochClose:
    """Rotates the root, rewraps every node key, retires the old versions and proves it.

    Resumable: a killed close leaves wraps of a live version; the next one does all of it.

    Args:
        rotating: opens a transaction and gives the root version that is in force in it.

    Raises:
        StaleWrite: an older page store was put in its place meanwhile; nothing was retired.
    """
    before = custodian.calls
    context = f"canary|{tree_id}".encode()
    stored = store.meta(_CANARY)
    kept = bytes.fromhex(stored) if stored else custodian.wrap([(context, random_bytes(_CANARY_BYTES))])[0]
    with effects("keys.rotate"), rotating() as (writer, version):
        rows = store.nodes()
        wrapped = custodian.rewrap([(tree.node_context(tree_id, r.node_id), r.wrapped) for r in rows])
        for row, fresh in zip(rows, wrapped, strict=True):
            writer.put_node(NodeRow(row.node_id, 0, fresh, row.body), row.version)
        canary = custodian.wrap([(context, random_bytes(_CANARY_BYTES))])[0]
        writer.set_meta(_CANARY, canary.hex())
    store.flush_deleted()
    with effects("keys.retire"), store.transaction():  # nobody wraps meanwhile
        written = {row.node_id: row.version + 1 for row in rows}
        if any(row.version < written.get(row.node_id, 0) for row in store.nodes()):
            raise StaleWrite("the page store went back behind the epoch close; nothing was retired")
        custodian.retire(version)
    refused = _is_refused(custodian, context, kept)
    return EpochClose(version, len(rows), custodian.calls - before, refused)


def _is_refused(custodian: Custodian, context: bytes, wrapped: bytes) -> bool:
    try:
        custodian.unwrap([(context, wrapped)])
    except RootKeyRetired:
        return True
    return False
