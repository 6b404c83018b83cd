"""SipHash-2-4 of one text, written out from the paper: stands beside the one that hashes many at once.

Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012, section 2; its appendix A has the example.
"""

from __future__ import annotations

_ALL = (1 << 64) - 1


def siphash(message: bytes, key: bytes) -> bytes:
    """8 bytes, of a key of 16."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    padded = message + bytes(-(len(message) + 1) % 8) + bytes([len(message) % 256])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        _rounds(v, 2)
        v[0] ^= word
    v[2] ^= 0xFF
    _rounds(v, 4)
    return (v[0] ^ v[1] ^ v[2] ^ v[3]).to_bytes(8, "little")


def _rounds(v: list[int], count: int) -> None:
    for _ in range(count):
        for a, b, c, d, left, right in ((0, 1, 2, 3, 13, 16), (2, 1, 0, 3, 17, 21)):
            v[a] = (v[a] + v[b]) & _ALL
            v[c] = (v[c] + v[d]) & _ALL
            v[b], v[d] = _turned(v[b], left) ^ v[a], _turned(v[d], right) ^ v[c]
            v[a] = _turned(v[a], 32)


def _turned(number: int, bits: int) -> int:
    return (number << bits | number >> 64 - bits) & _ALL
