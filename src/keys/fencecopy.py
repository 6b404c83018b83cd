"""The fence log in a second failure domain: a signed, hash-chained copy.

JSON Lines: a head with the counts and the newest link, one line per fence, one per authorised return,
and a last line with the custodian's Ed25519 signature (RFC 8032) over everything before it. A copy that
was cut or edited does not verify.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from keys.custodian import Custodian
from keys.errors import FenceCopyInvalid
from keys.fencelog import Fence, FenceLog, Return
from keys.restoregate import Remembered
from keys.signing import signature_is_valid

FORMAT: Final = "shredlake fence log 2"
_DOMAIN: Final = b"shredlake fence log 2\n"


@frozen
class Merged:
    """What an import did: how many fences the copy holds, and how many were new here."""

    fences: int
    added: int
    returns_added: int


def export_fences(log: FenceLog, custodian: Custodian) -> bytes:
    """The whole log, signed.

    Raises:
        ValueError: the log's own chain is broken.
    """
    log.verify()
    fences, returns = log.all(), log.returns()
    head = {
        "format": FORMAT,
        "log": log.log_id(),
        "fences": len(fences),
        "returns": len(returns),
        "chain": fences[-1].chain.hex() if fences else "",
    }
    lines = [head, *(_fence_line(fence) for fence in fences), *(_return_line(one) for one in returns)]
    body = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode()
    signature = custodian.sign(_DOMAIN + hashlib.sha256(body).digest())
    seal = {"key_id": signature.key_id, "signature": base64.b64encode(signature.value).decode()}
    return body + (json.dumps(seal, sort_keys=True) + "\n").encode()


def import_fences(copy: bytes, log: FenceLog, public_keys: Mapping[str, bytes]) -> Merged:
    """Adds what the log lacks; it is never overwritten and never gets shorter.

    Raises:
        FenceCopyInvalid: cut, edited, signed by somebody else, or of another history.
    """
    log_id, fences, returns = read_copy(copy, public_keys)
    mine = log.all()
    common = min(len(mine), len(fences))
    if [f.chain for f in mine[:common]] != [f.chain for f in fences[:common]]:
        raise FenceCopyInvalid("the copy and the log here are of two histories that parted")
    if log_id != log.log_id():
        if mine and not common:
            raise FenceCopyInvalid("the copy is of another log, and has no fence in common with the one here")
        log.take_id(log_id)
    added = log.restore(fences[common:], returns)
    return Merged(len(fences), len(fences) - common, added)


def newest_of(copy: bytes, public_keys: Mapping[str, bytes], by: str) -> Remembered | None:
    """A copy's newest fence, as a witness of the restore gate says it; None where it has none.

    Args:
        by: what remembers it, for people.

    Raises:
        FenceCopyInvalid: it was cut, edited or signed by another custodian.
    """
    _, fences, _ = read_copy(copy, public_keys)
    return Remembered(by, fences[-1].epoch, fences[-1].chain) if fences else None


def read_copy(copy: bytes, public_keys: Mapping[str, bytes]) -> tuple[str, list[Fence], list[Return]]:
    """(the log's name, fences, returns) of a copy.

    Raises:
        FenceCopyInvalid: see `import_fences`.
    """
    body, _, last = copy.rstrip(b"\n").rpartition(b"\n")
    body += b"\n"
    try:
        seal: dict[str, Any] = json.loads(last)
        key = public_keys[seal["key_id"]]
        value = base64.b64decode(seal["signature"])
    except (ValueError, KeyError, TypeError):
        raise FenceCopyInvalid("the copy does not end with a signature of this lake's custodian") from None
    if not signature_is_valid(key, _DOMAIN + hashlib.sha256(body).digest(), value):
        raise FenceCopyInvalid("the copy was cut or edited: its signature does not fit")
    head, *lines = [json.loads(line) for line in body.splitlines()]
    count = int(head["fences"])
    fences = [_fence(line) for line in lines[:count]]
    return str(head["log"]), fences, [_return(line) for line in lines[count:]]


def _fence_line(fence: Fence) -> dict[str, Any]:
    return {
        "epoch": fence.epoch,
        "subject_tag": fence.subject_tag.hex(),
        "ref_tag": fence.ref_tag.hex(),
        "purpose": fence.purpose,
        "generation": fence.generation,
        "request_id": fence.request_id,
        "fenced_at": fence.fenced_at,
        "chain": fence.chain.hex(),
    }


def _fence(line: dict[str, Any]) -> Fence:
    raw = {name: bytes.fromhex(line[name]) for name in ("subject_tag", "ref_tag", "chain")}
    return Fence(**(line | raw))


def _return_line(one: Return) -> dict[str, Any]:
    return {
        "subject_tag": one.subject_tag.hex(),
        "purpose": one.purpose,
        "epoch": one.epoch,
        "authorized_at": one.authorized_at,
        "mac": one.mac.hex(),
    }


def _return(line: dict[str, Any]) -> Return:
    raw = {name: bytes.fromhex(line[name]) for name in ("subject_tag", "mac")}
    return Return(**(line | raw))
