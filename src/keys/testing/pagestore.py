"""What every `keys.PageStore` must do."""

from __future__ import annotations

from pathlib import Path

import pytest

from keys.errors import PageMissing, StaleWrite
from keys.pagestore import BlindRow, NodeRow, PageRow, PageStore


class PageStoreContract:
    """Subclass it and implement `make`."""

    def make(self, folder: Path) -> PageStore:
        """A store that lies in `folder`; the same folder gives the same content."""
        raise NotImplementedError

    def test_what_was_written_is_read_by_another_opening(self, tmp_path: Path) -> None:
        """Nodes, pages, index rows, settings."""
        store = self.make(tmp_path)
        with store.transaction() as writer:
            writer.put_node(NodeRow(0, 1, b"w", b"n"), None)
            writer.put_page(PageRow(3, 1, 2, b"p"), None)
            writer.add_blind([BlindRow(b"b" * 16, 3, b"n" * 16)])
            writer.add_elsewhere([(b"r" * 16, 3)])
            writer.set_meta("k", "v")
            writer.mark_destroyed([(5, b"c")])
        other = self.make(tmp_path)
        assert other.page_and_node(3, 0) == (PageRow(3, 1, 2, b"p"), NodeRow(0, 1, b"w", b"n"))
        with pytest.raises(PageMissing):
            other.page_and_node(4, 0)
        assert other.nodes() == other.nodes([0]) == [NodeRow(0, 1, b"w", b"n")]
        assert other.pages([3]) == [other.last_page()] == [PageRow(3, 1, 2, b"p")]
        assert other.find_blind([b"b" * 16, b"x" * 16]) == {b"b" * 16: BlindRow(b"b" * 16, 3, b"n" * 16)}
        assert other.elsewhere_of([b"r" * 16]) == list(other.all_elsewhere()) == [(b"r" * 16, 3)]
        assert list(other.all_names()) == [BlindRow(b"b" * 16, 3, b"n" * 16)]
        assert other.all_meta() == {"k": "v"}
        size = other.size()
        assert (size.pages, size.records, size.elsewhere, size.names, size.page_bytes) == (1, 2, 1, 1, 1)
        assert size.total_bytes > 0
        assert (other.meta("k"), other.meta("none"), other.destroyed()) == ("v", None, {5: b"c"})

    def test_a_failed_transaction_leaves_nothing(self, tmp_path: Path) -> None:
        """All or none."""
        store = self.make(tmp_path)
        with pytest.raises(StaleWrite), store.transaction() as writer:
            writer.put_page(PageRow(0, 1, 0, b"p"), None)
            writer.put_page(PageRow(9, 0, 0, b"p"), 3)
        assert store.page_ids() == []

    def test_a_stale_write_is_refused(self, tmp_path: Path) -> None:
        """Compare-and-set on nodes and pages; the winner's bytes stay."""
        store = self.make(tmp_path)
        with store.transaction() as writer:
            writer.put_node(NodeRow(0, 1, b"w", b"n"), None)
            writer.put_page(PageRow(0, 1, 0, b"p"), None)
        with store.transaction() as writer:
            writer.put_node(NodeRow(0, 0, b"w2", b"n2"), 1)
            writer.put_page(PageRow(0, 0, 1, b"p2"), 1)
        with pytest.raises(StaleWrite), store.transaction() as writer:
            writer.put_page(PageRow(0, 0, 1, b"p3"), 1)
        with pytest.raises(StaleWrite), store.transaction() as writer:
            writer.put_node(NodeRow(0, 0, b"w3", b"n3"), 1)
        assert (store.pages([0])[0].body, store.nodes([0])[0].body) == (b"p2", b"n2")

    def test_names_are_dropped_by_page_and_handle(self, tmp_path: Path) -> None:
        """All of a handle, and no other's."""
        store = self.make(tmp_path)
        with store.transaction() as writer:
            writer.add_blind([BlindRow(bytes([n]) * 16, 0, (b"a" if n < 2 else b"b") * 16) for n in range(3)])
        with store.transaction() as writer:
            writer.drop_blind([(0, b"a" * 16), (1, b"b" * 16)])
            writer.drop_blind([])
        assert list(store.find_blind([bytes([n]) * 16 for n in range(3)])) == [b"\2" * 16]

    def test_a_name_that_is_there_stays_and_does_not_count(self, tmp_path: Path) -> None:
        """So a process sees that another was first."""
        store = self.make(tmp_path)
        with store.transaction() as writer:
            assert writer.add_blind([BlindRow(b"b" * 16, 0, b"n" * 16)]) == 1
            assert writer.add_blind([]) == 0
        with store.transaction() as writer:
            others = [BlindRow(b"b" * 16, 1, b"m" * 16), BlindRow(b"c" * 16, 1, b"m" * 16)]
            assert writer.add_blind(others) == 1
        assert store.find_blind([b"b" * 16])[b"b" * 16].page_id == 0

    def test_a_handle_leaves_one_page_and_stays_in_another(self, tmp_path: Path) -> None:
        """One place at a time."""
        store = self.make(tmp_path)
        with store.transaction() as writer:
            writer.add_elsewhere([(b"a" * 16, 0), (b"a" * 16, 1), (b"b" * 16, 0)])
        with store.transaction() as writer:
            writer.drop_elsewhere([(b"a" * 16, 0)])
            writer.drop_elsewhere([])
        assert sorted(store.all_elsewhere()) == [(b"a" * 16, 1), (b"b" * 16, 0)]

    def test_names_are_read_in_the_order_of_their_keys_and_replaced(self, tmp_path: Path) -> None:
        """A page at a time; what is replaced is gone."""
        store = self.make(tmp_path)
        rows = [BlindRow(bytes([n]) * 16, n, b"n" * 16) for n in (3, 1, 2)]
        with store.transaction() as writer:
            writer.add_blind(rows)
        assert [row.page_id for row in store.names_after(b"", 2)] == [1, 2]
        assert [row.page_id for row in store.names_after(bytes([2]) * 16, 2)] == [3]
        with store.transaction() as writer:
            writer.replace_names([bytes([1]) * 16], [BlindRow(bytes([9]) * 16, 1, b"m" * 16)])
        assert [row.blind[0] for row in store.names_after(b"", 9)] == [2, 3, 9]

    def test_many_look_ups_are_one_call(self, tmp_path: Path) -> None:
        """More than any statement takes parameters."""
        store = self.make(tmp_path)
        refs = [n.to_bytes(16, "big") for n in range(3000)]
        with store.transaction() as writer:
            writer.add_elsewhere((ref, 1) for ref in refs)
        assert len(store.elsewhere_of(refs)) == 3000
