"""What follows when states of the layout that held their neighbours' bytes are let go of.

Opening their file has deleted them and written down which keys die. This goes on from there, as an erasure
would: their keys are destroyed, every process lets go of them, the epoch is closed, and each receipt whose
own epoch was closed before is given a supplement that says what it had not covered. Each step may be done
again after a kill; what is owed stays on record in the states' file until all of it is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from attrs import frozen

from keys import Keyring
from projections import StateStore
from purge.errors import VerificationFailed
from purge.journal import Journal, Request
from purge.receipt import pae, receipt_file, statement_of
from purge.tlog import TransparencyLog

SUPPLEMENT_TYPE: Final = "urn:shredlake:erasure-receipt-supplement:v1"
_REASON: Final = "view-states-1"


@frozen
class Supplement:
    """What a receipt had not covered: a leaf of the transparency log of its own.

    Attributes:
        receipt_id: whose supplement it is.
    """

    receipt_id: str
    leaf: int
    payload: bytes

    def statement(self) -> dict[str, Any]:
        """The statement, not verified."""
        found: dict[str, Any] = json.loads(self.payload)
        return found


class Supplements:
    """Supplements to receipts, out of the transparency log; they are signed when they are handed out."""

    def __init__(self, keyring: Keyring, log: TransparencyLog) -> None:
        self._keyring = keyring
        self._log = log

    def add(self, request: Request, predicate: dict[str, Any]) -> None:
        """Appends a supplement; one of the same reason that is there already stays as it is."""
        payload = statement_of(SUPPLEMENT_TYPE, request.request_id, request.commitment, predicate)
        self._log.append(f"supplement/{request.request_id}/{predicate['reason']}", payload)

    def of(self, request_id: str) -> list[Supplement]:
        """Those to one receipt, oldest first."""
        return self._found(f"supplement/{request_id}/")

    def all(self) -> list[Supplement]:
        """Every supplement, oldest first."""
        return self._found("supplement/")

    def document(self, supplement: Supplement) -> bytes:
        """The supplement as handed out: what `purge.verifier` verifies."""
        signature = self._keyring.sign(pae(supplement.payload))
        return receipt_file(supplement.payload, signature, self._log.proof(supplement.leaf))

    def _found(self, prefix: str) -> list[Supplement]:
        leaves = self._log.named(prefix)
        return [Supplement(name.split("/")[1], leaf, data) for leaf, name, data in leaves]


def settle_retired_states(
    states: StateStore,
    keyring: Keyring,
    journal: Journal,
    supplements: Supplements,
    clock: Callable[[], datetime],
) -> int | None:
    """Does what is owed since states of layout 1 were let go of. Repeating it is success.

    Returns:
        To how many receipts it was said; None where nothing was owed.

    Raises:
        RestoreGateClosed: the fence log cannot be relied on; all stays owed.
        VerificationFailed: a key wrapped before the epoch was closed still opens.
        KeysError: a store or the custodian cannot be reached; all stays owed.
    """
    retired = states.retired()
    if retired is None:
        return None
    keyring.gate().trusted()
    states.drop_doomed()
    keyring.evict_everywhere()
    let_go_at = clock()
    closed = keyring.close_epoch()
    if not closed.old_wrap_refused:
        raise VerificationFailed("a key wrapped before the epoch was closed still opens")
    told = [request for request in journal.all() if _closed_its_epoch(request) is not None]
    for request in told:
        supplements.add(request, _predicate(request, retired, closed.root_version, let_go_at, clock()))
    states.settle_retired()
    return len(told)


def _closed_its_epoch(request: Request) -> str | None:
    """When the request closed the epoch that its receipt rests on; one that will yet closes another."""
    return next((s.finished_at for s in request.stages if s.stage == "epoch_closed" and s.finished_at), None)


def _predicate(
    request: Request, retired: int, root_version: int, let_go_at: datetime, closed_at: datetime
) -> dict[str, Any]:
    """Content-free: the same for every person but for the receipt's id and its time."""
    return {
        "receipt_id": request.request_id,
        "reason": _REASON,
        "not_covered": (
            "prepared states of views, sealed for groups of people: until now the states of other groups"
            " could hold values of this person beside their own, under keys that this erasure left in force"
        ),
        "since": _closed_its_epoch(request),
        "remedy": {
            "states_deleted": retired,
            "what": "all such states were deleted and their keys destroyed; views are derived anew",
            "root_version": root_version,
            "evidence": "a key wrapped before the epoch was refused by the custodian",
        },
        "level": {
            "name": "E1",
            "E0": {"means": "no running process can decrypt", "since": let_go_at.isoformat()},
            "E1": {
                "means": "no copy of the key pages or the lake can be opened",
                "since": closed_at.isoformat(),
            },
        },
    }
