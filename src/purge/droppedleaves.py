"""Every drop of a publication is a leaf of the transparency log: an auditor sees that it went, and when.

Why is free text, which may name somebody; the record of publications keeps it.
"""

from __future__ import annotations

import json
from typing import Final

from projections import Ledger
from purge.tlog import TransparencyLog

_DROPPED: Final = "dropped/"


def log_drops(ledger: Ledger, log: TransparencyLog) -> int:
    """Makes every drop that is noted a leaf; repeating it is success. Returns how many were added."""
    noted = {f"{one.publication_id}/{one.at.isoformat()}": one for one in ledger.dropped().values()}
    new = noted.keys() - set(log.names_below(_DROPPED)) if noted else set()
    for name in sorted(new):
        one = noted[name]
        stated = {"dropped": one.publication_id, "view": one.view, "at": one.at.isoformat()}
        log.append(_DROPPED + name, json.dumps(stated, sort_keys=True, separators=(",", ":")).encode())
    return len(new)
