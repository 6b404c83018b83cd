"""The blind index: names of subjects as keyed hashes under a block cipher, which can be replaced online.

A row's key is E(HMAC-SHA-256(kind ‖ 0 ‖ value)[:16]) and its name E(ref), AES-256 over single blocks:
a permutation that says nothing without its key. While the cipher is being replaced there are two; rows
are looked up under both and written under the newer one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keys.handles import HANDLE_KEY_BYTES, Handles, split_blocks
from keys.mac import HmacSha256
from keys.pagestore import BlindRow, PageStore

BLOCK_BYTES: Final = 16
HASH_KEY_BYTES: Final = 32
FIXED_KEY_BYTES: Final = HASH_KEY_BYTES + HANDLE_KEY_BYTES
CIPHER_KEY_BYTES: Final = 32
VERSION: Final = "index_version"
_new_row: Final = functools.partial(tuple.__new__, BlindRow)


class BlindIndex:
    """Looks names up and makes rows for them.

    Args:
        store: keeps the rows.
        read_keys: reads the index keys anew: the hash key, the handle key, then one or two cipher keys,
            the older first.
    """

    def __init__(self, store: PageStore, read_keys: Callable[[], bytes]) -> None:
        self._store = store
        self._read_keys = read_keys
        self.version = ""
        self._mac = HmacSha256(b"")
        self.handles = Handles(read_keys()[HASH_KEY_BYTES:FIXED_KEY_BYTES])
        self._ciphers: list[Cipher[Any]] = []
        self.refresh()

    def refresh(self) -> None:
        """Reads the keys again where another process replaced them; writers do under the write lock."""
        version = self._store.meta(VERSION) or "1"
        if version != self.version:
            keys = self._read_keys()
            self._mac, rest = HmacSha256(keys[:HASH_KEY_BYTES]), keys[FIXED_KEY_BYTES:]
            self._ciphers = [
                Cipher(algorithms.AES(rest[at : at + CIPHER_KEY_BYTES]), modes.ECB())
                for at in range(0, len(rest), CIPHER_KEY_BYTES)
            ]
            self.version = version

    def is_still(self, version: str) -> bool:
        """Whether there is one cipher, and has been since the index was of this version."""
        self.refresh()
        return self.version == version and not self.being_replaced

    @property
    def being_replaced(self) -> bool:
        """Whether two ciphers are in use."""
        return len(self._ciphers) > 1

    def digests(self, kind: str, values: Sequence[str]) -> list[bytes]:
        """The keyed hash of each name."""
        hashes = self._mac.digests(kind.encode() + b"\0", map(str.encode, values))
        return [one[:BLOCK_BYTES] for one in hashes]

    def find(self, digests: Sequence[bytes]) -> list[bytes | None]:
        """The ref behind each hash, or None."""
        self.refresh()
        version = self.version
        found = self._look(digests)
        # A row may have moved to the newer cipher between our two looks: a miss is asked about again.
        if None in found and (self.being_replaced or self._store.meta(VERSION) != version):
            self.refresh()
            again = self._look(digests)
            found = [first or second for first, second in zip(found, again, strict=True)]
        return found

    def _look(self, digests: Sequence[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = [None] * len(digests)
        missing = list(range(len(digests)))
        for cipher in reversed(self._ciphers):
            blinds = _permuted(cipher, [digests[n] for n in missing])
            rows = self._store.find_blind(blinds)
            hits = [(n, rows[blind].name) for n, blind in zip(missing, blinds, strict=True) if blind in rows]
            refs = _restored(cipher, [name for _, name in hits])
            for (n, _), ref in zip(hits, refs, strict=True):
                found[n] = ref
            missing = [n for n in missing if found[n] is None]
            if not missing:
                break
        return found

    def rows(self, digests: Sequence[bytes], refs: Sequence[bytes], homes: Sequence[int]) -> list[BlindRow]:
        """Index rows that lead from names to handles, under the newest cipher; inside the transaction that
        adds them.

        Args:
            homes: the home page of each handle.
        """
        self.refresh()
        cipher = self._ciphers[-1]
        columns = zip(_permuted(cipher, digests), homes, _permuted(cipher, refs), strict=True)
        return list(map(_new_row, columns))

    def rows_of(self, refs: Sequence[bytes]) -> list[tuple[int, bytes]]:
        """(page, sealed ref) of every row that leads to these refs, under every cipher in use."""
        self.refresh()
        homes = self.handles.homes(refs)
        return [pair for cipher in self._ciphers for pair in zip(homes, _permuted(cipher, refs), strict=True)]

    def refs_of(self, rows: Sequence[BlindRow]) -> list[tuple[bytes, ...]]:
        """What each row may lead to: one ref, or one per cipher while that is replaced."""
        columns = [_restored(cipher, [row.name for row in rows]) for cipher in self._ciphers]
        return list(zip(*columns, strict=True))

    def of_older(self, rows: Sequence[BlindRow]) -> list[BlindRow]:
        """Those that the older cipher wrote: under another one a ref's home is not the row's page."""
        homes = self.handles.homes(_restored(self._ciphers[0], [row.name for row in rows]))
        return [row for row, home in zip(rows, homes, strict=True) if row.page_id == home]

    def moved(self, rows: Sequence[BlindRow]) -> list[BlindRow]:
        """Rows of the older cipher as rows of the newer one."""
        older, newer = self._ciphers[0], self._ciphers[-1]
        blinds = _permuted(newer, _restored(older, [row.blind for row in rows]))
        names = _permuted(newer, _restored(older, [row.name for row in rows]))
        return [
            BlindRow(blind, row.page_id, name) for blind, row, name in zip(blinds, rows, names, strict=True)
        ]


def _permuted(cipher: Cipher[Any], blocks: Sequence[bytes]) -> list[bytes]:
    return split_blocks(cipher.encryptor().update(b"".join(blocks)))


def _restored(cipher: Cipher[Any], blocks: Sequence[bytes]) -> list[bytes]:
    return split_blocks(cipher.decryptor().update(b"".join(blocks)))
