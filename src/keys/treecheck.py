"""Reading a whole key tree: does everything open, do the indexes agree, what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from attrs import frozen

from keys import tree
from keys.custodian import CustodianStatus
from keys.errors import PageStoreError
from keys.fencelog import ALL_PURPOSES, Fence, FenceLog
from keys.keytree import KeyTree
from keys.pagestore import PageStore
from keys.restoregate import GateStatus

_AT_ONCE: Final = 64
Progress = Callable[[int, int], None]
"""Called with (pages done, pages in all)."""


@frozen
class PurposeCount:
    """What the tree holds for one purpose; `generations` says how often people came back."""

    purpose: str
    records: int
    held: int
    highest_generation: int


@frozen
class TreeCheck:
    """What reading everything found.

    Attributes:
        subjects: handles with a record; `people` are those that a name leads to, the rest is nobody's.
        identities: further names of these people.
        problems: empty when every page opens, every index row points at a record, every record has its
            index row, no record is fenced, and fence log and pages agree. They name pages and counts,
            nobody.
    """

    pages: int
    records: int
    subjects: int
    people: int
    names: int
    identities: int
    fences: int
    purposes: tuple[PurposeCount, ...]
    problems: tuple[str, ...]


def check_tree(
    key_tree: KeyTree,
    store: PageStore,
    fence_log: FenceLog,
    purposes: Sequence[str],
    gate: GateStatus,
    progress: Progress = lambda done, total: None,
) -> TreeCheck:
    """Opens every page of a tree; memory grows by 200 bytes per record. Writers may go on meanwhile,
    then a changed page can show as a difference between page and index: look again."""
    problems: list[str] = []
    by_purpose: dict[int, list[int]] = {}  # number → [records, held, highest generation]
    places: set[tuple[bytes, int]] = set()
    page_ids = store.page_ids()
    fence_of = _fence_of(fence_log, purposes)
    records = fenced = 0
    for at in range(0, len(page_ids), _AT_ONCE):
        for row in store.pages(page_ids[at : at + _AT_ONCE]):
            try:
                ((_, page),) = key_tree.open_pages([row.page_id])
            except PageStoreError as error:
                problems.append(error.message)
                continue
            found = [tree.decode(record) for record in tree.records(page)]
            records += len(found)
            if len(found) != row.count:
                problems.append(f"page {row.page_id} says {row.count} records and holds {len(found)}")
            if len({(one.ref, one.purpose_code) for one in found}) != len(found):
                problems.append(f"page {row.page_id} holds two keys for one handle and purpose")
            places.update((one.ref, row.page_id) for one in found)
            fenced += sum(1 for one in found if fence_of(one) is not None)
            for one in found:
                tally = by_purpose.setdefault(one.purpose_code, [0, 0, 0])
                tally[0] += 1
                tally[1] += one.state == tree.STATE_HELD
                tally[2] = max(tally[2], one.generation)
        progress(min(at + _AT_ONCE, len(page_ids)), len(page_ids))
    leads = key_tree.index.refs_of(list(store.all_names()))
    refs = {ref for ref, _ in places}
    named = [refs.intersection(candidates) for candidates in leads if not refs.isdisjoint(candidates)]
    people = len({ref for led_to in named for ref in led_to})
    problems.extend(_index_problems(key_tree, store, places, len(leads) - len(named)))
    lost_pages = key_tree.page_count() - len(page_ids)
    if lost_pages > 0:
        problems.append(f"{lost_pages} page(s) are not in the page store")
    try:
        fences = fence_log.verify()
    except ValueError as error:
        fences = 0
        problems.append(str(error))
    if gate.reason is not None:
        problems.append(f"{gate.reason.message}. {gate.reason.next_step}")
    elif fenced:
        problems.append(f"{fenced} fenced key records are in the pages: run `shredlake keys converge --all`")
    counted = tuple(
        PurposeCount(purposes[number - 1] if 0 < number <= len(purposes) else f"number {number}", *tally)
        for number, tally in sorted(by_purpose.items())
    )
    return TreeCheck(
        len(page_ids),
        records,
        len(refs),
        people,
        len(leads),
        len(named) - people,
        fences,
        counted,
        tuple(problems),
    )


def fenced_records(
    key_tree: KeyTree, fence_log: FenceLog, purposes: Sequence[str]
) -> Iterator[tuple[tree.KeyRecord, Fence]]:
    """The records that a fence covers and that are in the pages all the same, each with its fence.

    Opens every page, one at a time.
    """
    fence_of = _fence_of(fence_log, purposes)
    for page_id in key_tree.store.page_ids():
        for _, page in key_tree.open_pages([page_id]):
            for record in map(tree.decode, tree.records(page)):
                if (fence := fence_of(record)) is not None:
                    yield record, fence


def tree_stats(store: PageStore, root: CustodianStatus, epoch: int) -> Mapping[str, int | float | str]:
    """How much the tree holds and how full it is, without opening anything."""
    size = store.size()
    return {
        "pages": size.pages,
        "nodes": len(store.nodes()),
        "records": size.records,
        "names": size.names,
        "elsewhere": size.elsewhere,
        "fill": fill_of(size.pages, size.records),
        "page_bytes": size.page_bytes,
        "total_bytes": size.total_bytes,
        "bytes_per_record": round(size.total_bytes / size.records, 1) if size.records else 0.0,
        "epoch": epoch,
        "root_id": root.root_id,
        "root_version": root.latest_version,
        "oldest_root_version": root.minimum_version,
    }


def fill_of(pages: int, records: int) -> float:
    """Records in the room of so many pages, from 0 to 1."""
    return round(records / (pages * tree.PAGE_RECORDS), 3) if pages else 0.0


def _fence_of(fence_log: FenceLog, purposes: Sequence[str]) -> Callable[[tree.KeyRecord], Fence | None]:
    find = fence_log.covering()
    names = dict(enumerate(purposes, start=1))

    def fence_of(record: tree.KeyRecord) -> Fence | None:
        if find is None:
            return None
        return find(record.ref, names.get(record.purpose_code, ALL_PURPOSES), record.generation)

    return fence_of


def _index_problems(
    key_tree: KeyTree, store: PageStore, places: set[tuple[bytes, int]], lost_names: int
) -> list[str]:
    rows = set(store.all_elsewhere())
    homes = key_tree.index.handles.homes(ref for ref, _ in places)
    strays = {place for place, home in zip(places, homes, strict=True) if place[1] != home}
    found = {
        "key record(s) have no index row": len(strays - rows),
        "index row(s) point at no key record": len(rows - strays),
        "name(s) lead to a handle without a key": lost_names,
    }
    return [f"{count} {what}" for what, count in found.items() if count]
