"""Every primitive that keys, envelopes, receipts and logs are made of, against published vectors.

NIST CAVS, OpenSSL, BoringSSL, RFC 4231, RFC 7693 and the Ed25519 authors'. Where our code has a function
around the primitive, that is what is called.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from keys import Keyring, aead, signature_is_valid, tree
from keys.handles import Handles
from keys.mac import HmacSha256, hmac_sha512s
from purge.verifier import Refused, _check_signature
from tests.keys.blake2b import blake2b
from tests.keys.people import assemble, provision

VECTORS = Path(cryptography_vectors.__file__).parent
FILES = [
    (aead.SUITE_AES_GCM, "ciphers/AES/GCM/gcmDecrypt256.rsp"),
    (aead.SUITE_AES_GCM, "ciphers/AES/GCM/gcmEncryptExtIV256.rsp"),
    (aead.SUITE_AES_GCM_SIV, "ciphers/AES/GCM-SIV/openssl.txt"),
    (aead.SUITE_CHACHA20, "ciphers/ChaCha20Poly1305/openssl.txt"),
    (aead.SUITE_CHACHA20, "ciphers/ChaCha20Poly1305/boringssl.txt"),
]
NAMES = {"ct": "ciphertext", "pt": "plaintext", "in": "plaintext", "nonce": "iv", "ad": "aad"}
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493
HANDLE_PAGE_BYTES = 6


def cases(path: str) -> Iterator[dict[str, bytes]]:
    """Every test case of a file, by lower-case names; `fail` where it has to be refused."""
    for block in re.split(r"\n\s*(?:COUNT|Count) = \d+", (VECTORS / path).read_text())[1:]:
        found = re.findall(r'^(\w+) ?=[ ]?("[^"\n]*"|[0-9a-fA-F]*)$', block, re.MULTILINE)
        values = {NAMES.get(name.lower(), name.lower()): _bytes(value) for name, value in found}
        failing = re.search(r"^(FAIL$|Result = CIPHERFINAL_ERROR)", block, re.MULTILINE)
        yield values | ({"fail": b""} if failing else {})


def _bytes(value: str) -> bytes:
    return value[1:-1].encode() if value.startswith('"') else bytes.fromhex(value)


@pytest.mark.parametrize("make", [aead.cipher, aead.PerKey])
@pytest.mark.parametrize(("suite", "path"), FILES, ids=lambda v: str(v))
def test_a_cipher_suite_agrees_with_published_vectors(
    suite: int, path: str, make: Callable[[int], aead.Cipher]
) -> None:
    """Opens and seals what fits our sizes; refuses every case that has to be refused, and every changed one."""
    opened = refused = 0
    one = make(suite)
    for case in cases(path):
        if len(case["key"]) != 32 or len(case["iv"]) != 12 or len(case.get("tag", b"")) != 16:
            continue
        key = case["key"]
        sealed, aad = case["ciphertext"] + case["tag"], case.get("aad", b"")
        if "fail" in case:
            with pytest.raises(InvalidTag):
                one.decrypt(key, case["iv"], sealed, aad)
            refused += 1
            continue
        assert one.decrypt(key, case["iv"], sealed, aad) == case["plaintext"]
        assert one.encrypt(key, case["iv"], case["plaintext"], aad) == sealed
        opened += 1
        for iv, changed, bound in (
            (_flipped(case["iv"], 0), sealed, aad),
            (case["iv"], _flipped(sealed, 0), aad),
            (case["iv"], _flipped(sealed, len(sealed) - 1), aad),
            (case["iv"], sealed[1:], aad),
            (case["iv"], sealed, aad + b"\0"),
        ):
            with pytest.raises(InvalidTag):
                one.decrypt(key, iv, changed, bound)
    assert opened > 0
    assert opened + refused > 1


@pytest.mark.skipif(not aead.HAS_SODIUM, reason="this processor has no instructions for AES")
@given(
    st.lists(
        st.tuples(
            st.sampled_from([bytes(32), b"k" * 32, bytes(range(32))]),
            st.binary(min_size=12, max_size=12),
            st.binary(max_size=200) | st.integers(65_500, 70_000).map(bytes),
            st.binary(max_size=100),
        ),
        max_size=6,
    )
)
def test_both_libraries_seal_alike_and_open_each_others(
    messages: list[tuple[bytes, bytes, bytes, bytes]],
) -> None:
    """Of any size, with the key of the message before or with another."""
    one, other = aead.cipher(aead.SUITE_AES_GCM), aead.PerKey(aead.SUITE_AES_GCM)
    assert isinstance(one, aead.SodiumGcm)
    for key, nonce, data, bound in messages:
        sealed = one.encrypt(key, nonce, data, bound)
        assert sealed == other.encrypt(key, nonce, data, bound)
        assert one.decrypt(key, nonce, sealed, bound) == other.decrypt(key, nonce, sealed, bound) == data


@pytest.mark.skipif(not aead.HAS_SODIUM, reason="this processor has no instructions for AES")
def test_keys_and_nonces_of_another_length_and_ciphertexts_without_a_tag_are_refused() -> None:
    """The library would read on behind them."""
    one = aead.SodiumGcm()
    for key, nonce in ((bytes(31), bytes(12)), (bytes(33), bytes(12)), (bytes(32), bytes(11)), (b"", b"")):
        with pytest.raises(ValueError, match="a key of 32 bytes and a nonce of 12"):
            one.encrypt(key, nonce, b"data", b"")
        with pytest.raises(ValueError, match="a key of 32 bytes and a nonce of 12"):
            one.decrypt(key, nonce, bytes(20), b"")
    for short in range(16):
        with pytest.raises(InvalidTag):
            one.decrypt(bytes(32), bytes(12), bytes(short), b"")


def test_where_libsodium_is_not_to_be_had_openssl_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aead, "HAS_SODIUM", False)
    assert isinstance(aead.cipher(aead.SUITE_AES_GCM), aead.PerKey)


def _flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes((raw[at] ^ 1,)) + raw[at + 1 :]


def test_the_records_of_the_key_tree_are_aes_256_gcm() -> None:
    """Nonce, ciphertext and tag of NIST's vectors open as a page or node record does, and are made as one."""
    seen = 0
    for case in cases("ciphers/AES/GCM/gcmEncryptExtIV256.rsp"):
        if len(case["iv"]) == 12 and len(case["tag"]) == 16:
            iv, sealed = case["iv"], case["iv"] + case["ciphertext"] + case["tag"]
            assert tree.open_record(case["key"], sealed, case["aad"]) == case["plaintext"]
            assert (
                tree.seal_record(case["key"], case["plaintext"], case["aad"], lambda _, iv=iv: iv) == sealed
            )
            seen += 1
    assert seen > 100


@pytest.mark.parametrize("name", ["GFSbox", "KeySbox", "VarKey", "VarTxt", "MMT"])
def test_a_handle_is_one_block_of_aes_256(name: str) -> None:
    """Both ways, by NIST's vectors: the permutation of handles, which the blind index uses as well."""
    seen = 0
    for case in cases(f"ciphers/AES/ECB/ECB{name}256.rsp"):
        for at in range(0, len(case["plaintext"]), 16):
            plain, block = case["plaintext"][at : at + 16], case["ciphertext"][at : at + 16]
            page, rest = int.from_bytes(plain[:HANDLE_PAGE_BYTES], "big"), plain[HANDLE_PAGE_BYTES:]
            handles = Handles(case["key"])
            assert handles.make(page, 1, lambda _, rest=rest: rest) == [block]
            assert handles.homes([block]) == [page]
            seen += 1
    assert seen >= 10


@pytest.mark.parametrize("bits", [256, 512])
def test_our_hmac_agrees_with_rfc_4231(bits: int) -> None:
    """The key schedule's HMAC-SHA-512; HMAC-SHA-256 of the blind index and the fence log."""
    text = (VECTORS / f"HMAC/rfc-4231-sha{bits}.txt").read_text()
    found = re.findall(r"Key = (\w+)\n(?:#.*\n)*Msg = (\w+)\nMD = (\w+)", text)
    assert len(found) >= 5
    for key, message, digest in found:
        raw, said = bytes.fromhex(key), bytes.fromhex(message)
        if len(raw) <= bits // 4:  # a block of the hash
            mine = hmac_sha512s([raw], said)[0] if bits == 512 else HmacSha256(raw).digest(said)
            assert mine.hex() == digest


@given(st.binary(max_size=128), st.binary(max_size=300))
def test_our_hmac_is_that_of_the_standard_library(key: bytes, message: bytes) -> None:
    """Of both hashes; a key that would have to be hashed first is refused, and so are keys of several lengths."""
    keys = [key, key[::-1], key]
    assert hmac_sha512s(keys, message) == [hmac.digest(one, message, "sha512") for one in keys]
    assert HmacSha256(key[:64]).digest(message) == hmac.digest(key[:64], message, "sha256")
    assert hmac_sha512s([], message) == []
    for refused in ([bytes(129)], [bytes(3), bytes(4)]):
        with pytest.raises(ValueError, match="one length and have at most"):
            hmac_sha512s(refused, message)
    with pytest.raises(ValueError, match="at most"):
        HmacSha256(bytes(65))


@pytest.mark.parametrize("bits", [256, 512])
def test_sha_2_agrees_with_published_vectors(bits: int) -> None:
    """Hash chains, Merkle leaves and key ids are SHA-256; the key schedule stands on SHA-512."""
    found = []
    for length in ("Short", "Long"):
        text = (VECTORS / f"hashes/SHA2/SHA{bits}{length}Msg.rsp").read_text()
        found += re.findall(r"Len = (\d+)\nMsg = (\w+)\nMD = (\w+)", text)
    assert len(found) > 100
    for size, message, digest in found:
        said = bytes.fromhex(message)[: int(size) // 8]
        assert hashlib.new(f"sha{bits}", said).hexdigest() == digest


def test_blake2b_agrees_with_rfc_7693() -> None:
    """Keyed and not, over many lengths: the self-test of appendix E, with both implementations."""

    def of(length: int) -> bytes:
        """Appendix E's deterministic sequence."""
        a, b, found = 0xDEAD4BAD * length & 0xFFFFFFFF, 1, bytearray()
        for _ in range(length):
            a, b = b, (a + b) & 0xFFFFFFFF
            found.append(b >> 24)
        return bytes(found)

    theirs, ours = bytearray(), bytearray()
    for digest_bytes in (20, 32, 48, 64):
        for length in (0, 3, 128, 129, 255, 1024):
            for key in (b"", of(digest_bytes)):
                said = of(length)
                theirs += hashlib.blake2b(said, digest_size=digest_bytes, key=key).digest()
                ours += blake2b(said, digest_bytes=digest_bytes, key=key)
    for grand in (theirs, ours):
        digest = hashlib.blake2b(grand, digest_size=32).hexdigest()
        assert digest == "c23a7800d98123bd10f506c61e29da5603d763b8bbad2e737f5e765a7bccd475"


def test_the_key_of_event_tags_is_keyed_and_personalised_blake2b(tmp_path: Path) -> None:
    """The half of a digest under the person's key, as an implementation of our own computes it."""
    keyring: Keyring = assemble(tmp_path)
    ref = provision(keyring).ref
    (record,) = keyring.tree.records_of([ref])
    expected = blake2b(b"", key=record.dek, person=b"CSE1 event tag")[:32]
    assert keyring.resident.tag_keys([ref]) == {ref: expected}
    keyring.close()


def test_ed25519_agrees_with_its_authors_vectors() -> None:
    """Signing as the embedded custodian does, checking as copies of the fence log and receipts do.

    And what has to be refused: another message or key, a changed or cut signature, and the same one with
    the group's order added to its second half (RFC 8032, section 5.1.7).
    """
    lines = (VECTORS / "asymmetric/Ed25519/sign.input").read_text().splitlines()
    assert len(lines) >= 1024
    for line in lines[::4]:
        secret, key, message, signed = (bytes.fromhex(part) for part in line.split(":")[:4])
        signature = signed[:64]
        assert Ed25519PrivateKey.from_private_bytes(secret[:32]).sign(message) == signature
        assert signature_is_valid(key, message, signature)
        _check_signature(key, signature, message)
        again = int.from_bytes(signature[32:], "little") + ED25519_ORDER
        for bad_key, bad_message, bad_signature in (
            (key, message + b"\0", signature),
            (secret[:32], message, signature),
            (key, message, _flipped(signature, 0)),
            (key, message, _flipped(signature, 63)),
            (key, message, signature[:63]),
            (key, message, signature[:32] + again.to_bytes(32, "little")),
        ):
            assert not signature_is_valid(bad_key, bad_message, bad_signature)
            with pytest.raises(Refused):
                _check_signature(bad_key, bad_signature, bad_message)
