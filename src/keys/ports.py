"""What the lake asks of keys where it only writes or only reads: a keyring, or an agent's worker side."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from keys.caches import Provisioned
from keys.envelope import FieldContext
from keys.errors import SubjectErased
from keys.sealing import Opener, SealSession
from keys.subjects import DEFAULT_PURPOSE, Identity, SubjectId


class WritingKeys(Protocol):
    """Names subjects and seals; `Keyring` and `IngestKeys` do."""

    def session(self) -> SealSession: ...
    def authentic(
        self,
        context: FieldContext,
        refs: Sequence[bytes],
        block_ids: Sequence[bytes],
        envelopes: Sequence[bytes],
    ) -> list[bool]: ...
    def provision(
        self, subjects: Sequence[SubjectId], purpose: str = DEFAULT_PURPOSE
    ) -> list[Provisioned | SubjectErased]: ...
    def add_identities(self, pairs: Sequence[tuple[bytes, Identity]]) -> None: ...
    def mint(self, count: int, purpose: str = "system") -> list[Provisioned]: ...
    def epoch(self) -> int: ...
    def catch_up(self) -> int: ...
    def fenced_since(self, epoch: int, refs: Collection[bytes]) -> bool: ...


class OpeningKeys(Protocol):
    """Opens; `Keyring` and `BuildKeys` do."""

    def opener(self) -> Opener: ...
