"""A decoder written from docs/formats/cse1.md alone; it imports nothing of ours."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV, ChaCha20Poly1305


def lp(*parts: bytes) -> bytes:
    """Each part behind its length."""
    return b"".join(len(p).to_bytes(2, "big") + p for p in parts)


def decode(vector: dict[str, Any]) -> bytes | str:
    """The body, or the code of the first check that fails."""
    e, table = bytes.fromhex(vector["envelope"]), bytes.fromhex(vector["table_uuid"])
    if len(e) < 81:
        return "length"
    if e[0] != 0xE1:
        return "magic"
    if e[1] not in (1, 2, 3):
        return "suite"
    if e[2] & ~3:
        return "flags"
    info = b"CSE1" + e[1:2] + lp(table, vector["field_class"].encode(), vector["purpose"].encode())
    okm = hmac.new(bytes.fromhex(vector["dek"]), info + e[5:21], hashlib.sha512).digest()
    if not hmac.compare_digest(okm[32:], e[21:53]):
        return "commitment"
    field, version = vector["field_id"].to_bytes(4, "big"), vector["schema_version"].to_bytes(4, "big")
    bound = b"CSE1" + lp(table, field, vector["event_type"].encode(), version) + e[2:5]
    bound += lp(bytes.fromhex(vector["ref"]), bytes.fromhex(vector["block_id"]))
    cipher = {1: AESGCM, 2: AESGCMSIV, 3: ChaCha20Poly1305}[e[1]](okm[:32])
    try:
        body = cipher.decrypt(e[53:65], e[65:], bound)
    except InvalidTag:
        return "tag"
    if e[2] & 2:
        body = body.rstrip(b"\0")
        if body[-1:] != b"\x80":
            return "padding"
        body = body[:-1]
    return decompressed(body) if e[2] & 1 else body


def decompressed(body: bytes) -> bytes | str:
    """The content of exactly one frame, or the code."""
    try:
        size, one = zstandard.frame_content_size(body), zstandard.ZstdDecompressor().decompressobj()
        if size <= 0 or size > 64 << 20:
            return "zstd_size_absent" if size < 0 else "zstd_size_over" if size else "zstd_size_zero"
        content = one.decompress(body)
    except zstandard.ZstdError:
        return "zstd_frame"
    if not one.eof or len(content) != size:
        return "zstd_frame"
    return "zstd_trailing" if one.unused_data else content
