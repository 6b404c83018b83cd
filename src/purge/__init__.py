"""purge: from a request to a proof.

A journaled saga fences a person, destroys one key, derives views anew, sweeps, verifies and signs a
receipt that anyone can check offline.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path

from keys import Effects, Keyring
from lake import Lake
from projections import Views
from purge.attestation import EMBEDDED_ASSURANCE, Assurance, backups_gone_at
from purge.batchscan import Look
from purge.clocks import REGIMES, Regime, due_at
from purge.errors import (
    IdempotencyConflict,
    NotCancellable,
    PurgeError,
    ReceiptInvalid,
    UnderHold,
    UnknownPurpose,
    UnknownRequest,
    UnknownSubject,
    VerificationFailed,
)
from purge.inventory import STORES, Store, store_of, unregistered
from purge.journal import Journal, Request, StageRecord, Stuck, standing_of
from purge.mending import Supplement, Supplements, settle_retired_states
from purge.receipt import payload_of
from purge.saga import MAX_TOGETHER, OPEN_STATUSES, Purge, Submitted
from purge.scanner import Failure, Finding, Scanned, scan, scan_for
from purge.settled import newest_settled
from purge.stages import STAGES, Standing, Status
from purge.steps import Plan, Steps
from purge.tlog import Checkpoint, TransparencyLog, verifier_key, verifier_keys


def open_evidence(
    home: Path, keyring: Keyring, clock: Callable[[], datetime], effects: Effects
) -> tuple[Journal, TransparencyLog]:
    """Request journal and transparency log of a lake. Both become witnesses of the restore gate."""
    journal = Journal(home / "purge" / "journal.db", clock, effects, keyring.fences.reference_tag)
    log = TransparencyLog(home / "evidence" / "tlog.db", keyring, effects)
    keyring.gatekeeping.witnesses += [journal.newest_fence, log.newest_fence]
    return journal, log


def open_purge(
    home: Path,
    lake: Lake,
    views: Views,
    assurance: Assurance = EMBEDDED_ASSURANCE,
    copy_fences: Callable[[], Mapping[str, str]] = dict,
    serve_stale: Collection[str] = (),
    drop_affected: Collection[str] = (),
    look: Look | None = None,
) -> Purge:
    """Erasures of the lake in a folder: journal, transparency log and locks below it.

    Args:
        copy_fences: writes the fence log's copies; place → what came of it.
        serve_stale: views that are served on where an erasure cannot derive them anew; `*` stands for all.
        drop_affected: views whose publications go with an erasure where they count the person; likewise.
        look: scans the lake for the people of a batch; None where receipts say nothing of it.
    """
    journal, log = open_evidence(home, lake.keyring, lake.clock, lake.effects)
    views.restored.newest_logged = log.newest_publications
    views.restored.newest_settled = lambda: newest_settled(lake.keyring.fences, journal, log)
    steps = Steps(home, lake, views, journal, log, assurance, copy_fences, serve_stale, drop_affected, look)
    return Purge(home, lake, views, steps, journal, log)


__all__ = [
    "EMBEDDED_ASSURANCE",
    "MAX_TOGETHER",
    "OPEN_STATUSES",
    "REGIMES",
    "STAGES",
    "STORES",
    "Assurance",
    "Checkpoint",
    "Failure",
    "Finding",
    "IdempotencyConflict",
    "Journal",
    "NotCancellable",
    "Plan",
    "Purge",
    "PurgeError",
    "ReceiptInvalid",
    "Regime",
    "Request",
    "Scanned",
    "StageRecord",
    "Standing",
    "Status",
    "Store",
    "Stuck",
    "Submitted",
    "Supplement",
    "Supplements",
    "TransparencyLog",
    "UnderHold",
    "UnknownPurpose",
    "UnknownRequest",
    "UnknownSubject",
    "VerificationFailed",
    "backups_gone_at",
    "due_at",
    "open_purge",
    "payload_of",
    "scan",
    "scan_for",
    "settle_retired_states",
    "standing_of",
    "store_of",
    "unregistered",
    "verifier_key",
    "verifier_keys",
]
