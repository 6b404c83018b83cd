"""CSE1, the sealed value. Pure: keys, salts and nonces are passed in.

Wire format (big endian; docs/formats/cse1.md)::

    off len
      0   1  0xE1
      1   1  suite: 1 AES-256-GCM, 2 AES-256-GCM-SIV, 3 ChaCha20-Poly1305
      2   1  flags: 0x01 zstd before seal, 0x02 padded length (Padmé)
      3   2  generation
      5  16  salt of the writer session
     21  32  commitment
     53  12  nonce
     65   n  ciphertext ‖ 16-byte tag

The key schedule is one HMAC-SHA512 call (RFC 2104) whose halves are the key and a commitment to it;
committing makes "one ciphertext, two keys" impossible (Albertini et al., "How to Abuse and Fix
Authenticated Encryption Without Key Commitment", 2022). Padmé is from Nikitin et al., "Reducing
Metadata Leakage from Encrypted Files and Communication with PURBs", 2019.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Sequence
from hmac import compare_digest
from typing import Final, NamedTuple, NoReturn

import zstandard
from attrs import frozen
from cryptography.exceptions import InvalidTag

from keys.aead import (
    AEADS,
    NONCE_BYTES,
    SUITE_AES_GCM,
    SUITE_AES_GCM_SIV,
    SUITE_CHACHA20,
    TAG_BYTES,
    Cipher,
    cipher,
)
from keys.errors import EnvelopeFault, TamperedEnvelope, WrongKey, malformed
from keys.frames import MAX_CONTENT_BYTES, Body, as_bytes, contents
from keys.mac import hmac_sha512s

MAGIC: Final = 0xE1
FLAG_ZSTD: Final = 0x01
FLAG_PADDED: Final = 0x02
SALT_BYTES: Final = 16
HEADER_BYTES: Final = 65
COMPRESS_ABOVE_BYTES: Final = 512
_HEAD: Final = struct.Struct(">BBBH16s32s12s")
_BEHIND_MAGIC: Final = struct.Struct(">xBBH16s32s12s")
_FIRST: Final = struct.Struct(">BBBH")
_TAIL: Final = struct.Struct(">BHH")
_LENGTH: Final = struct.Struct(">H")
_FLAGS: Final = FLAG_ZSTD | FLAG_PADDED
_new_tuple: Final = tuple.__new__
"""Makes a NamedTuple of a tuple: a third of the time, where millions are made."""


CIPHERS: Final = {
    "aes-256-gcm": SUITE_AES_GCM,
    "aes-256-gcm-siv": SUITE_AES_GCM_SIV,
    "chacha20-poly1305": SUITE_CHACHA20,
}
"""Cipher suites by the names of RFC 5288, RFC 8452 and RFC 8439, in lower case."""


@frozen
class FieldContext:
    """What a sealed value is bound to besides its subject and block.

    Attributes:
        table_uuid: 16 bytes.
        field_id: the Iceberg field id of the sealed column.
        field_class: `personal`, `state`, `view`, … : separates subkeys of one DEK.
        purpose: the purpose whose DEK seals.
        event_type, schema_version: of the records inside.
    """

    table_uuid: bytes
    field_id: int
    field_class: str
    purpose: str
    event_type: str
    schema_version: int

    def derivation_info(self, suite: int) -> bytes:
        """The context part of the key schedule."""
        return (
            b"CSE1"
            + bytes((suite,))
            + prefixed(self.table_uuid, self.field_class.encode(), self.purpose.encode())
        )

    def associated_prefix(self) -> bytes:
        """The part of the associated data that all blocks of one context share."""
        return b"CSE1" + prefixed(
            self.table_uuid,
            self.field_id.to_bytes(4, "big"),
            self.event_type.encode(),
            self.schema_version.to_bytes(4, "big"),
        )


class Header(NamedTuple):
    """The clear head of an envelope behind its magic byte; see the module for the layout."""

    suite: int
    flags: int
    generation: int
    salt: bytes
    commitment: bytes
    nonce: bytes


class Subkey(NamedTuple):
    """A derived key of one (DEK, context, salt); a tuple because millions are made.

    Cipher objects are made at each use: kept they would take 2.5 KB each.
    """

    key: bytes
    commitment: bytes
    suite: int
    generation: int = 0
    """Of the DEK it was derived from, where the deriver says so."""

    def __repr__(self) -> str:
        return "Subkey(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled")


def prefixed(*parts: bytes) -> bytes:
    """Each part behind its length as u16: an injective encoding of a tuple of byte strings."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def derive(dek: bytes, info: bytes, salt: bytes, suite: int = SUITE_AES_GCM, generation: int = 0) -> Subkey:
    """The subkey of a 32-byte DEK for `FieldContext.derivation_info` and a 16-byte salt."""
    (subkey,) = derive_many([dek], info, salt, suite, [generation])
    return subkey


def derive_many(
    deks: Sequence[bytes], info: bytes, salt: bytes, suite: int, generations: Iterable[int]
) -> list[Subkey]:
    """The subkey of each DEK, for one salt."""
    return subkeys_of(b"".join(hmac_sha512s(deks, info + salt)), generations, suite)


def subkeys_of(packed: bytes, generations: Iterable[int], suite: int) -> list[Subkey]:
    """Subkeys out of their 64 bytes each, as `hmac_sha512s` gives them, one behind the other."""
    halves = [packed[at : at + 32] for at in range(0, len(packed), 32)]
    parts = zip(halves[::2], halves[1::2], itertools.repeat(suite), generations, strict=False)
    return [_new_tuple(Subkey, part) for part in parts]


def associated_data(prefix: bytes, flags: int, generation: int, ref: bytes, block_id: bytes) -> bytes:
    """The whole associated data: shared prefix, flags, generation, SubjectRef and block id."""
    before, between = _bound_parts(prefix, flags, generation, len(ref), len(block_id))
    return before + ref + between + block_id


def _bound_parts(
    prefix: bytes, flags: int, generation: int, ref_bytes: int, block_id_bytes: int
) -> tuple[bytes, bytes]:
    """What stands before the SubjectRef, and between it and the block id: blocks of a kind share it."""
    return prefix + _TAIL.pack(flags, generation, ref_bytes), _LENGTH.pack(block_id_bytes)


def padme_length(length: int) -> int:
    """The padded length of `length` bytes; overhead at most 12 %, leaks O(log log length) bits."""
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    zeros = exponent - exponent.bit_length()
    mask = (1 << zeros) - 1
    return (length + mask) & ~mask


def seal(
    subkey: Subkey,
    body: bytes,
    *,
    prefix: bytes,
    ref: bytes,
    block_id: bytes,
    generation: int,
    salt: bytes,
    nonce: bytes,
    suite: int = SUITE_AES_GCM,
    compressor: zstandard.ZstdCompressor | None = None,
    pad: bool = False,
) -> bytes:
    """Seals `body`, of any size; compresses first where that helps. The nonce must be random and fresh."""
    row = subkey._replace(generation=generation), ref, block_id, body
    choose = (lambda size: compressor) if compressor is not None else None
    (sealed,) = seal_many([row], nonce, prefix=prefix, salt=salt, suite=suite, choose=choose, pad=pad)
    return sealed


def seal_many(
    rows: Iterable[tuple[Subkey, bytes, bytes, bytes]],
    nonces: bytes,
    *,
    prefix: bytes,
    salt: bytes,
    suite: int,
    choose: Callable[[int], zstandard.ZstdCompressor] | None = None,
    pad: bool = False,
) -> list[bytes]:
    """Seals each body under its subkey, bound to its ref and block id.

    Args:
        rows: (subkey with the generation of its DEK, ref, block id, body).
        nonces: 12 random and fresh bytes of each, one behind the other.
        choose: gives the compressor for a body of so many bytes; None compresses nothing.
    """
    encrypt = cipher(suite).encrypt
    parts: dict[tuple[int, int, int, int], tuple[bytes, bytes, bytes]] = {}
    sealed: list[bytes] = []
    at = 0
    for subkey, ref, block_id, body in rows:
        key, commitment, _, generation = subkey
        flags = 0
        if COMPRESS_ABOVE_BYTES < len(body) <= MAX_CONTENT_BYTES and choose is not None:
            packed = choose(len(body)).compress(body)
            if len(packed) < len(body):
                body, flags = packed, FLAG_ZSTD
        if pad:
            flags |= FLAG_PADDED
            body = (body + b"\x80").ljust(padme_length(len(body) + 1), b"\x00")
        shared = flags, generation, len(ref), len(block_id)
        part = parts.get(shared)
        if part is None:  # what blocks of the same generation share is put together once
            first = _FIRST.pack(MAGIC, suite, flags, generation) + salt
            part = parts[shared] = first, *_bound_parts(prefix, *shared)
        first, before, between = part
        nonce = nonces[at : at + NONCE_BYTES]
        at += NONCE_BYTES
        ciphertext = encrypt(key, nonce, body, before + ref + between + block_id)
        sealed.append(first + commitment + nonce + ciphertext)
    return sealed


def parse(envelope: bytes) -> Header:
    """The header of an envelope.

    Raises:
        MalformedEnvelope: too short, foreign magic, unknown suite or unknown flags.
    """
    if len(envelope) < HEADER_BYTES + TAG_BYTES:
        raise malformed(EnvelopeFault.LENGTH, f"{len(envelope)} bytes are too few for an envelope")
    head = _HEAD.unpack_from(envelope)
    magic, suite, flags = head[:3]
    if magic != MAGIC:
        raise malformed(EnvelopeFault.MAGIC, "the first byte is not that of a CSE1 envelope")
    if suite not in AEADS:
        raise malformed(EnvelopeFault.SUITE, f"cipher suite {suite} is not known")
    if flags & ~_FLAGS:
        raise malformed(EnvelopeFault.FLAGS, f"flags 0x{flags:02x} hold bits that are not defined")
    return _new_tuple(Header, head[1:])


def parse_many(envelopes: Sequence[bytes]) -> list[Header]:
    """`parse` of each, in a third less."""
    kinds = {envelope[:3] for envelope in envelopes}
    if min(map(len, envelopes), default=0) < HEADER_BYTES + TAG_BYTES or any(
        magic != MAGIC or suite not in AEADS or flags & ~_FLAGS for magic, suite, flags in kinds
    ):
        return [parse(envelope) for envelope in envelopes]  # says what is wrong
    return [_new_tuple(Header, _BEHIND_MAGIC.unpack_from(envelope)) for envelope in envelopes]


def open_sealed(
    subkey: Subkey,
    header: Header,
    envelope: bytes,
    *,
    prefix: bytes,
    ref: bytes,
    block_id: bytes,
    decompressor: zstandard.ZstdDecompressor | None = None,
) -> bytes:
    """The body of an envelope; see `open_many`."""
    (body,) = open_many(
        [(subkey, header, ref, block_id, envelope)],
        prefix=prefix,
        decompressor=decompressor or zstandard.ZstdDecompressor(),
    )
    return as_bytes(body)


def open_many(
    rows: Iterable[tuple[Subkey, Header, bytes, bytes, bytes]],
    *,
    prefix: bytes,
    decompressor: zstandard.ZstdDecompressor,
) -> list[Body]:
    """The body of each envelope.

    Args:
        rows: (subkey, what `parse` says of the envelope, ref, block id, envelope).

    Raises:
        WrongKey: a commitment is another key's.
        TamperedEnvelope: a tag does not match bytes and context.
        MalformedEnvelope: an opened body is not what the flags promise.
    """
    bodies: list[Body] = []
    frames: list[bytes] = []
    framed: list[int] = []
    openers: dict[int, Cipher] = {}
    opener: Cipher | None = None
    opened_suite = kind = None
    for subkey, header, ref, block_id, envelope in rows:
        named_suite, flags, generation, _, commitment, nonce = header
        key, own_commitment, suite, _ = subkey
        # A subkey is derived for its suite: one of another suite would have another commitment.
        if named_suite != suite or not compare_digest(commitment, own_commitment):
            raise WrongKey("the envelope commits to another key", fault=EnvelopeFault.COMMITMENT)
        if opener is None or suite != opened_suite:
            opener = openers.get(suite) or openers.setdefault(suite, cipher(suite))
            opened_suite = suite
        shared = flags, generation, len(ref), len(block_id)
        if shared != kind:
            kind, (before, between) = shared, _bound_parts(prefix, *shared)
        try:
            body = opener.decrypt(key, nonce, envelope[HEADER_BYTES:], before + ref + between + block_id)
        except InvalidTag:
            raise TamperedEnvelope(
                "the envelope or the row around it was changed", fault=EnvelopeFault.TAG
            ) from None
        if flags & FLAG_PADDED:
            body = body.rstrip(b"\x00")
            if not body.endswith(b"\x80"):
                raise malformed(EnvelopeFault.PADDING, "the padding has no end mark")
            body = body[:-1]
        if flags & FLAG_ZSTD:
            frames.append(body)
            framed.append(len(bodies))
        bodies.append(body)
    opened = contents(frames, decompressor)
    if len(opened) == len(bodies):
        return opened
    for at, content in zip(framed, opened, strict=True):
        bodies[at] = content
    return bodies
