"""Sealing and opening in bulk: writer sessions with a salt of their own, openers under the lease."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import zstandard
from attrs import frozen

from keys import envelope as cse1
from keys.aead import NONCE_BYTES, SUITE_AES_GCM
from keys.envelope import FieldContext, Subkey
from keys.errors import SealSessionLost
from keys.frames import Body, as_bytes
from keys.quiet import no_collections
from keys.scrubbing import scrubbed_class
from keys.subjects import Held, Shredded

MAX_SEALS_PER_SESSION: Final = 2**20
SESSION_SECONDS: Final = 3600.0
OPEN_BATCH: Final = 1024
QUICK_BELOW_BYTES: Final = 4096
"""Smaller bodies are compressed without entropy coding: a tenth larger, sealed and opened two to three times
as fast, since setting up the tables costs more than they save."""


@frozen
class SealRule:
    """How values are sealed from now on; what was sealed otherwise is read all the same.

    Attributes:
        suite: cipher suite of CSE1, one of `keys.envelope.CIPHERS`.
        padded: hides the length of what is sealed, at the cost of at most an eighth of its size (Padmé).
    """

    suite: int = SUITE_AES_GCM
    padded: bool = False


class SealKeys(Protocol):
    """Gives a writer session what it seals with; never what it could open older values with."""

    def begin_session(self) -> bytes:
        """A fresh salt of 16 bytes that nobody else seals with."""
        ...

    def sealing(
        self, salt: bytes, context: FieldContext, refs: Sequence[bytes], suite: int = SUITE_AES_GCM
    ) -> dict[bytes, Subkey | Shredded]:
        """ref → its subkey for this salt, context and cipher suite, or `Shredded`."""
        ...

    def tag_keys(self, refs: Sequence[bytes]) -> dict[bytes, bytes]:
        """ref → 32 bytes for keyed event tags; handles without a key are left out."""
        ...


class OpenKeys(Protocol):
    """Gives out keys to open with, under a lease."""

    def opening(
        self, context: FieldContext, refs: Sequence[bytes], headers: Sequence[cse1.Header]
    ) -> list[Subkey | Shredded | Held]:
        """The subkey that each header asks for. Raises as `Opener.open` does."""
        ...

    def catch_up(self) -> int:
        """Evicts at once whatever was erased meanwhile; the epoch that holds from here on."""
        ...

    def renew_lease(self) -> int:
        """Renews where due, evicting first; the epoch acknowledged."""
        ...

    def lease_epoch(self) -> int:
        """The epoch acknowledged last."""
        ...

    def check_lease(self) -> None:
        """Raises `LeaseExpired` where nothing may be handed out any more."""
        ...


@scrubbed_class
class SealSession:
    """A writer session: one salt; ends after an hour or 2^20 seals."""

    def __init__(
        self,
        keys: SealKeys,
        random_bytes: Callable[[int], bytes],
        clock_seconds: Callable[[], float],
        rule: SealRule = SealRule(),
    ) -> None:
        self._rule = rule
        self._keys = keys
        self._random = random_bytes
        self._clock_seconds = clock_seconds
        self._quick = zstandard.ZstdCompressor(level=-1)
        self._thorough = zstandard.ZstdCompressor(level=3)
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
        with no_collections():
            return self._seal(context, refs, block_ids, bodies)

    def _seal(
        self,
        context: FieldContext,
        refs: Sequence[bytes],
        block_ids: Sequence[bytes],
        bodies: Sequence[bytes],
    ) -> list[bytes | Shredded]:
        suite = self._rule.suite
        try:
            keys = self._keys.sealing(self._salt, context, refs, suite)
        except SealSessionLost:  # the agent was restarted
            self._restart()
            keys = self._keys.sealing(self._salt, context, refs, suite)
        found = [keys[ref] for ref in refs]
        rows = zip(found, refs, block_ids, bodies, strict=True)
        living = [row for row in rows if isinstance(row[0], Subkey)]
        sealed = cse1.seal_many(
            living,  # type: ignore[arg-type]  # each has a subkey
            self._random(NONCE_BYTES * len(living)),
            prefix=context.associated_prefix(),
            salt=self._salt,
            suite=suite,
            choose=self._compressor_for,
            pad=self._rule.padded,
        )
        if len(sealed) == len(found):
            return [*sealed]
        made = iter(sealed)
        return [next(made) if isinstance(key, Subkey) else key for key in found]

    def _compressor_for(self, size_bytes: int) -> zstandard.ZstdCompressor:
        return self._quick if size_bytes < QUICK_BELOW_BYTES else self._thorough

    def tag_keys(self, refs: Sequence[bytes]) -> dict[bytes, bytes]:
        """ref → 32 bytes for keyed event tags of that subject (BLAKE2b, RFC 7693, keyed by the DEK)."""
        return self._keys.tag_keys(refs)

    def _restart(self) -> None:
        self._salt = self._keys.begin_session()
        self._since = self._clock_seconds()
        self._seals = 0


@scrubbed_class
class Opener:
    """Opens sealed values in bulk; one per thread."""

    def __init__(self, keys: OpenKeys) -> None:
        self._keys = keys
        self._decompressor = zstandard.ZstdDecompressor()

    def catch_up(self) -> int:
        """Nobody who was fenced before this call is opened after it; returns the newest epoch.

        A lease alone is renewed once a second: a result that says of which epoch it is must ask first.
        """
        return self._keys.catch_up()

    def open(
        self,
        context: FieldContext,
        refs: Sequence[bytes],
        block_ids: Sequence[bytes],
        envelopes: Sequence[bytes],
    ) -> list[bytes | Shredded | Held]:
        """The body of each envelope, `Shredded`, or `Held`. Raises as `views` does."""
        found = self.views(context, refs, block_ids, envelopes)
        return [one if isinstance(one, Shredded | Held) else as_bytes(one) for one in found]

    def views(
        self,
        context: FieldContext,
        refs: Sequence[bytes],
        block_ids: Sequence[bytes],
        envelopes: Sequence[bytes],
    ) -> list[Body | Shredded | Held]:
        """The same; bodies that were opened together may be views of one buffer, for whoever joins them.

        Raises:
            EnvelopeError: malformed, foreign or tampered; never an erasure.
            KeyRecordMissing, PageMissing, PageDamaged: the page store is incomplete.
            CustodianUnavailable: the root is out of reach; a retry may help.
            LeaseExpired: the process was paused meanwhile; repeat the read.
        """
        opened: list[Body | Shredded | Held] = []
        at = 0
        while at < len(refs):
            end = at + OPEN_BATCH
            epoch = self._keys.renew_lease()
            with no_collections():
                batch = self._open_batch(context, refs[at:end], block_ids[at:end], envelopes[at:end])
            self._keys.check_lease()
            if self._keys.lease_epoch() != epoch:
                continue  # another thread acknowledged an erasure meanwhile: open these again
            opened.extend(batch)
            at = end
        return opened

    def _open_batch(
        self,
        context: FieldContext,
        refs: Sequence[bytes],
        block_ids: Sequence[bytes],
        envelopes: Sequence[bytes],
    ) -> list[Body | Shredded | Held]:
        headers = cse1.parse_many(envelopes)
        keys = self._keys.opening(context, refs, headers)
        rows = zip(keys, headers, refs, block_ids, envelopes, strict=True)
        living = [row for row in rows if type(row[0]) is Subkey]
        bodies = cse1.open_many(
            living,  # type: ignore[arg-type]  # each has a subkey
            prefix=context.associated_prefix(),
            decompressor=self._decompressor,
        )
        if len(bodies) == len(keys):
            return [*bodies]
        opened = iter(bodies)
        return [next(opened) if isinstance(key, Subkey) else key for key in keys]
