"""A ciphertext that AES-GCM accepts under two keys, so that tests can show what a commitment is for.

The attack is of Dodis, Grubbs, Ristenpart and Woodage, "Fast Message Franking", 2018: the tag is linear
in the ciphertext's blocks, so one block can be chosen such that two keys want the same tag. Arithmetic in
GF(2^128) is that of NIST SP 800-38D, section 6.3.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_BLOCK = 16
_REDUCE = 0xE1 << 120
_ONE = 1 << 127


def sealed_for_two(first: bytes, second: bytes, nonce: bytes, bound: bytes) -> bytes:
    """Ciphertext and tag that both keys accept.

    Args:
        nonce: 12 bytes.
        bound: associated data.
    """
    hashed = [_hash_key(key) for key in (first, second)]
    masks = [_number(_encrypted(key, nonce + b"\0\0\0\1")) for key in (first, second)]
    free, fixed = 0, _number(b"a second block16")
    lengths = (len(bound) * 8 << 64) | 2 * _BLOCK * 8
    blocks = [*_blocks(bound), free, fixed, lengths]
    place = len(blocks) - 3  # of the free block
    power = len(blocks) - place
    wanted = masks[0] ^ masks[1] ^ _ghash(hashed[0], blocks) ^ _ghash(hashed[1], blocks)
    slope = _power(hashed[0], power) ^ _power(hashed[1], power)
    free = _times(wanted, _inverse(slope))
    blocks[place] = free
    tag = masks[0] ^ _ghash(hashed[0], blocks)
    return b"".join(one.to_bytes(_BLOCK, "big") for one in (free, fixed, tag))


def _hash_key(key: bytes) -> int:
    return _number(_encrypted(key, bytes(_BLOCK)))


def _encrypted(key: bytes, block: bytes) -> bytes:
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)


def _number(block: bytes) -> int:
    return int.from_bytes(block, "big")


def _blocks(raw: bytes) -> list[int]:
    return [_number(raw[at : at + _BLOCK].ljust(_BLOCK, b"\0")) for at in range(0, len(raw), _BLOCK)]


def _ghash(key: int, blocks: list[int]) -> int:
    found = 0
    for block in blocks:
        found = _times(found ^ block, key)
    return found


def _times(left: int, right: int) -> int:
    found = 0
    for bit in range(127, -1, -1):
        if left >> bit & 1:
            found ^= right
        right = right >> 1 ^ (_REDUCE if right & 1 else 0)
    return found


def _power(base: int, exponent: int) -> int:
    found = _ONE
    for _ in range(exponent):
        found = _times(found, base)
    return found


def _inverse(number: int) -> int:
    """By Fermat: the power 2^128 - 2."""
    found, square = _ONE, number
    for _ in range(127):
        square = _times(square, square)
        found = _times(found, square)
    return found
