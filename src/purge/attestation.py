"""The statement of a receipt, out of the journaled request: content-free. Pure."""

from __future__ import annotations

from typing import Any

from keys import ALL_PURPOSES
from purge.inventory import STORES
from purge.journal import Request


def predicate_of(request: Request) -> dict[str, Any]:
    """What a receipt states about a request whose stages up to `verified` are done."""
    plan = request.detail("planned")
    stages = [
        {"stage": s.stage, "finished_at": s.finished_at, "seconds": s.seconds}
        for s in request.stages
        if s.finished_at
    ]
    finished = {s["stage"]: s["finished_at"] for s in stages}
    return {
        "receipt_id": request.request_id,
        "scope": "person" if request.purpose == ALL_PURPOSES else f"purpose {request.purpose}",
        "regime": request.regime,
        "received_at": request.received_at.isoformat(),
        "due_at": request.due_at.isoformat(),
        "stages": stages,
        "epoch": request.detail("fenced").get("epoch"),
        "sanitization": {
            "standard": "NIST SP 800-88r1",
            "method": "purge by cryptographic erase",
            "what": f"{request.detail('destroyed').get('key_records')} key record(s), AES-256-GCM",
            "verification": request.detail("verified").get("checks", []),
        },
        "level": {
            "name": "E1",
            "E0": {"means": "no running process can decrypt", "since": finished.get("unreadable")},
            "E1": {
                "means": "no copy of the key pages or the lake can be opened",
                "since": finished.get("epoch_closed"),
                "evidence": "a key wrapped before the epoch was refused by the custodian",
                "assumes": "no copy of the root key file from before the epoch exists",
            },
        },
        "touched": {
            "blocks": plan.get("blocks"),
            "events": plan.get("events"),
            "severed_blocks": request.detail("swept").get("severed_blocks"),
            "views": request.detail("views_rederived").get("views"),
            "dead_letters": request.detail("letters_redacted").get("letters"),
        },
        "stores": [store.name for store in STORES],
        "not_addressed": [
            "copies of the root key file made before the epoch was closed",
            "residue on the disk under the root key file (copy-on-write, wear levelling)",
            "aggregates published before the erasure, kept as reported then",
            "anonymous fields, kept by design",
            "unreadable blocks in data files of older snapshots, until these expire",
        ],
    }
