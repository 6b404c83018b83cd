"""The primitives that CSE1 is made of, against published vectors: NIST CAVS, OpenSSL, RFC 4231."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from keys import envelope
from keys.mac import HmacSha256, hmac_sha512

VECTORS = Path(cryptography_vectors.__file__).parent
FILES = {
    envelope.SUITE_AES_GCM: "ciphers/AES/GCM/gcmDecrypt256.rsp",
    envelope.SUITE_AES_GCM_SIV: "ciphers/AES/GCM-SIV/openssl.txt",
    envelope.SUITE_CHACHA20: "ciphers/ChaCha20Poly1305/openssl.txt",
}
NAMES = {"ct": "ciphertext", "pt": "plaintext"}


def cases(path: str) -> Iterator[dict[str, bytes]]:
    """Every test case of a file, by lower-case names; `fail` where it has to be refused."""
    for block in re.split(r"\n\s*count = \d+", (VECTORS / path).read_text().lower())[1:]:
        found = dict(re.findall(r"^(\w+) =[ ]?([0-9a-f]*)$", block, re.MULTILINE))
        values = {NAMES.get(name, name): bytes.fromhex(value) for name, value in found.items()}
        failing = re.search(r"^(fail$|result = cipherfinal_error)", block, re.MULTILINE)
        yield values | ({"fail": b""} if failing else {})


@pytest.mark.parametrize("suite", FILES)
def test_a_cipher_suite_agrees_with_published_vectors(suite: int) -> None:
    """Opens and seals what fits our sizes; refuses every case that has to be refused."""
    opened = refused = 0
    for case in cases(FILES[suite]):
        if len(case["key"]) != 32 or len(case["iv"]) != 12 or len(case.get("tag", b"")) != 16:
            continue
        aead = envelope.Subkey(case["key"], b"", suite).aead
        sealed, aad = case["ciphertext"] + case["tag"], case.get("aad", b"")
        if "fail" in case:
            with pytest.raises(InvalidTag):
                aead.decrypt(case["iv"], sealed, aad)
            refused += 1
            continue
        assert aead.decrypt(case["iv"], sealed, aad) == case["plaintext"]
        assert aead.encrypt(case["iv"], case["plaintext"], aad) == sealed
        opened += 1
    assert opened > 0
    assert opened + refused > 1


def test_the_key_schedule_s_hmac_agrees_with_rfc_4231() -> None:
    """HMAC-SHA-512."""
    text = (VECTORS / "HMAC/rfc-4231-sha512.txt").read_text()
    found = re.findall(r"Key = (\w+)\n(?:#.*\n)*Msg = (\w+)\nMD = (\w+)", text)
    assert len(found) >= 5
    for key, message, digest in found:
        if len(key) <= 2 * 128:
            assert hmac_sha512(bytes.fromhex(key), bytes.fromhex(message)).hex() == digest


@given(st.binary(max_size=128), st.binary(max_size=300))
def test_our_hmac_is_that_of_the_standard_library(key: bytes, message: bytes) -> None:
    """Of both hashes; a key that would have to be hashed first is refused."""
    assert hmac_sha512(key, message) == hmac.digest(key, message, "sha512")
    assert HmacSha256(key[:64]).digest(message) == hmac.digest(key[:64], message, "sha256")
    with pytest.raises(ValueError, match="at most"):
        hmac_sha512(bytes(129), message)
    with pytest.raises(ValueError, match="at most"):
        HmacSha256(bytes(65))
