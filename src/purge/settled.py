"""How far erasures have been carried through: what readers see is never of before that."""

from __future__ import annotations

from keys import FenceLog
from purge.journal import Journal
from purge.tlog import TransparencyLog


def newest_settled(fences: FenceLog, journal: Journal, log: TransparencyLog) -> int:
    """The fence up to which nothing is under way; no store alone decides it, since each may be an older copy.

    A receipt says so of its own fence. A fence whose request is not open is of one that has ended, or of one
    that an older journal does not know.
    """
    newest = fences.epoch()  # before the journal: whose fence it is then is open there, or has ended
    under_way = [
        fence.epoch
        for request_id, tag in journal.without_receipt()
        for fence in fences.of_tag(tag)
        if fence.request_id == request_id
    ]
    return max(log.newest_attested(), min(under_way, default=newest + 1) - 1)
