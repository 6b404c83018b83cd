"""What is looked at after an erasure, each check able to fail."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from keys import ALL_PURPOSES, DEFAULT_PURPOSE, Fence, FieldContext, Opener, Shredded
from lake import Lake, block_rows
from lake.events import SEALED_FIELD_ID
from projections import Views
from purge.inventory import unregistered


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

    def checks(self, purpose: str, ref: bytes, fence: Fence) -> dict[str, bool]:
        """Checks of one erased handle, for one purpose or `*`: name → passed."""
        opener = self._keyring.opener()
        whole = purpose == ALL_PURPOSES
        events = self._lake.events
        old, live = (
            block_rows(events, files, None, [ref]).filter(pl.col("sealed").is_not_null())
            for files in (events.kept_files(), events.files())
        )
        if not whole:
            old = old.filter(pl.col("facet").str.ends_with(f"/{purpose}"))
            live = live.filter(pl.col("facet").str.ends_with(f"/{purpose}"))
        release = self._views.ledger.current()
        current = [
            self._views.ledger.publication(one) for one in (release.entries.values() if release else ())
        ]
        gate = self._keyring.gate()
        keys = self._keyring.resident.deks([ref], DEFAULT_PURPOSE if whole else purpose)
        left = self._keyring.purposes_of(ref)
        return {
            "no key record is left in the pages": not (left if whole else purpose in left),
            "the key look-up answers Shredded": all(isinstance(v, Shredded) for v in keys.values()),
            "blocks in every kept snapshot answer Shredded": all(
                self._is_shredded(opener, row) for row in old.iter_rows(named=True)
            ),
            "no live file holds sealed blocks of the person": live.height == 0,
            "every published view reflects the fence": all(
                p.epoch >= fence.epoch for p in current if p.personal and p.grain == "aggregate"
            ),
            "the fence log's hash chain holds": self._keyring.fences.verify() >= fence.epoch,
            "fence log and key pages agree": not gate.fence_log_behind
            and fence.epoch not in gate.pending_epochs,
            "nothing received before the fence waits in the intake": not self._lake.intake.holds_before(
                fence.epoch
            ),
            "no unregistered store": not unregistered(self._home, self._lake.warehouse.objects),
        }

    def _is_shredded(self, opener: Opener, row: Mapping[str, Any]) -> bool:
        context = FieldContext(
            self._lake.events.metadata().table_uuid.bytes,
            SEALED_FIELD_ID,
            "personal",
            row["facet"].partition("/")[2],
            row["event_type"],
            row["schema_version"],
        )
        opened = opener.open(context, [row["subject_ref"]], [row["block_id"]], [row["sealed"]])
        return isinstance(opened[0], Shredded)
