"""The fence log in a second failure domain: a signed, hash-chained copy in a file.

JSON Lines: a head with the counts and the newest link, one line per fence, one per authorised return,
and a last line with the custodian's Ed25519 signature (RFC 8032) over everything before it. A copy that
was cut or edited does not verify.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from keys.custodian import Custodian
from keys.errors import FenceCopyInvalid
from keys.fencelog import Fence, FenceLog, Return
from keys.restoregate import Remembered
from keys.signing import signature_is_valid

FORMAT: Final = "shredlake fence log 1"
_DOMAIN: Final = b"shredlake fence log 1\n"


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


class FenceCopy:
    """A copy's file: written here, and a witness of the restore gate.

    Args:
        path: in another failure domain than fence log and page store.
        custodian: signs it, and knows the keys it was signed with.
    """

    def __init__(self, path: Path, custodian: Custodian) -> None:
        self._path = path
        self._custodian = custodian
        self._read: tuple[tuple[int, int], Remembered | None] = ((0, 0), None)

    def newest_fence(self) -> Remembered | None:
        """The copy's newest fence; None while there is no copy or none in it. Read again when it changed.

        Raises:
            FenceCopyInvalid: it was cut, edited or signed by another custodian.
        """
        try:
            found = self._path.stat()
            stamp = found.st_mtime_ns, found.st_size
            if stamp != self._read[0]:
                self._read = stamp, self._look()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._invalid(f"the copy of the fence log cannot be read: {error.strerror}") from None
        return self._read[1]

    def write(self, log: FenceLog) -> int:
        """Replaces the copy by one of the log as it stands; the size in bytes.

        The caller has asked the gate, with this copy among its witnesses: a log that went back must not
        replace what knows more.
        """
        copy = export_fences(log, self._custodian)
        draft = self._path.with_name(self._path.name + ".new")
        draft.write_bytes(copy)
        draft.replace(self._path)
        return len(copy)

    def _look(self) -> Remembered | None:
        try:
            _, fences, _ = read_copy(self._path.read_bytes(), self._custodian.public_keys())
        except FenceCopyInvalid as error:
            raise self._invalid(error.message) from None
        if not fences:
            return None
        return Remembered("the signed copy", fences[-1].epoch, fences[-1].chain)

    def _invalid(self, message: str) -> FenceCopyInvalid:
        return FenceCopyInvalid(
            f"{message} ({self._path.name})",
            next_step="Put an intact copy in its place; where the fence log is known to be whole, move this"
            " one away and write a new one with `shredlake keys export-fences`.",
        )


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
    }


def _return(line: dict[str, Any]) -> Return:
    return Return(**(line | {"subject_tag": bytes.fromhex(line["subject_tag"])}))
