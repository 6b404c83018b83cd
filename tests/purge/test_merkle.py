"""RFC 6962 trees against the recursive definition."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from purge.merkle import inclusion_proof, leaf_hash, root_from_proof, root_of

leaves = st.lists(st.binary(max_size=8), min_size=1, max_size=40)


def definition(hashes: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, word by word."""
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    return hashlib.sha256(b"\x01" + definition(hashes[:k]) + definition(hashes[k:])).digest()


@given(leaves)
def test_the_root_is_that_of_the_definition(data: list[bytes]) -> None:
    """Level by level gives what splitting at powers of two gives."""
    hashes = [leaf_hash(d) for d in data]
    assert root_of(hashes) == definition(hashes)


@given(leaves, st.data())
def test_every_leaf_is_proven_and_no_other_is(data: list[bytes], draw: st.DataObject) -> None:
    """A proof leads to the root from its own leaf and index only."""
    hashes = [leaf_hash(d) for d in data]
    index = draw.draw(st.integers(0, len(data) - 1))
    proof = inclusion_proof(hashes, index)
    assert root_from_proof(hashes[index], index, len(data), proof) == root_of(hashes)
    assert root_from_proof(leaf_hash(b"a leaf that is not there"), index, len(data), proof) != root_of(hashes)
    assert root_from_proof(hashes[index], len(data), len(data), proof) is None


def test_the_empty_tree_has_the_hash_of_nothing() -> None:
    """As the RFC says."""
    assert root_of([]) == hashlib.sha256(b"").digest()
