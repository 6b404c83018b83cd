#!/usr/bin/env python3
"""Verifies a Shredlake erasure receipt, or a supplement to one, offline. One file; needs only `cryptography`.

usage: python verifier.py RECEIPT.json KEY.vkey [--subject ID --salt HEX]

The key file holds the operator's verification keys, one a line: several once the signing key was rotated.

Checks, in this order: the file is byte for byte canonical; the signature over the statement (DSSE,
Ed25519); the statement is a leaf of the log (RFC 6962 inclusion proof) whose checkpoint is signed by
one of the keys; with --subject and --salt, that the receipt is about that person. Exit code 0: all hold.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "urn:shredlake:erasure-receipt:v1"
SUPPLEMENT_TYPE = "urn:shredlake:erasure-receipt-supplement:v1"


class Refused(Exception):
    """The receipt does not verify; the text says which check failed."""


def verify(receipt: bytes, vkeys: str, subject: str | None = None, salt: str | None = None) -> dict[str, Any]:
    """The verified statement.

    Args:
        receipt: the file's bytes.
        vkeys: the operator's keys, each `origin+hash+base64`, separated by white space.
        subject, salt: whom the receipt should be about, and the requester's salt in hex.

    Raises:
        Refused: a check failed.
    """
    try:
        keys = [_parse_key(vkey) for vkey in vkeys.split()]
        document = json.loads(receipt.decode())
        envelope, proof = document["envelope"], document["tlog_proof"]
        payload = _decode(envelope["payload"])
        signature = envelope["signatures"][0]
        raw_signature, key_id = _decode(signature["sig"]), signature["keyid"]
    except Refused:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Refused(f"not a receipt: {type(error).__name__}") from None
    if (json.dumps(document, sort_keys=True, indent=1) + "\n").encode() != receipt:
        raise Refused("the file is not in canonical form")
    if set(document) != {"envelope", "tlog_proof"} or len(envelope["signatures"]) != 1:
        raise Refused("the file holds more or less than envelope and proof")
    if envelope.get("payloadType") != PAYLOAD_TYPE:
        raise Refused("the payload type is not that of an in-toto statement")
    if not keys:
        raise Refused("the key is not a valid vkey")
    signer = next((k[2] for k in keys if hashlib.sha256(k[2]).hexdigest()[:16] == key_id), None)
    if signer is None:
        raise Refused("another key signed it")
    kind = PAYLOAD_TYPE.encode()
    _check_signature(signer, raw_signature, b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload))
    _check_log(proof, payload, keys)
    statement: dict[str, Any] = json.loads(payload)
    if statement.get("predicateType") not in (PREDICATE_TYPE, SUPPLEMENT_TYPE):
        raise Refused("the statement is neither an erasure receipt nor a supplement to one")
    if subject is not None:
        digest = hashlib.sha256(bytes.fromhex(salt or "") + subject.encode()).hexdigest()
        if statement["subject"][0]["digest"]["sha256"] != digest:
            raise Refused("the receipt is about somebody else")
    return statement


def described(statement: dict[str, Any]) -> str:
    """A verified statement in a line: a receipt, or what a receipt had not covered and since when it is."""
    name, predicate = statement["subject"][0]["name"], statement["predicate"]
    level = predicate["level"]["name"]
    if statement["predicateType"] == SUPPLEMENT_TYPE:
        return f"supplement to receipt {name}: level {level} since {predicate['level'][level]['since']}"
    return f"receipt {name}, level {level}"


def _parse_key(vkey: str) -> tuple[str, bytes, bytes]:
    try:
        origin, key_hash, body = vkey.strip().split("+", 2)
        raw = _decode(body)
        if raw[:1] != b"\x01" or len(raw) != 33:
            raise ValueError
        expected = hashlib.sha256(origin.encode() + b"\n" + raw).digest()[:4]
        if expected.hex() != key_hash:
            raise ValueError
    except ValueError:
        raise Refused("the key is not a valid vkey") from None
    return origin, expected, raw[1:]


def _check_signature(public: bytes, signature: bytes, message: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise Refused("the signature does not match") from None


def _check_log(proof: str, payload: bytes, keys: list[tuple[str, bytes, bytes]]) -> None:
    try:
        head, note, signed = proof.split("\n\n", 2)
        lines = head.split("\n")
        if lines[0] != "c2sp.org/tlog-proof@v1" or not lines[1].startswith("index "):
            raise ValueError
        index = int(lines[1][6:])
        siblings = [_decode(line) for line in lines[2:]]
        noted_origin, size_text, root_text = note.split("\n")
        size, root = int(size_text), _decode(root_text)
        dash, signer, body = signed.rstrip("\n").split(" ")
        raw = _decode(body)
    except ValueError:
        raise Refused("the log proof is malformed") from None
    mine = [public for origin, key_hash, public in keys if (origin, key_hash) == (signer, raw[:4])]
    if dash != "—" or noted_origin != signer or not mine:
        raise Refused("the checkpoint is of another log or key")
    _check_signature(mine[0], raw[4:], (note + "\n").encode())
    if _root(hashlib.sha256(b"\x00" + payload).digest(), index, size, siblings) != root:
        raise Refused("the statement is not in the log")


def _root(found: bytes, index: int, size: int, siblings: list[bytes]) -> bytes | None:
    if not 0 <= index < size:
        return None
    at, last = index, size - 1
    for sibling in siblings:
        if last == 0:
            return None
        if at % 2 or at == last:
            found = hashlib.sha256(b"\x01" + sibling + found).digest()
            while at % 2 == 0 and at:
                at, last = at >> 1, last >> 1
        else:
            found = hashlib.sha256(b"\x01" + found + sibling).digest()
        at, last = at >> 1, last >> 1
    return found if last == 0 else None


def _decode(text: str) -> bytes:
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise ValueError("base64 is not canonical")
    return raw


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Verify a Shredlake erasure receipt offline.")
    parser.add_argument("receipt", type=Path)
    parser.add_argument("key", type=Path, help="file with the operator's vkeys")
    parser.add_argument("--subject", help="check that the receipt is about this person")
    parser.add_argument("--salt", help="the requester's salt, in hex")
    options = parser.parse_args(arguments)
    try:
        statement = verify(
            options.receipt.read_bytes(), options.key.read_text(), options.subject, options.salt
        )
    except Refused as refused:
        print(f"REFUSED: {refused}", file=sys.stderr)
        return 1
    except (OSError, UnicodeDecodeError, ValueError) as error:
        print(f"REFUSED: cannot read: {type(error).__name__}", file=sys.stderr)
        return 1
    print(f"VERIFIED: {described(statement)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
