"""The blind index: names of subjects as keyed hashes under a block cipher, which can be replaced online.

A row's key is E(HMAC-SHA-256(kind ‖ 0 ‖ value)[:16]) and its name E(ref), AES-256 over single blocks:
a permutation that says nothing without its key. While the cipher is being replaced there are two; rows
are looked up under both and written under the newer one.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from keys.pagestore import BlindRow, PageStore

BLOCK_BYTES: Final = 16
HASH_KEY_BYTES: Final = 32
CIPHER_KEY_BYTES: Final = 32
VERSION: Final = "index_version"


class BlindIndex:
    """Looks names up and makes rows for them.

    Args:
        store: keeps the rows.
        read_keys: reads the index keys anew: the hash key, then one or two cipher keys, the older first.
    """

    def __init__(self, store: PageStore, read_keys: Callable[[], bytes]) -> None:
        self._store = store
        self._read_keys = read_keys
        self._version: str | None = None
        self._hash_key = b""
        self._ciphers: list[Cipher[Any]] = []
        self.refresh()

    def refresh(self) -> None:
        """Reads the keys again where another process replaced them; writers do under the write lock."""
        version = self._store.meta(VERSION) or "1"
        if version != self._version:
            keys = self._read_keys()
            self._hash_key, rest = keys[:HASH_KEY_BYTES], keys[HASH_KEY_BYTES:]
            self._ciphers = [
                Cipher(algorithms.AES(rest[at : at + CIPHER_KEY_BYTES]), modes.ECB())
                for at in range(0, len(rest), CIPHER_KEY_BYTES)
            ]
            self._version = version

    @property
    def being_replaced(self) -> bool:
        """Whether two ciphers are in use."""
        return len(self._ciphers) > 1

    def digests(self, kind: str, values: Sequence[str]) -> list[bytes]:
        """The keyed hash of each name."""
        key, prefix = self._hash_key, kind.encode() + b"\0"
        return [hmac.digest(key, prefix + v.encode(), "sha256")[:BLOCK_BYTES] for v in values]

    def find(self, digests: Sequence[bytes]) -> list[bytes | None]:
        """The ref behind each hash, or None."""
        self.refresh()
        version = self._version
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

    def rows(self, names: Iterable[tuple[bytes, bytes, int]]) -> list[BlindRow]:
        """Index rows of (hash, ref, page), under the newest cipher; inside the transaction that adds them."""
        self.refresh()
        wanted = list(names)
        blinds = _permuted(self._ciphers[-1], [digest for digest, _, _ in wanted])
        sealed = _permuted(self._ciphers[-1], [ref for _, ref, _ in wanted])
        return [
            BlindRow(blind, page_id, name)
            for blind, name, (_, _, page_id) in zip(blinds, sealed, wanted, strict=True)
        ]

    def sealed_refs(self, refs: Sequence[bytes]) -> list[bytes]:
        """What rows hold in place of these refs, under every cipher in use."""
        self.refresh()
        return [name for cipher in self._ciphers for name in _permuted(cipher, refs)]

    def refs_of(self, rows: Sequence[BlindRow]) -> list[tuple[bytes, ...]]:
        """What each row may lead to: one ref, or one per cipher while that is replaced."""
        columns = [_restored(cipher, [row.name for row in rows]) for cipher in self._ciphers]
        return list(zip(*columns, strict=True))

    def moved(self, rows: Sequence[BlindRow]) -> list[BlindRow]:
        """Rows of the older cipher as rows of the newer one."""
        older, newer = self._ciphers[0], self._ciphers[-1]
        blinds = _permuted(newer, _restored(older, [row.blind for row in rows]))
        names = _permuted(newer, _restored(older, [row.name for row in rows]))
        return [
            BlindRow(blind, row.page_id, name) for blind, row, name in zip(blinds, rows, names, strict=True)
        ]


def _permuted(cipher: Cipher[Any], blocks: Sequence[bytes]) -> list[bytes]:
    return _split(cipher.encryptor().update(b"".join(blocks)))


def _restored(cipher: Cipher[Any], blocks: Sequence[bytes]) -> list[bytes]:
    return _split(cipher.decryptor().update(b"".join(blocks)))


def _split(blocks: bytes) -> list[bytes]:
    return [blocks[at : at + BLOCK_BYTES] for at in range(0, len(blocks), BLOCK_BYTES)]
