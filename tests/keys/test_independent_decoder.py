"""A decoder written from docs/formats/cse1.md alone; it imports nothing of ours."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV, ChaCha20Poly1305

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "cse1.json").read_text())


def lp(*parts: bytes) -> bytes:
    """Each part behind its length."""
    return b"".join(len(p).to_bytes(2, "big") + p for p in parts)


def decode(vector: dict[str, Any]) -> bytes | str:
    """The body, or the name of the error."""
    e, table = bytes.fromhex(vector["envelope"]), bytes.fromhex(vector["table_uuid"])
    if len(e) < 81 or e[0] != 0xE1 or e[1] not in (1, 2, 3) or e[2] & ~3:
        return "MalformedEnvelope"
    info = b"CSE1" + e[1:2] + lp(table, vector["field_class"].encode(), vector["purpose"].encode())
    okm = hmac.new(bytes.fromhex(vector["dek"]), info + e[5:21], hashlib.sha512).digest()
    if not hmac.compare_digest(okm[32:], e[21:53]):
        return "WrongKey"
    field, version = vector["field_id"].to_bytes(4, "big"), vector["schema_version"].to_bytes(4, "big")
    bound = b"CSE1" + lp(table, field, vector["event_type"].encode(), version) + e[2:5]
    bound += lp(bytes.fromhex(vector["ref"]), bytes.fromhex(vector["block_id"]))
    cipher = {1: AESGCM, 2: AESGCMSIV, 3: ChaCha20Poly1305}[e[1]](okm[:32])
    try:
        body = cipher.decrypt(e[53:65], e[65:], bound)
    except InvalidTag:
        return "TamperedEnvelope"
    if e[2] & 2:
        body = body.rstrip(b"\0")
        if body[-1:] != b"\x80":
            return "MalformedEnvelope"
        body = body[:-1]
    return zstandard.ZstdDecompressor().decompress(body) if e[2] & 1 else body


@pytest.mark.parametrize("vector", VECTORS["must_pass"], ids=lambda v: v["name"])
def test_a_must_pass_vector_opens(vector: dict[str, Any]) -> None:
    """To its body."""
    assert decode(vector) == bytes.fromhex(vector["body"])


@pytest.mark.parametrize("vector", VECTORS["must_fail"], ids=lambda v: v["name"])
def test_a_must_fail_vector_is_refused(vector: dict[str, Any]) -> None:
    """With its own error."""
    assert decode(vector) == vector["error"], vector["reason"]
