"""Merkle trees of RFC 6962 (section 2.1), of which every complete subtree's hash is kept. Pure.

A complete subtree is named by its level and its place in it: (0, n) is leaf n, (level, at) covers the leaves
from `at · 2^level` on. Once complete it never changes, so roots and proofs take a few of them each, however
large the tree is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

Nodes = Callable[[int, int], bytes]
"""The hash of a complete subtree, by level and place."""


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 ‖ data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def completed_by(index: int, leaf: bytes, node: Nodes) -> list[tuple[int, int, bytes]]:
    """(level, place, hash) of the subtrees above leaf `index` that are complete with it."""
    found, level, at, top = [], 0, index, leaf
    while at % 2:
        top = _node(node(level, at - 1), top)
        level, at = level + 1, at // 2
        found.append((level, at, top))
    return found


def root_of(size: int, node: Nodes) -> bytes:
    """Root of the first `size` leaves; of none, SHA-256 of the empty string."""
    return hashlib.sha256(b"").digest() if size == 0 else _root(0, size, node)


def inclusion_proof(index: int, size: int, node: Nodes) -> list[bytes]:
    """Sibling hashes from leaf to root (RFC 6962, 2.1.1) in the tree of the first `size` leaves.

    Raises:
        IndexError: it has no such leaf.
    """
    if not 0 <= index < size:
        raise IndexError(f"the log has no leaf {index}")
    proof, start, end = list[bytes](), 0, size
    while end - start > 1:
        middle = start + _left(end - start)
        if index < middle:
            proof.append(_root(middle, end, node))
            end = middle
        else:
            proof.append(_root(start, middle, node))
            start = middle
    return proof[::-1]


def _root(start: int, end: int, node: Nodes) -> bytes:
    """Of a range that begins where a subtree of its size does."""
    parts = []
    while start < end:
        level = (end - start).bit_length() - 1
        parts.append(node(level, start >> level))
        start += 1 << level
    root = parts.pop()
    while parts:
        root = _node(parts.pop(), root)
    return root


def _left(size: int) -> int:
    """The largest power of two below a size of two or more."""
    return 1 << (size - 1).bit_length() - 1


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
