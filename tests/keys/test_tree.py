"""The key tree's arithmetic: records, pages and nodes are what was put into them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys import PageDamaged, tree

REFS = st.binary(min_size=16, max_size=16)
RECORDS = st.builds(
    tree.KeyRecord,
    REFS,
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.sampled_from([tree.STATE_ACTIVE, tree.STATE_HELD]),
    st.binary(min_size=32, max_size=32),
)
PAGES = st.lists(RECORDS, max_size=20)
KEY = bytes(range(32))


def page_of(found: list[tree.KeyRecord]) -> bytes:
    """An opened page."""
    return b"".join(record.encode() for record in found)


@given(RECORDS)
def test_a_record_is_54_bytes_and_comes_back_whole(record: tree.KeyRecord) -> None:
    """And begins with what it is looked up by."""
    encoded = record.encode()
    assert len(encoded) == tree.RECORD_BYTES
    assert tree.decode(encoded) == record
    assert encoded[: tree.LOCATOR_BYTES] == tree.locator(record.ref, record.purpose_code)


@given(PAGES)
def test_a_page_gives_its_records_in_order(found: list[tree.KeyRecord]) -> None:
    """All of them."""
    assert [tree.decode(record) for record in tree.records(page_of(found))] == found


@given(PAGES)
def test_records_are_put_in_the_order_of_their_handles(found: list[tree.KeyRecord]) -> None:
    """Nobody is lost; records that begin alike stay as they were."""
    ordered = [tree.decode(record) for record in tree.records(tree.in_order(page_of(found)))]
    assert ordered == sorted(found, key=lambda record: record.ref[:8])


@given(PAGES, st.data())
def test_splitting_loses_nobody_else(found: list[tree.KeyRecord], data: st.DataObject) -> None:
    """Kept and removed together are the page; removed are exactly the named."""
    known = [record.ref for record in found]
    doomed = set(data.draw(st.lists(st.sampled_from(known)))) if known else set()
    purpose = data.draw(st.none() | st.sampled_from([r.purpose_code for r in found] or [0]))
    kept, removed = tree.split(page_of(found), doomed, purpose)

    def is_named(record: tree.KeyRecord) -> bool:
        return record.ref in doomed and (purpose is None or record.purpose_code == purpose)

    assert kept == page_of([record for record in found if not is_named(record)])
    assert removed == [record.encode() for record in found if is_named(record)]


@given(PAGES, st.data())
def test_a_hold_changes_one_byte_of_the_named_only(found: list[tree.KeyRecord], data: st.DataObject) -> None:
    """Keys, generations and everybody else stay."""
    known = [record.ref for record in found]
    held = set(data.draw(st.lists(st.sampled_from(known)))) if known else set()
    after = [tree.decode(r) for r in tree.records(tree.with_state(page_of(found), held, tree.STATE_HELD))]
    for before, now in zip(found, after, strict=True):
        assert now.state == (tree.STATE_HELD if before.ref in held else before.state)
        assert (now.ref, now.purpose_code, now.generation, now.dek) == (
            before.ref,
            before.purpose_code,
            before.generation,
            before.dek,
        )


@given(st.dictionaries(st.integers(0, 255), st.binary(min_size=32, max_size=32), min_size=1, max_size=12))
def test_a_node_gives_back_every_page_key_in_whatever_order_they_came(keys: dict[int, bytes]) -> None:
    """Also where it grew over gaps."""
    node = b""
    for page_id, key in keys.items():
        node = tree.with_page_key(node, page_id, key)
    assert {page_id: tree.page_key(node, page_id) for page_id in keys} == keys
    assert len(node) == (max(keys) + 1) * tree.KEY_BYTES


@given(st.integers(0, 10**6), st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_replacing_a_page_key_leaves_no_copy_of_the_old_one(page_id: int, old: bytes, new: bytes) -> None:
    """And pages 256 apart share a slot, in different nodes."""
    node = tree.with_page_key(tree.with_page_key(b"", page_id, old), page_id, new)
    assert node == tree.with_page_key(b"", page_id, new)
    assert tree.node_of(page_id + tree.NODE_PAGES) == tree.node_of(page_id) + 1


@given(st.binary(max_size=300), st.data())
def test_any_changed_byte_of_a_sealed_page_is_damage(body: bytes, data: st.DataObject) -> None:
    """Never another page, and never an empty one."""
    where = tree.page_context("tree", 7)
    sealed = tree.seal_record(KEY, body, where, os.urandom)
    assert tree.open_record(KEY, sealed, where) == body
    changed = bytearray(sealed)
    changed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PageDamaged):
        tree.open_record(KEY, bytes(changed), where)


@given(st.binary(max_size=40))
def test_garbage_in_place_of_a_page_is_damage(garbage: bytes) -> None:
    """However short."""
    with pytest.raises(PageDamaged):
        tree.open_record(KEY, garbage, tree.page_context("tree", 7))


def test_a_page_opens_only_in_its_own_place() -> None:
    """Another number, another tree, a node in place of a page, another key."""
    sealed = tree.seal_record(KEY, b"page", tree.page_context("a", 7), os.urandom)
    for key, where in (
        (KEY, tree.page_context("a", 8)),
        (KEY, tree.page_context("b", 7)),
        (KEY, tree.record_context("a", 7)),
        (bytes(32), tree.page_context("a", 7)),
    ):
        with pytest.raises(PageDamaged):
            tree.open_record(key, sealed, where)


def test_a_record_does_not_show_its_key() -> None:
    """In no repr."""
    record = tree.KeyRecord(b"r" * 16, 1, 1, 0, b"SECRET-DEK-SECRET-DEK-SECRET-DEK")
    assert "SECRET" not in repr(record)
