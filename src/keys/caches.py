"""What a process keeps in memory while its lease runs: bounded, and thrown away as a whole.

An eviction begins a new object. A thread that was still filling the old one fills something nobody
will look into again, so that no key of before comes back through the door.
"""

from __future__ import annotations

from typing import Final, NamedTuple, NoReturn

from keys.envelope import Subkey

MAX_CACHED_KEYS: Final = 4_000_000
MAX_CACHED_NAMES: Final = 1_000_000
MAX_CACHED_SUBKEYS: Final = 500_000


class Dek(NamedTuple):
    """A data encryption key in the cache; a tuple because millions are made."""

    key: bytes
    generation: int
    held: bool

    def __repr__(self) -> str:
        return "Dek(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled")


class Provisioned(NamedTuple):
    """A key that can seal; a tuple because millions are made.

    Attributes:
        ref: the subject's random handle.
        generation: of the DEK.
        created: whether this call made it.
    """

    ref: bytes
    generation: int
    created: bool


class Caches:
    """Keys, names and derived keys of one lease period."""

    def __init__(self) -> None:
        self.deks: dict[bytes, Dek] = {}
        """By locator: ref and purpose code."""
        self._names: dict[str, dict[str, tuple[bytes, int]]] = {}
        self._sealing: dict[bytes, dict[bytes, Subkey]] = {}
        self._tag_keys: dict[bytes, bytes] = {}

    def names(self, purpose: str) -> dict[str, tuple[bytes, int]]:
        """Subject id → ref and generation of its key of one purpose.

        Bare tuples: the cyclic collector leaves those out, and there are up to a million.
        """
        if sum(map(len, self._names.values())) > MAX_CACHED_NAMES:
            self._names = {}
        return self._names.setdefault(purpose, {})

    def sealing(self, scope: bytes) -> dict[bytes, Subkey]:
        """Ref → its subkey for one session and context."""
        if sum(map(len, self._sealing.values())) > MAX_CACHED_SUBKEYS:
            self._sealing = {}
        return self._sealing.setdefault(scope, {})

    def tag_keys(self) -> dict[bytes, bytes]:
        """Ref → its key for event tags."""
        if len(self._tag_keys) > MAX_CACHED_SUBKEYS:
            self._tag_keys = {}
        return self._tag_keys

    def is_full(self) -> bool:
        """Whether no more pages should be loaded."""
        return len(self.deks) > MAX_CACHED_KEYS
