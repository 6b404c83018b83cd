"""Sealing and opening in bulk: writer sessions with a salt of their own, openers under the lease."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import zstandard

from keys import envelope as cse1
from keys.caches import Dek
from keys.envelope import FieldContext, Subkey
from keys.errors import KeyRecordMissing, TamperedEnvelope, WrongKey
from keys.fencelog import FenceLog
from keys.subjects import DEFAULT_PURPOSE, Held, Shredded

MAX_SEALS_PER_SESSION: Final = 2**20
SESSION_SECONDS: Final = 3600.0
OPEN_BATCH: Final = 4096


class DekSource(Protocol):
    """Gives out keys under a lease; the keyring."""

    fences: FenceLog

    def deks(self, refs: Sequence[bytes], purpose: str) -> dict[bytes, Dek | Shredded]: ...

    def derived(self, scope: bytes) -> dict[bytes, Subkey]: ...

    def renew_lease(self) -> int: ...

    def lease_epoch(self) -> int: ...

    def check_lease(self) -> None: ...


class SealSession:
    """A writer session: one salt; ends after an hour or 2^20 seals."""

    def __init__(
        self, keyring: DekSource, random_bytes: Callable[[int], bytes], clock_seconds: Callable[[], float]
    ) -> None:
        self._keyring = keyring
        self._random = random_bytes
        self._clock_seconds = clock_seconds
        self._compressor = zstandard.ZstdCompressor(level=3)
        self._restart()

    def seal(
        self,
        context: FieldContext,
        refs: Sequence[bytes],
        block_ids: Sequence[bytes],
        bodies: Sequence[bytes],
    ) -> list[bytes | Shredded]:
        """Seals body i under the DEK of ref i, bound to block id i. A fenced ref gives `Shredded`."""
        age_seconds = self._clock_seconds() - self._since
        if age_seconds > SESSION_SECONDS or self._seals + len(bodies) > MAX_SEALS_PER_SESSION:
            self._restart()
        self._seals += len(bodies)
        deks = self._keyring.deks(refs, context.purpose)
        info = context.derivation_info(cse1.SUITE_AES_GCM)
        prefix = context.associated_prefix()
        nonces = self._random(cse1.NONCE_BYTES * len(bodies))
        salt, compressor = self._salt, self._compressor
        sealed: list[bytes | Shredded] = []
        subkeys = self._keyring.derived(info + salt)
        last: bytes | None = None
        for at, (ref, block_id, body) in enumerate(zip(refs, block_ids, bodies, strict=True)):
            dek = deks[ref]
            if isinstance(dek, Shredded):
                sealed.append(dek)
                continue
            if ref != last:  # blocks of one person stand together
                subkey = subkeys.get(ref) or cse1.derive(dek.key, info, salt)
                subkeys[ref] = subkey
                aead, last = subkey.aead, ref
            sealed.append(
                cse1.seal(
                    subkey,
                    body,
                    prefix=prefix,
                    ref=ref,
                    block_id=block_id,
                    generation=dek.generation,
                    salt=salt,
                    nonce=nonces[at * 12 : at * 12 + 12],
                    compressor=compressor,
                    aead=aead,
                )
            )
        return sealed

    def tag_keys(self, refs: Sequence[bytes]) -> dict[bytes, bytes]:
        """ref → 32 bytes for keyed event tags of that subject (BLAKE2b, RFC 7693, keyed by the DEK)."""
        deks = self._keyring.deks(refs, DEFAULT_PURPOSE)
        known = self._keyring.derived(b"event tag")
        for ref, dek in deks.items():
            if ref not in known and isinstance(dek, Dek):
                tag_key = hashlib.blake2b(key=dek.key, person=b"CSE1 event tag").digest()[:32]
                known[ref] = Subkey(tag_key, b"", 0)
        return {ref: known[ref].key for ref, dek in deks.items() if isinstance(dek, Dek)}

    def _restart(self) -> None:
        self._salt = self._random(cse1.SALT_BYTES)
        self._since = self._clock_seconds()
        self._seals = 0


class Opener:
    """Opens sealed values in bulk; one per thread."""

    def __init__(self, keyring: DekSource) -> None:
        self._keyring = keyring
        self._decompressor = zstandard.ZstdDecompressor()

    def open(
        self,
        context: FieldContext,
        refs: Sequence[bytes],
        block_ids: Sequence[bytes],
        envelopes: Sequence[bytes],
    ) -> list[bytes | Shredded | Held]:
        """The body of each envelope, `Shredded`, or `Held`.

        Raises:
            EnvelopeError: malformed, foreign or tampered; never an erasure.
            KeyRecordMissing, PageMissing, PageDamaged: the page store is incomplete.
            CustodianUnavailable: the root is out of reach; a retry may help.
            LeaseExpired: the process was paused meanwhile; repeat the read.
        """
        opened: list[bytes | Shredded | Held] = []
        prefix = context.associated_prefix()
        infos = {suite: context.derivation_info(suite) for suite in (1, 2, 3)}
        at = 0
        while at < len(refs):
            end = at + OPEN_BATCH
            epoch = self._keyring.renew_lease()
            deks = self._keyring.deks(refs[at:end], context.purpose)
            batch: list[bytes | Shredded | Held] = []
            last: tuple[bytes, bytes, int] | None = None
            for ref, block_id, envelope in zip(
                refs[at:end], block_ids[at:end], envelopes[at:end], strict=True
            ):
                header = cse1.parse(envelope)
                dek = deks[ref]
                if isinstance(dek, Shredded):
                    batch.append(self._shredded(dek, ref, context.purpose, header.generation))
                    continue
                if dek.held:
                    batch.append(Held())
                    continue
                place = ref, header.salt, header.suite
                if place != last:  # blocks that one session sealed for one person stand together
                    subkey = cse1.derive(dek.key, infos[header.suite], header.salt, header.suite)
                    aead, last = subkey.aead, place
                if header.generation != dek.generation:
                    if hmac.compare_digest(header.commitment, subkey.commitment):
                        raise TamperedEnvelope("the generation in the envelope was changed")
                    batch.append(self._other_generation(ref, context.purpose, header.generation))
                    continue
                batch.append(
                    cse1.open_sealed(
                        subkey,
                        envelope,
                        prefix=prefix,
                        ref=ref,
                        block_id=block_id,
                        decompressor=self._decompressor,
                        aead=aead,
                    )
                )
            self._keyring.check_lease()
            if self._keyring.lease_epoch() != epoch:
                continue  # another thread acknowledged an erasure meanwhile: open these again
            opened.extend(batch)
            at = end
        return opened

    def _shredded(self, answer: Shredded, ref: bytes, purpose: str, generation: int) -> Shredded:
        """`answer` is of generation 1: a later one, of a purpose that came back, needs its own fence."""
        if generation <= 1:
            return answer
        fence = self._keyring.fences.of_ref(ref, purpose, generation)
        if fence is None:
            raise KeyRecordMissing("a handle has no key of this generation, and no fence")
        return Shredded(fence.request_id, fence.epoch)

    def _other_generation(self, ref: bytes, purpose: str, generation: int) -> Shredded:
        fence = self._keyring.fences.of_ref(ref, purpose, generation)
        if fence is None:
            raise WrongKey(f"the envelope names generation {generation}, which this subject has not")
        return Shredded(fence.request_id, fence.epoch)
