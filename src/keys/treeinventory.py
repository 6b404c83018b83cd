"""What a key tree holds, counted: for whoever runs it, and for auditors. Numbers alone, of nobody."""

from __future__ import annotations

from attrs import frozen

from keys import blindindex, tree
from keys.custodian import Custodian
from keys.fencelog import FenceLog
from keys.pagestore import PageStore
from keys.treecheck import PurposeCount, TreeCheck, fill_of


@frozen
class NodeInventory:
    """One node of the tree.

    Attributes:
        node_id: -1 is the node of the index keys, which has no pages.
        pages: rows of the page store that are sealed under it.
        root_version: of the root that wraps its key; after an epoch close the newest one for all.
    """

    node_id: int
    pages: int
    root_version: int


@frozen
class Inventory:
    """What is there.

    Attributes:
        people: handles that a name leads to; `handles` counts keys of nobody (view state, letters) as well.
        identities: further names of people. Their kinds are not known: an index row is a keyed hash.
        fill: records in the room that the pages have, from 0 to 1.
        index_version: of the keys of the index; a re-keying of it adds two.
        index_being_replaced: whether a re-keying of the index is under way.
        fence_head: the newest fence's link, in hex; empty while there is none.
    """

    people: int
    identities: int
    handles: int
    records: int
    pages: int
    fill: float
    page_bytes: int
    total_bytes: int
    nodes: tuple[NodeInventory, ...]
    index_version: int
    index_being_replaced: bool
    fences: int
    fence_head: str
    purposes: tuple[PurposeCount, ...]


def take_inventory(
    check: TreeCheck, store: PageStore, custodian: Custodian, fences: FenceLog, *, index_being_replaced: bool
) -> Inventory:
    """Adds to what reading everything found how it lies and what wraps it."""
    size, (epoch, head) = store.size(), fences.head()
    pages_of: dict[int, int] = {}
    for page_id in store.page_ids():
        pages_of[tree.node_of(page_id)] = pages_of.get(tree.node_of(page_id), 0) + 1
    nodes = [
        NodeInventory(row.node_id, pages_of.get(row.node_id, 0), custodian.wrap_version(row.wrapped))
        for row in store.nodes()
    ]
    return Inventory(
        people=check.people,
        identities=check.identities,
        handles=check.subjects,
        records=check.records,
        pages=size.pages,
        fill=fill_of(size.pages, check.records),
        page_bytes=size.page_bytes,
        total_bytes=size.total_bytes,
        nodes=tuple(sorted(nodes, key=lambda node: node.node_id)),
        index_version=int(store.meta(blindindex.VERSION) or 1),
        index_being_replaced=index_being_replaced,
        fences=epoch,
        fence_head=head.hex() if epoch else "",
        purposes=check.purposes,
    )
