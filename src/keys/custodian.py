"""The port to whoever holds the root: wrap, unwrap and rewrap in batches, rotate, retire, sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from attrs import field, frozen


@frozen
class CustodianStatus:
    """What a custodian says of its root.

    Attributes:
        root_id: see `Custodian.root_id`.
        latest_version: new wraps use it.
        minimum_version: older ones are retired and can never be unwrapped.
    """

    root_id: str
    latest_version: int
    minimum_version: int


@frozen
class Signature:
    """An Ed25519 signature (RFC 8032) and the id of its key."""

    key_id: str
    value: bytes = field(repr=False)


class Custodian(Protocol):
    """Holds the root, which never leaves it. Every adapter passes `keys.testing.CustodianContract`.

    Attributes:
        calls: how often the root was asked so far: requests to a server, or readings of a file.

    Each pair is (context, bytes): a wrap opens only under the context it was made with.

    Raises (all methods):
        CustodianUnavailable: out of reach now; says nothing about any key.
        RootKeyRetired: the wrap belongs to a retired version.
        RootMismatch: another root made the wrap, or it was changed.
    """

    @property
    def calls(self) -> int: ...

    def wrap(self, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]: ...

    def unwrap(self, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]: ...

    def rewrap(self, items: Sequence[tuple[bytes, bytes]]) -> list[bytes]: ...

    def wrap_version(self, wrapped: bytes) -> int:
        """The root version that made a wrap, as the wrap itself says; nothing is asked or proven."""
        ...

    def rotate(self) -> int:
        """Adds a root version and returns its number; wraps use it from now on."""
        ...

    def retire(self, below: int) -> None:
        """Destroys every root version under `below` for good."""
        ...

    def root_id(self) -> str:
        """Names this root; differs for every root ever made."""
        ...

    def status(self) -> CustodianStatus: ...

    def secret(self, name: str) -> bytes:
        """32 bytes for keyed hashes, made on first use, never rotated."""
        ...

    def sign(self, payload: bytes) -> Signature: ...

    def public_keys(self) -> dict[str, bytes]:
        """Raw 32-byte Ed25519 keys by key id, retired ones included, to verify old receipts."""
        ...
