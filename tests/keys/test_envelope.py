"""CSE1 against its vectors, and against any change of any byte."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from keys import EnvelopeError, EnvelopeFault, FieldContext, MalformedEnvelope, WrongKey, agentwire
from keys import envelope as cse1
from keys.aead import SUITE_CHACHA20
from keys.frames import MAX_CONTENT_BYTES
from tests.keys.twokeys import sealed_for_two
from tests.vectors.decoder import decode
from tests.vectors.generate import (
    BLOCK,
    CONTEXT,
    DEK,
    NONCE,
    PATH,
    REF,
    SALT,
    SUITES,
    case,
    sealed_raw,
    vectors,
)

VECTORS = json.loads(PATH.read_text())
PAGE = (Path(__file__).parents[2] / "docs" / "formats" / "cse1.md").read_text()
DOCUMENTED = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE, re.MULTILINE))
"""Code of a fault → its error, as the page on the format says."""
ONLY_WITH_A_HISTORY = {"generation_unknown", "generation_changed"}
"""What only a reader that knows a person's generations can say; see test_sealing.py."""
KEY = cse1.derive(DEK, CONTEXT.derivation_info(1), SALT)


def open_vector(vector: dict[str, Any]) -> bytes:
    """Opens as the package does."""
    context = FieldContext(
        bytes.fromhex(vector["table_uuid"]),
        vector["field_id"],
        vector["field_class"],
        vector["purpose"],
        vector["event_type"],
        vector["schema_version"],
    )
    envelope = bytes.fromhex(vector["envelope"])
    header = cse1.parse(envelope)
    info = context.derivation_info(header.suite)
    subkey = cse1.derive(bytes.fromhex(vector["dek"]), info, header.salt, header.suite)
    return cse1.open_sealed(
        subkey,
        header,
        envelope,
        prefix=context.associated_prefix(),
        ref=bytes.fromhex(vector["ref"]),
        block_id=bytes.fromhex(vector["block_id"]),
    )


def seal(
    body: bytes,
    *,
    pad: bool = False,
    key: cse1.Subkey = KEY,
    compressor: zstandard.ZstdCompressor | None = None,
) -> bytes:
    """An envelope in the vectors' context."""
    return cse1.seal(
        key,
        body,
        prefix=CONTEXT.associated_prefix(),
        ref=REF,
        block_id=BLOCK,
        generation=1,
        salt=SALT,
        nonce=NONCE,
        pad=pad,
        compressor=compressor,
    )


def test_a_body_too_large_to_be_opened_compressed_is_sealed_as_it_is() -> None:
    """What was sealed opens, whatever its size; a byte less is compressed."""
    for size, is_compressed in ((MAX_CONTENT_BYTES, True), (MAX_CONTENT_BYTES + 1, False)):
        body = bytes(size)
        sealed = seal(body, compressor=zstandard.ZstdCompressor(level=1))
        assert bool(cse1.parse(sealed).flags & cse1.FLAG_ZSTD) == is_compressed
        assert unseal(sealed) == body


def unseal(envelope: bytes, key: cse1.Subkey = KEY) -> bytes:
    """Opens in the vectors' context."""
    header = cse1.parse(envelope)
    return cse1.open_sealed(
        key, header, envelope, prefix=CONTEXT.associated_prefix(), ref=REF, block_id=BLOCK
    )


@pytest.mark.parametrize("vector", VECTORS["must_pass"], ids=lambda v: v["name"])
def test_a_must_pass_vector_opens(vector: dict[str, Any]) -> None:
    """To its body."""
    assert open_vector(vector) == bytes.fromhex(vector["body"])


@pytest.mark.parametrize("vector", VECTORS["must_fail"], ids=lambda v: v["name"])
def test_a_must_fail_vector_has_the_code_and_the_error_of_its_fault(vector: dict[str, Any]) -> None:
    """As the page on the format pairs them."""
    with pytest.raises(EnvelopeError) as refused:
        open_vector(vector)
    assert refused.value.fault == vector["fault"], vector["reason"]
    assert type(refused.value).__name__ == DOCUMENTED[vector["fault"]]


def test_every_code_is_documented_and_has_vectors_under_every_suite() -> None:
    """But for what one envelope and one key cannot show."""
    assert set(DOCUMENTED) == set(EnvelopeFault)
    for suite in SUITES:
        mine = {v["fault"] for v in VECTORS["must_fail"] if v["name"].startswith(f"suite {suite}:")}
        assert mine == set(EnvelopeFault) - ONLY_WITH_A_HISTORY


def test_a_fault_is_told_across_processes_and_by_the_key_agent() -> None:
    """A worker of a build pickles its error, the agent sends it; one of a newer agent is an error still."""
    error = MalformedEnvelope("words", fault=EnvelopeFault.PADDING, next_step="Do.")
    told = (pickle.loads(pickle.dumps(error)), agentwire.error_of(agentwire.error_message(error)["error"]))
    for one in told:
        assert (type(one), one.message, one.next_step) == (MalformedEnvelope, "words", "Do.")
        assert isinstance(one, MalformedEnvelope)
        assert one.fault is EnvelopeFault.PADDING
    newer = agentwire.error_message(error)["error"] | {"fault": "not known yet"}
    assert str(agentwire.error_of(newer)) == "words"


def test_the_vectors_are_what_the_generator_makes() -> None:
    """But for compressed ones, whose bytes depend on the zstd release."""
    again = vectors()
    for kind in ("must_pass", "must_fail"):
        for stored, made in zip(VECTORS[kind], again[kind], strict=True):
            if "compressed" not in stored["name"]:
                assert stored == made


@given(st.binary(max_size=600), st.booleans(), st.data())
def test_any_changed_byte_is_an_error_with_a_documented_code(
    body: bytes, pad: bool, data: st.DataObject
) -> None:
    """Never another plaintext, and never an erasure."""
    envelope = seal(body, pad=pad)
    assert unseal(envelope) == body
    changed = bytearray(envelope)
    changed[data.draw(st.integers(0, len(envelope) - 1))] ^= data.draw(st.integers(1, 255))
    # The salt derives the key outside of `unseal`; here the commitment stands for it.
    if bytes(changed[5:21]) == envelope[5:21]:
        with pytest.raises(EnvelopeError) as refused:
            unseal(bytes(changed))
        assert refused.value.fault in DOCUMENTED


def test_an_envelope_that_names_another_suite_than_its_key_is_of_is_refused() -> None:
    """Its commitment is right, since nobody has derived a key for the suite that it names."""
    changed = bytearray(seal(b"a body"))
    changed[1] = SUITE_CHACHA20
    with pytest.raises(WrongKey) as refused:
        unseal(bytes(changed))
    assert refused.value.fault is EnvelopeFault.COMMITMENT


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"\xe1\x01\x00" + tail))
def test_garbage_is_refused_with_a_documented_code(garbage: bytes) -> None:
    """Whatever the bytes."""
    with pytest.raises(EnvelopeError) as refused:
        unseal(garbage)
    assert refused.value.fault in DOCUMENTED


@given(
    st.binary(max_size=80),
    st.sampled_from((b"", b"\x28\xb5\x2f\xfd")),
    st.sampled_from((0, 1, 2, 3)),
    st.sampled_from(SUITES),
)
def test_any_authentic_body_opens_or_is_refused_as_the_independent_decoder_says(
    body: bytes, magic: bytes, flags: int, suite: int
) -> None:
    """The same body, or the same code, whatever a faulty writer sealed."""
    vector = case("any", sealed_raw(magic + body, flags, suite))
    try:
        found: bytes | str = open_vector(vector)
    except EnvelopeError as error:
        found = str(error.fault)
    assert found == decode(vector)


def test_one_ciphertext_never_opens_under_two_keys() -> None:
    """AES-GCM alone lets a ciphertext be made that two keys accept; the commitment is of one of them."""
    keys = [KEY, cse1.derive(bytes(32), CONTEXT.derivation_info(1), SALT)]
    prefix, nonce = CONTEXT.associated_prefix(), bytes(12)
    bound = cse1.associated_data(prefix, 0, 1, REF, BLOCK)
    twice = sealed_for_two(keys[0].key, keys[1].key, nonce, bound)
    first, second = (AESGCM(one.key).decrypt(nonce, twice, bound) for one in keys)
    assert first != second
    for mine, other, body in ((*keys, first), (*reversed(keys), second)):
        envelope = bytes((0xE1, 1, 0, 0, 1)) + SALT + mine.commitment + nonce + twice
        assert unseal(envelope, mine) == body
        with pytest.raises(WrongKey):
            unseal(envelope, other)


@given(st.integers(0, 10**7))
def test_padding_costs_at_most_an_eighth_and_hides_the_length(length: int) -> None:
    """Padmé's promise."""
    padded = cse1.padme_length(length)
    assert length <= padded <= length * 1.125 + 1
    assert cse1.padme_length(padded) == padded


def test_a_subkey_shows_nothing() -> None:
    """In no repr."""
    assert repr(KEY) == "Subkey(…)"


@given(st.lists(st.sampled_from(["good", "short", "magic", "suite", "flags", "empty"]), max_size=4))
def test_many_heads_are_parsed_as_each_alone(kinds: list[str]) -> None:
    """Also which error it is."""
    good = seal(b"body")
    odd = {
        "good": good,
        "short": good[:80],
        "magic": b"\0" + good[1:],
        "suite": good[:1] + b"\x09" + good[2:],
        "flags": good[:2] + b"\x80" + good[3:],
        "empty": b"",
    }
    envelopes = [odd[kind] for kind in kinds]
    if set(kinds) <= {"good"}:
        assert cse1.parse_many(envelopes) == [cse1.parse(envelope) for envelope in envelopes]
        return
    with pytest.raises(MalformedEnvelope) as one:
        [cse1.parse(envelope) for envelope in envelopes]
    with pytest.raises(MalformedEnvelope) as many:
        cse1.parse_many(envelopes)
    assert many.value.fault is one.value.fault
