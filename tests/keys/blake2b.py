"""BLAKE2b written out from RFC 7693, with the personalisation of the BLAKE2 specification (section 2.8).

No published vectors of keyed or personalised BLAKE2b come with our test data; this stands in their place,
and is itself held against the self-test of RFC 7693, appendix E.
"""

from __future__ import annotations

import struct

_MASK = 2**64 - 1
_BLOCK = 128
_ROUNDS = 12
_IV = (
    0x6A09E667F3BCC908,
    0xBB67AE8584CAA73B,
    0x3C6EF372FE94F82B,
    0xA54FF53A5F1D36F1,
    0x510E527FADE682D1,
    0x9B05688C2B3E6C1F,
    0x1F83D9ABFB41BD6B,
    0x5BE0CD19137E2179,
)
_SIGMA = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    (14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
    (11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4),
    (7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8),
    (9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13),
    (2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9),
    (12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11),
    (13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10),
    (6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5),
    (10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0),
)
_COLUMNS_AND_DIAGONALS = (
    (0, 4, 8, 12),
    (1, 5, 9, 13),
    (2, 6, 10, 14),
    (3, 7, 11, 15),
    (0, 5, 10, 15),
    (1, 6, 11, 12),
    (2, 7, 8, 13),
    (3, 4, 9, 14),
)


def blake2b(message: bytes, *, digest_bytes: int = 64, key: bytes = b"", person: bytes = b"") -> bytes:
    """The digest; `key` has at most 64 bytes, `person` at most 16."""
    parameters = bytes((digest_bytes, len(key), 1, 1)).ljust(48, b"\0") + person.ljust(16, b"\0")
    state = [iv ^ word for iv, word in zip(_IV, struct.unpack("<8Q", parameters), strict=True)]
    whole = (key.ljust(_BLOCK, b"\0") if key else b"") + message
    count = max(1, -(-len(whole) // _BLOCK))
    for number in range(count):
        block = whole[number * _BLOCK : (number + 1) * _BLOCK].ljust(_BLOCK, b"\0")
        is_last = number == count - 1
        _compress(state, block, len(whole) if is_last else (number + 1) * _BLOCK, is_last)
    return struct.pack("<8Q", *state)[:digest_bytes]


def _compress(state: list[int], block: bytes, offset: int, is_last: bool) -> None:
    words = struct.unpack("<16Q", block)
    work = [*state, *_IV]
    work[12] ^= offset & _MASK
    work[13] ^= offset >> 64
    if is_last:
        work[14] ^= _MASK
    for number in range(_ROUNDS):
        order = _SIGMA[number % 10]
        for at, (a, b, c, d) in enumerate(_COLUMNS_AND_DIAGONALS):
            work[a] = (work[a] + work[b] + words[order[2 * at]]) & _MASK
            work[d] = _rotated(work[d] ^ work[a], 32)
            work[c] = (work[c] + work[d]) & _MASK
            work[b] = _rotated(work[b] ^ work[c], 24)
            work[a] = (work[a] + work[b] + words[order[2 * at + 1]]) & _MASK
            work[d] = _rotated(work[d] ^ work[a], 16)
            work[c] = (work[c] + work[d]) & _MASK
            work[b] = _rotated(work[b] ^ work[c], 63)
    for at in range(8):
        state[at] ^= work[at] ^ work[at + 8]


def _rotated(word: int, bits: int) -> int:
    return (word >> bits | word << 64 - bits) & _MASK
