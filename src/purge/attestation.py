"""The statement of a receipt, out of the journaled request: content-free. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from attrs import frozen

from keys import ALL_PURPOSES
from purge.batchscan import SCAN, in_words
from purge.inventory import STORES
from purge.journal import Request


@frozen
class Assurance:
    """What the operator declares about copies of the root.

    Attributes:
        custodian: what holds the root.
        snapshot_horizon_days: after so many days every backup of the custodian is destroyed; None where
            the operator promises nothing.
    """

    custodian: str
    snapshot_horizon_days: int | None = None


EMBEDDED_ASSURANCE: Final = Assurance("root key file")


def predicate_of(request: Request, assurance: Assurance) -> dict[str, Any]:
    """What a receipt states about a request whose stages up to `verified` are done."""
    plan = request.detail("planned")
    stages = [
        {"stage": s.stage, "finished_at": s.finished_at, "seconds": s.seconds}
        for s in request.stages
        if s.finished_at
    ]
    finished = {s.stage: s.finished_at for s in request.stages if s.finished_at}
    scan = request.detail("views_rederived").get(SCAN, {})
    return {
        "receipt_id": request.request_id,
        "scope": "person" if request.purpose == ALL_PURPOSES else f"purpose {request.purpose}",
        "regime": request.regime,
        "received_at": request.received_at.isoformat(),
        "due_at": request.due_at.isoformat(),
        "stages": stages,
        "epoch": request.detail("fenced").get("epoch"),
        "fence_chain": request.detail("fenced").get("chain"),
        "sanitization": {
            "standard": "NIST SP 800-88r1",
            "method": "purge by cryptographic erase",
            "what": f"{request.detail('destroyed').get('key_records')} key record(s), AES-256-GCM",
            "verification": request.detail("verified").get("checks", []),
        },
        "level": {
            "name": "E1",
            "E0": {"means": "no running process can decrypt", "since": finished.get("states_unreadable")},
            "E1": {
                "means": "no copy of the key pages or the lake can be opened",
                "since": finished.get("epoch_closed"),
                "evidence": "a key wrapped before the epoch was refused by the custodian",
                "assumes": f"no backup of the {assurance.custodian} from before the epoch exists",
            },
            **_backup_level(finished.get("epoch_closed"), assurance),
        },
        "touched": {
            "blocks": plan.get("blocks"),
            "events": plan.get("events"),
            "severed_blocks": request.detail("swept").get("severed_blocks"),
            "views": request.detail("views_rederived").get("views"),
            "views_withdrawn": _reasons(request, "withdrawn"),
            "publications_dropped": request.detail("views_rederived").get("dropped", []),
            "dead_letters": (request.detail("letters_redacted").get("letters") or 0)
            + plan.get("own_letters", 0),
        },
        "shown_in_clear": plan.get("shown", []),
        **({SCAN: scan} if scan else {}),
        "stores": [store.name for store in STORES],
        "open_stores": request.detail("verified").get("open_stores", []),
        "not_addressed": [
            f"backups of the {assurance.custodian} made before the epoch was closed",
            f"residue on the disk under the {assurance.custodian} (copy-on-write, wear levelling)",
            *_kept_publications(request),
            *_uncovered(request),
            "anonymous fields, kept by design",
            "what other people's own data says of the person, sealed under them; `erase scan` counts it",
            "unreadable blocks in data files of older snapshots, until these expire",
            *in_words(scan),
            *(
                f"the published view {name}, served on as stale until it builds again: {reason}"
                for name, reason in _reasons(request, "stale").items()
            ),
        ],
    }


def backups_gone_at(epoch_closed_at: datetime, assurance: Assurance) -> datetime | None:
    """From when no backup of the custodian brings back what was erased; None where nobody declared it."""
    days = assurance.snapshot_horizon_days
    return None if days is None else epoch_closed_at + timedelta(days=days)


def _reasons(request: Request, what: str) -> dict[str, str]:
    """View → why it could not be derived anew; begun by an earlier release, names alone."""
    found = request.detail("views_rederived").get(what) or {}
    return dict(found) if isinstance(found, Mapping) else dict.fromkeys(found, "there is no code for it")


def _kept_publications(request: Request) -> list[str]:
    """What stays of earlier publications."""
    found = request.detail("views_rederived")
    awaited = [
        f"publication {one['publication']} of {one['view']}, whose rows go with the view's next publication"
        for one in found.get("awaited", [])
    ]
    kept = "aggregates published before the erasure, kept as reported then"
    return [f"{kept}, but for those that were dropped" if "dropped" in found else kept, *awaited]


def _uncovered(request: Request) -> list[str]:
    """Earlier publications that today's rules do not reach; those that outlive purposes where it is one."""
    return [
        str(one["text"])
        for one in request.detail("planned").get("uncovered", [])
        if one["kind"] == "not_judged" or request.purpose in one["purposes"]
    ]


def _backup_level(epoch_closed_at: str | None, assurance: Assurance) -> dict[str, Any]:
    """E2, where the operator declared when the custodian's backups are destroyed."""
    due = backups_gone_at(datetime.fromisoformat(epoch_closed_at), assurance) if epoch_closed_at else None
    if due is None:
        return {}
    days = assurance.snapshot_horizon_days
    return {
        "E2": {
            "means": "no backup of the custodian can bring the key back",
            "due": due.isoformat(),
            "evidence": f"the operator's declaration that such backups are destroyed after {days} days",
            "assumes": "the declaration is kept; until then a restored backup opens a restored lake",
        }
    }
