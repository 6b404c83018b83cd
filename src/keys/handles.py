"""Handles that know their page: SubjectRef = AES-256(handle key, page id 6 bytes ‖ random 10 bytes).

A permutation of single blocks (FIPS 197): handles are distinct, look random, and say nothing without the
key, which lies in the tree's index node and never changes. So finding a key needs no index of handles;
the store keeps a row only for a record that lies on another page than its handle's home.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NoReturn

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keys.subjects import REF_BYTES

HANDLE_KEY_BYTES: Final = 32
_PAGE_BYTES: Final = 6


class Handles:
    """Makes handles and reads their home pages.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(key), modes.ECB())

    def make(self, page_id: int, count: int, random_bytes: Callable[[int], bytes]) -> list[bytes]:
        """Fresh handles at home on a page."""
        room = REF_BYTES - _PAGE_BYTES
        page, fresh = page_id.to_bytes(_PAGE_BYTES, "big"), random_bytes(room * count)
        blocks = page + page.join([fresh[at : at + room] for at in range(0, len(fresh), room)])
        return split_blocks(self._cipher.encryptor().update(blocks)) if count else []

    def homes(self, refs: Iterable[bytes]) -> list[int]:
        """The home page of each handle; of somebody else's 16 bytes a number far beyond any page."""
        plain = self._cipher.decryptor().update(b"".join(refs))
        return [int.from_bytes(plain[at : at + _PAGE_BYTES], "big") for at in range(0, len(plain), REF_BYTES)]

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled")


def split_blocks(blocks: bytes) -> list[bytes]:
    """Blocks of 16 bytes, one by one."""
    return [blocks[at : at + REF_BYTES] for at in range(0, len(blocks), REF_BYTES)]
