"""What is looked at after an erasure, each check able to fail."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import polars as pl
from attrs import frozen

from keys import ALL_PURPOSES, DEFAULT_PURPOSE, Fence, FieldContext, GateStatus, Shredded
from lake import Lake, block_rows
from lake.events import SEALED_FIELD_ID
from projections import RowSeals, Views
from purge.inventory import unregistered
from purge.journal import Request

STATE_KEYS: Final = "state_keys"
"""In what `fenced` found: handles of the keys of the states that a person was in at the fence."""
LETTER_KEYS: Final = "letter_keys"
"""In what `intake_drained` found: handles of the keys of letters of nobody's that named a person, once all
that waited was committed. The id itself is not known any more when an erasure is verified."""
_NEWEST: Final = 1 << 62


@frozen
class ErasedKeys:
    """What an erasure destroyed, to be looked for.

    Attributes:
        purpose: or `*`.
        state_keys: handles of the states that held the person at the fence.
        letter_keys: handles of letters of nobody's that named the person.
    """

    purpose: str
    ref: bytes
    fence: Fence
    state_keys: tuple[bytes, ...] = ()
    letter_keys: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, request: Request, ref: bytes, fence: Fence) -> ErasedKeys:
        """What the stages of a request have found."""

        def handles(stage: str, name: str) -> tuple[bytes, ...]:
            return tuple(bytes.fromhex(one) for one in request.detail(stage).get(name, ()))

        found = handles("fenced", STATE_KEYS), handles("intake_drained", LETTER_KEYS)
        return cls(request.purpose, ref, fence, *found)


@frozen
class _Whole:
    """What is looked at once for many: the oldest epoch of a published aggregate, and the stores.

    Attributes:
        oldest_head: the oldest fence that the head of a table of a view over people reflects.
    """

    oldest_view: int
    oldest_head: int
    verified_epoch: int
    gate: GateStatus
    has_unregistered: bool


def _purpose_of(purpose: str) -> str:
    return DEFAULT_PURPOSE if purpose == ALL_PURPOSES else purpose


class Verification:
    """Verifies erasures of one lake.

    Args:
        home: the lake's folder, for the inventory.
    """

    def __init__(self, home: Path, lake: Lake, views: Views) -> None:
        self._home = home
        self._lake = lake
        self._keyring = lake.keyring
        self._views = views

    def checks(self, erased: Sequence[ErasedKeys], stale: Collection[str] = ()) -> list[dict[str, bool]]:
        """Checks of each erased: name → passed.

        Args:
            stale: views that are served on although they do not reflect the fence; their receipt says so.
        """
        refs = list({one.ref for one in erased})
        events = self._lake.events
        old, live = (
            block_rows(events, files, None, refs).filter(pl.col("sealed").is_not_null())
            for files in (events.kept_files(), events.files())
        )
        readable = self._readable(old)
        sealed = live.select("subject_ref", "facet").unique().rows()
        whole = self._whole(stale)
        keys = self._keys(erased)
        rows = self._views.remains.rows({one.ref: one.fence.epoch for one in erased})
        return [
            self._handle_checks(
                one.purpose, one.ref, keys[_purpose_of(one.purpose)][one.ref], readable, sealed
            )
            | self._found_checks(one, rows)
            | self._lake_checks(one.fence, whole)
            for one in erased
        ]

    def _found_checks(self, erased: ErasedKeys, rows: Sequence[RowSeals]) -> dict[str, bool]:
        """Of what was found before: the pages are asked, since a fence alone makes a reader refuse."""
        left = set(self._keyring.purposes_of(erased.ref))

        def opens(row: RowSeals) -> bool:
            concerned = erased.purpose == ALL_PURPOSES or erased.purpose in row.purposes
            return row.subject_ref == erased.ref and concerned and left.issuperset(row.purposes)

        def lives(keys: Sequence[bytes]) -> bool:
            return any(True for _ in self._keyring.tree.records_of(keys))

        return {
            "no published row of the person has all its keys": not any(map(opens, rows)),
            "no state that held the person has its key": not lives(erased.state_keys),
            "no dead letter of nobody's that named the person has its key": not lives(erased.letter_keys),
        }

    def _handle_checks(
        self,
        purpose: str,
        ref: bytes,
        key: object,
        readable: Sequence[tuple[bytes, str]],
        sealed: Sequence[tuple[bytes, str]],
    ) -> dict[str, bool]:
        whole = purpose == ALL_PURPOSES

        def mine(block: tuple[bytes, str]) -> bool:
            return block[0] == ref and (whole or block[1].endswith(f"/{purpose}"))

        left = self._keyring.purposes_of(ref)
        return {
            "no key record is left in the pages": not (left if whole else purpose in left),
            "the key look-up answers Shredded": isinstance(key, Shredded),
            "blocks in every kept snapshot answer Shredded": not any(map(mine, readable)),
            "no live file holds sealed blocks of the person": not any(map(mine, sealed)),
        }

    def _keys(self, erased: Sequence[ErasedKeys]) -> dict[str, Mapping[bytes, object]]:
        """Purpose → handle → what the key look-up answers, looked up for all handles together."""
        refs: dict[str, list[bytes]] = {}
        for one in erased:
            refs.setdefault(_purpose_of(one.purpose), []).append(one.ref)
        return {purpose: self._keyring.resident.deks(some, purpose) for purpose, some in refs.items()}

    def _whole(self, stale: Collection[str]) -> _Whole:
        release = self._views.ledger.current()
        current = [
            self._views.ledger.publication(one)
            for name, one in (release.entries.items() if release else ())
            if name not in stale
        ]
        return _Whole(
            min((p.epoch for p in current if p.personal and p.grain == "aggregate"), default=_NEWEST),
            self._views.heads.oldest_fence(default=_NEWEST),
            self._keyring.fences.verify(),
            self._keyring.gate(),
            bool(unregistered(self._home, self._lake.warehouse.objects)),
        )

    def _lake_checks(self, fence: Fence, whole: _Whole) -> dict[str, bool]:
        return {
            "every published view reflects the fence": whole.oldest_view >= fence.epoch,
            "no table of a view shows other engines what is behind the fence": whole.oldest_head
            >= fence.epoch,
            "the fence log's hash chain holds": whole.verified_epoch >= fence.epoch,
            "fence log and key pages agree": not whole.gate.fence_log_behind
            and fence.epoch not in whole.gate.pending_epochs,
            "nothing received before the fence waits in the intake": not self._lake.intake.holds_before(
                fence.epoch
            ),
            "no unregistered store": not whole.has_unregistered,
        }

    def _readable(self, blocks: pl.DataFrame) -> list[tuple[bytes, str]]:
        """(handle, facet) of those blocks that do not answer Shredded."""
        uuid, opener = self._lake.events.metadata().table_uuid.bytes, self._keyring.opener()
        found = []
        for (facet, name, version), rows in blocks.group_by("facet", "event_type", "schema_version"):
            purpose = str(facet).partition("/")[2]
            context = FieldContext(uuid, SEALED_FIELD_ID, "personal", purpose, str(name), int(str(version)))
            refs = rows["subject_ref"].to_list()
            opened = opener.open(context, refs, rows["block_id"].to_list(), rows["sealed"].to_list())
            found += [
                (ref, str(facet))
                for ref, answer in zip(refs, opened, strict=True)
                if not isinstance(answer, Shredded)
            ]
        return found
