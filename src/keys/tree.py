"""The key tree's records and arithmetic. Pure: randomness is passed in.

root → node keys → page keys → records {SubjectRef, purpose, generation, state, DEK}::

    record: ref 16 · purpose u16 · generation u16 · state u8 · reserved u8 · DEK 32   (54 bytes)
    page:   up to 1,024 records, sealed under its page key
    node:   256 page keys of 32 bytes, sealed under its node key
    node key: wrapped by the custodian under the context "node|<tree>|<id>"
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, NoReturn

import numpy as np
from attrs import field, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keys.errors import PageDamaged

RECORD_BYTES: Final = 54
PAGE_RECORDS: Final = 1024
NODE_PAGES: Final = 256
MAX_NODES: Final = 1 << 20
KEY_BYTES: Final = 32
INDEX_NODE: Final = -1
STATE_ACTIVE: Final = 0
STATE_HELD: Final = 1
LOCATOR_BYTES: Final = 18
_NONCE: Final = 12
_MIDDLE: Final = struct.Struct(">HHBx")


@frozen
class KeyRecord:
    """One DEK of one (subject, purpose)."""

    ref: bytes
    purpose_code: int
    generation: int
    state: int
    dek: bytes = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled")

    def encode(self) -> bytes:
        """54 bytes, see the module."""
        return self.ref + _MIDDLE.pack(self.purpose_code, self.generation, self.state) + self.dek


def middle(purpose_code: int, generation: int) -> bytes:
    """What stands between handle and DEK in the record of an active key."""
    return _MIDDLE.pack(purpose_code, generation, STATE_ACTIVE)


def joined(refs: Sequence[bytes], middles: Sequence[bytes], deks: bytes) -> bytes:
    """Records of many keys, one behind the other.

    Args:
        deks: 32 bytes of each, one behind the other.
    """
    keys = [deks[at : at + KEY_BYTES] for at in range(0, len(deks), KEY_BYTES)]
    return b"".join([part for record in zip(refs, middles, keys, strict=True) for part in record])


def locator(ref: bytes, purpose_code: int) -> bytes:
    """The first 18 bytes of a record: what a key is looked up by."""
    return ref + purpose_code.to_bytes(2, "big")


def decode(record: bytes) -> KeyRecord:
    """The record of 54 bytes."""
    return KeyRecord(
        record[:16],
        int.from_bytes(record[16:18], "big"),
        int.from_bytes(record[18:20], "big"),
        record[20],
        record[22:54],
    )


def records(page: bytes) -> Iterator[bytes]:
    """Every record of an opened page, still encoded."""
    return (page[at : at + RECORD_BYTES] for at in range(0, len(page), RECORD_BYTES))


def in_order(page: bytes) -> bytes:
    """Records by the leading bits of their handles."""
    every = np.frombuffer(page, dtype=[("lead", ">u8"), ("rest", f"V{RECORD_BYTES - 8}")])
    return every[np.argsort(every["lead"], kind="stable")].tobytes()


def split(
    page: bytes,
    refs: Collection[bytes],
    purpose_code: int | None,
    highest: Mapping[bytes, int] | None = None,
) -> tuple[bytes, list[bytes]]:
    """(page without the records of these refs, the removed records).

    Args:
        purpose_code: None means all.
        highest: ref → the newest generation to remove; None means all.
    """
    kept: list[bytes] = []
    removed: list[bytes] = []
    for record in records(page):
        hit = record[:16] in refs and (
            purpose_code is None or int.from_bytes(record[16:18], "big") == purpose_code
        )
        if hit and highest is not None:
            hit = int.from_bytes(record[18:20], "big") <= highest[record[:16]]
        (removed if hit else kept).append(record)
    return b"".join(kept), removed


def with_state(page: bytes, refs: Collection[bytes], state: int) -> bytes:
    """The page with the state byte of these refs changed."""
    return b"".join(r[:20] + bytes((state,)) + r[21:] if r[:16] in refs else r for r in records(page))


def node_of(page_id: int) -> int:
    """The node that holds a page's key."""
    return page_id // NODE_PAGES


def node_context(tree_id: str, node_id: int) -> bytes:
    """What a node key's wrap is bound to."""
    return f"node|{tree_id}|{node_id}".encode()


def page_key(node: bytes, page_id: int) -> bytes:
    """The key of a page out of an opened node record."""
    at = (page_id % NODE_PAGES) * KEY_BYTES
    return node[at : at + KEY_BYTES]


def with_page_key(node: bytes, page_id: int, key: bytes) -> bytes:
    """The node record with one page key replaced; grows as pages are added."""
    at = (page_id % NODE_PAGES) * KEY_BYTES
    node = node.ljust(at + KEY_BYTES, b"\0")
    return node[:at] + key + node[at + KEY_BYTES :]


def seal_record(key: bytes, body: bytes, context: bytes, random_bytes: Callable[[int], bytes]) -> bytes:
    """AES-256-GCM under a page, node or index key, bound to its place in the tree."""
    nonce = random_bytes(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, body, context)


def open_record(key: bytes, sealed: bytes, context: bytes) -> bytes:
    """The body of `seal_record`.

    Raises:
        PageDamaged: names the place; no other page is affected.
    """
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], context)
    except (InvalidTag, ValueError):
        raise PageDamaged(f"{context.decode()} does not authenticate") from None


def page_context(tree_id: str, page_id: int) -> bytes:
    """What a sealed page is bound to."""
    return f"page|{tree_id}|{page_id}".encode()


def record_context(tree_id: str, node_id: int) -> bytes:
    """What a sealed node record is bound to."""
    return f"record|{tree_id}|{node_id}".encode()
