"""AEAD ciphers for many short messages, each under a key of its own.

OpenSSL, behind `cryptography`, sets up a context for each key, and that takes longer than to encrypt a
person's block. libsodium's AES-256-GCM takes key and message in one call: half the time (docs/adr/0038).
Where it is not to be had (PyNaCl's binding is another, or the processor has no instructions for AES),
`cryptography` does the same. Other ciphers are `cryptography`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV, ChaCha20Poly1305

SUITE_AES_GCM: Final = 1
SUITE_AES_GCM_SIV: Final = 2
SUITE_CHACHA20: Final = 3
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
_BUFFER_BYTES: Final = 64 * 1024


class Aead(Protocol):
    """The shape of `cryptography`'s AEAD objects."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...
    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


class Cipher(Protocol):
    """A cipher that is given the key with each message: 32 bytes, as a nonce has 12; all of type `bytes`.

    For one thread.
    """

    def encrypt(self, key: bytes, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
        """Ciphertext and tag."""
        ...

    def decrypt(self, key: bytes, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
        """What was encrypted. Raises `cryptography`'s InvalidTag."""
        ...


AEADS: Final[dict[int, Callable[[bytes], Aead]]] = {
    SUITE_AES_GCM: AESGCM,
    SUITE_AES_GCM_SIV: AESGCMSIV,
    SUITE_CHACHA20: ChaCha20Poly1305,
}
"""By the numbers of the cipher suites, each made of a key of 32 bytes."""


class PerKey:
    """A cipher of `cryptography`; one key's best messages stand together."""

    def __init__(self, suite: int) -> None:
        self._new = AEADS[suite]
        self._key: bytes | None = None

    def encrypt(self, key: bytes, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
        """See `Cipher`."""
        return self._of(key).encrypt(nonce, data, associated_data)

    def decrypt(self, key: bytes, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
        """See `Cipher`."""
        return self._of(key).decrypt(nonce, data, associated_data)

    def _of(self, key: bytes) -> Aead:
        if key is not self._key:
            self._aead, self._key = self._new(key), key
        return self._aead


class SodiumGcm:
    """AES-256-GCM of libsodium."""

    def __init__(self) -> None:
        self._room = 0
        self._grow(_BUFFER_BYTES)
        self._length = _ffi.new("unsigned long long *")

    def encrypt(self, key: bytes, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
        """See `Cipher`."""
        size = len(data) + TAG_BYTES
        if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES or size > self._room:
            self._make_fit(key, nonce, size)
        _encrypt(
            self._out,
            self._length,
            data,
            len(data),
            associated_data,
            len(associated_data),
            _NULL,
            nonce,
            key,
        )
        return self._bytes[:size]  # type: ignore[no-any-return]

    def decrypt(self, key: bytes, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
        """See `Cipher`."""
        size = len(data) - TAG_BYTES
        if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES or size > self._room:
            self._make_fit(key, nonce, size)
        if size < 0 or _decrypt(
            self._out,
            self._length,
            _NULL,
            data,
            len(data),
            associated_data,
            len(associated_data),
            nonce,
            key,
        ):
            raise InvalidTag
        return self._bytes[:size]  # type: ignore[no-any-return]

    def _make_fit(self, key: bytes, nonce: bytes, size: int) -> None:
        """The library reads and writes as far as it should, not as far as there is something."""
        if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES:
            raise ValueError("AES-256-GCM takes a key of 32 bytes and a nonce of 12")
        self._grow(size)

    def _grow(self, size: int) -> None:
        self._out = _ffi.new("unsigned char[]", size)
        self._bytes, self._room = _ffi.buffer(self._out), size


def cipher(suite: int) -> Cipher:
    """The fastest one of a suite."""
    return SodiumGcm() if suite == SUITE_AES_GCM and HAS_SODIUM else PerKey(suite)


def _sodium() -> tuple[Any, Any, Any]:
    """(cffi's handle, to encrypt, to decrypt) with AES-256-GCM, where it may be used."""
    try:
        from nacl._sodium import ffi, lib

        functions = ffi, lib.crypto_aead_aes256gcm_encrypt, lib.crypto_aead_aes256gcm_decrypt
        usable = lib.sodium_init() >= 0 and lib.crypto_aead_aes256gcm_is_available()
    except (ImportError, AttributeError):
        return None, None, None
    return functions if usable else (None, None, None)


_ffi, _encrypt, _decrypt = _sodium()
HAS_SODIUM: Final = _ffi is not None
_NULL: Final = _ffi.NULL if HAS_SODIUM else None
