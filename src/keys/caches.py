"""What a process keeps in memory while its lease runs: bounded, and thrown away as a whole.

Every bound is a number of entries of a size that is known: about 300 bytes of a key (460 while it is read),
400 of a derived one, and 300 besides the id itself of a name. A call that needs more than a bound at once is
given what it needs, and nothing of it is kept.

An eviction begins a new object. A thread that was still filling the old one fills something nobody
will look into again, so that no key of before comes back through the door.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any, Final, NamedTuple, NoReturn

from keys.envelope import Subkey
from keys.tree import PAGE_RECORDS, locator

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


class MaskedKey(bytes):
    """Key bytes that other packages hold: the same bytes, but neither shown nor pickled."""

    def __repr__(self) -> str:
        return "MaskedKey(…)"

    __str__ = __repr__

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

    def names(self, purpose: str, coming: int) -> dict[str, tuple[bytes, int]]:
        """Subject id → ref and generation of its key of one purpose; the caller adds at most `coming`.

        Bare tuples: the cyclic collector leaves those out, and there are up to a million.
        """
        if coming > MAX_CACHED_NAMES:
            return {}
        if _entries(self._names) + coming > MAX_CACHED_NAMES:
            self._names = {}
        return self._names.setdefault(purpose, {})

    def sealing(self, scope: bytes, coming: int) -> dict[bytes, Subkey]:
        """Ref → its subkey for one session and context; the caller adds at most `coming`."""
        if coming > MAX_CACHED_SUBKEYS:
            return {}
        if _entries(self._sealing) + coming > MAX_CACHED_SUBKEYS:
            self._sealing = {}
        return self._sealing.setdefault(scope, {})

    def tag_keys(self, coming: int) -> dict[bytes, bytes]:
        """Ref → its key for event tags; the caller adds at most `coming`."""
        if coming > MAX_CACHED_SUBKEYS:
            return {}
        if len(self._tag_keys) + coming > MAX_CACHED_SUBKEYS:
            self._tag_keys = {}
        return self._tag_keys

    def forget(self, refs: Iterable[bytes], purposes: Iterable[int]) -> None:
        """Drops the keys of some handles for these purposes, and every derived one.

        Those begin anew instead of losing some: another thread may be reading the old ones.
        """
        numbers = list(purposes)
        for ref in refs:
            for number in numbers:
                self.deks.pop(locator(ref, number), None)
        self._tag_keys, self._sealing = {}, {}

    def has_room(self, coming: int) -> bool:
        """Whether so many keys may be added to `deks`."""
        return len(self.deks) + coming <= MAX_CACHED_KEYS


def may_keep_page(held: int, coming: int) -> bool:
    """Whether the other keys of a page may be kept, beside those held and those that are asked for."""
    return held + coming + PAGE_RECORDS <= MAX_CACHED_KEYS


def _entries(groups: Mapping[Any, Sized]) -> int:
    """The groups themselves count: those of a session that sealed for nobody are there as well."""
    return len(groups) + sum(map(len, groups.values()))
