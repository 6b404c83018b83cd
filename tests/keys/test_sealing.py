"""Sealing and opening through the keyring: round trips, tampering, writer sessions, bad bodies."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys import (
    EnvelopeError,
    Keyring,
    MalformedEnvelope,
    SealSession,
    Shredded,
    TamperedEnvelope,
    WrongKey,
    aead,
    envelope,
    open_embedded,
)
from keys.envelope import CIPHERS, FLAG_PADDED, padme_length
from keys.sealing import MAX_SEALS_PER_SESSION, OPEN_BATCH, SESSION_SECONDS, SealRule
from tests.keys.people import ANN, BLOCK, BOB, context, provision, seal, shred, unseal

SALT = slice(5, 21)
NONCE = slice(53, 65)


@pytest.fixture(scope="module")
def keyring() -> Iterator[Keyring]:
    """One for the module: nothing here is destroyed."""
    with tempfile.TemporaryDirectory() as folder:
        found = open_embedded(Path(folder) / "keys")
        yield found
        found.close()


@settings(deadline=None)
@given(st.lists(st.binary(max_size=700), min_size=1, max_size=8))
def test_every_body_comes_back_as_it_was(keyring: Keyring, bodies: list[bytes]) -> None:
    """Empty, long, compressible or not; in order; of two people in one call."""
    people = [provision(keyring, ANN).ref, provision(keyring, BOB).ref]
    refs = [people[n % 2] for n in range(len(bodies))]
    blocks = [bytes([n]) * 16 for n in range(len(bodies))]
    sealed = keyring.session().seal(context(), refs, blocks, bodies)
    envelopes = [one for one in sealed if isinstance(one, bytes)]
    assert keyring.opener().open(context(), refs, blocks, envelopes) == bodies


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("suite", CIPHERS.values(), ids=CIPHERS)
def test_every_cipher_and_padding_is_read_whatever_the_rule_is_now(
    keyring: Keyring, suite: int, padded: bool
) -> None:
    """A reader needs no setting; what is padded has a length of Padmé's."""
    ref, bodies = provision(keyring, ANN).ref, [b"x", os.urandom(1000), b"y" * 1001]
    blocks = [bytes([n]) * 16 for n in range(len(bodies))]
    session = SealSession(keyring.resident, os.urandom, lambda: 0.0, SealRule(suite, padded))
    sealed = [s for s in session.seal(context(), [ref] * 3, blocks, bodies) if isinstance(s, bytes)]
    assert keyring.opener().open(context(), [ref] * 3, blocks, sealed) == bodies
    assert {envelope.parse(one).suite for one in sealed} == {suite}
    for one in sealed:
        assert bool(envelope.parse(one).flags & FLAG_PADDED) is padded
        length = len(one) - envelope.HEADER_BYTES - aead.TAG_BYTES
        assert not padded or padme_length(length) == length


def test_who_was_erased_is_told_in_place_and_the_others_are_sealed(tmp_path: Path) -> None:
    """Each answer stands where its body stood."""
    keyring = open_embedded(tmp_path / "keys")
    ann, bob = provision(keyring, ANN).ref, provision(keyring, BOB).ref
    shred(keyring, ANN, ann)
    keyring.catch_up()
    blocks, bodies = [bytes([n]) * 16 for n in range(4)], [bytes([n]) * 9 for n in range(4)]
    sealed = keyring.session().seal(context(), [ann, bob, ann, bob], blocks, bodies)
    assert [isinstance(one, Shredded) for one in sealed] == [True, False, True, False]
    envelopes = [one for one in sealed if isinstance(one, bytes)]
    assert keyring.opener().open(context(), [bob, bob], blocks[1::2], envelopes) == bodies[1::2]
    keyring.close()


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400), st.data())
def test_any_changed_byte_is_an_error_to_a_reader(keyring: Keyring, body: bytes, data: st.DataObject) -> None:
    """Salt and generation too: never a value, never an erasure."""
    ref = provision(keyring).ref
    changed = bytearray(seal(keyring, ref, body=body))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EnvelopeError):
        unseal(keyring, ref, bytes(changed))


@settings(deadline=None)
@given(st.data())
def test_an_envelope_cut_short_is_an_error(keyring: Keyring, data: st.DataObject) -> None:
    """At any length."""
    ref = provision(keyring).ref
    sealed = seal(keyring, ref)
    with pytest.raises(EnvelopeError):
        unseal(keyring, ref, sealed[: data.draw(st.integers(0, len(sealed) - 1))])


def test_rows_that_change_places_are_refused(keyring: Keyring) -> None:
    """Two blocks of one person: the tag. Two people: the key."""
    ann, bob = provision(keyring, ANN).ref, provision(keyring, BOB).ref
    blocks = [b"1" * 16, b"2" * 16]
    for refs, error in (([ann, ann], TamperedEnvelope), ([ann, bob], WrongKey)):
        sealed = [
            s for s in keyring.session().seal(context(), refs, blocks, [b"x", b"y"]) if isinstance(s, bytes)
        ]
        with pytest.raises(error):
            keyring.opener().open(context(), refs, blocks, sealed[::-1])


def test_one_bad_envelope_fails_the_whole_call(keyring: Keyring) -> None:
    """Nothing of a batch is handed out beside an error."""
    ref = provision(keyring).ref
    good = seal(keyring, ref)
    with pytest.raises(MalformedEnvelope):
        keyring.opener().open(context(), [ref] * 3, [BLOCK] * 3, [good, b"garbage", good])


def test_more_than_one_batch_keeps_its_order(keyring: Keyring) -> None:
    """Batches are ours, not the caller's."""
    ref = provision(keyring).ref
    bodies = [n.to_bytes(4, "big") for n in range(OPEN_BATCH + 3)]
    refs, blocks = [ref] * len(bodies), [BLOCK] * len(bodies)
    sealed = [s for s in keyring.session().seal(context(), refs, blocks, bodies) if isinstance(s, bytes)]
    assert keyring.opener().open(context(), refs, blocks, sealed) == bodies


def test_the_same_body_never_gives_the_same_envelope(keyring: Keyring) -> None:
    """Nonces are fresh for every seal, also of a retry."""
    ref = provision(keyring).ref
    sealed = keyring.session().seal(context(), [ref] * 500, [BLOCK] * 500, [b"x"] * 500)
    assert len({one[NONCE] for one in sealed if isinstance(one, bytes)}) == 500


def test_a_session_keeps_its_salt_for_an_hour(keyring: Keyring) -> None:
    """And another session has another one."""
    ref, now = provision(keyring).ref, [0.0]
    session = SealSession(keyring.resident, os.urandom, lambda: now[0])

    def salt() -> bytes:
        (sealed,) = session.seal(context(), [ref], [BLOCK], [b"x"])
        assert isinstance(sealed, bytes)
        return sealed[SALT]

    first = salt()
    now[0] = SESSION_SECONDS
    assert salt() == first
    now[0] += 1
    assert salt() != first
    assert seal(keyring, ref)[SALT] != seal(keyring, ref)[SALT]


def test_a_session_ends_before_its_seals_are_too_many(keyring: Keyring) -> None:
    """The bound on random nonces under one key."""
    ref = provision(keyring).ref
    session = keyring.session()
    salts = set()
    session._seals = MAX_SEALS_PER_SESSION - 2
    for _ in range(4):
        (sealed,) = session.seal(context(), [ref], [BLOCK], [b"x"])
        assert isinstance(sealed, bytes)
        salts.add(sealed[SALT])
    assert len(salts) == 2


@given(st.binary(max_size=40), st.integers(0, 5))
def test_padding_gives_back_bodies_that_look_like_padding(body: bytes, zeros: int) -> None:
    """A body may end with the mark, with zeros, or with both."""
    for tail in (b"\x80", b"\x00" * zeros, b"\x80" + b"\x00" * zeros):
        subkey = envelope.derive(bytes(32), context().derivation_info(2), bytes(16), 2)
        place = {"prefix": context().associated_prefix(), "ref": b"r" * 16, "block_id": BLOCK}
        sealed = envelope.seal(
            subkey,
            body + tail,
            **place,
            generation=1,
            salt=bytes(16),
            nonce=bytes(12),
            suite=2,
            pad=True,
        )
        assert envelope.open_sealed(subkey, envelope.parse(sealed), sealed, **place) == body + tail


def test_key_material_shows_in_no_repr_and_no_pickle(keyring: Keyring) -> None:
    """Neither what a cache holds nor what a traceback may show."""
    ref = provision(keyring).ref
    dek = keyring.resident.deks([ref], "service")[ref]
    subkey = keyring.resident.sealing(bytes(16), context(), [ref])[ref]
    for one in (dek, subkey):
        assert isinstance(one, tuple)
        assert one[0].hex() not in repr(one).encode().hex()
        assert repr(one[0]) not in repr([one])
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="not pickled"):
                pickle.dumps(one, protocol)
