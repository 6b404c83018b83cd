"""Receipts: a DSSE envelope over an in-toto statement, content-free, with its log proof.

The commitment to the person is SHA-256(salt ‖ id); the salt goes only to whoever asked.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from keys import Signature

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:shredlake:erasure-receipt:v1"


def commitment(salt: bytes, subject: str) -> str:
    """Hex SHA-256 of salt and id."""
    return hashlib.sha256(salt + subject.encode()).hexdigest()


def statement(receipt_id: str, person_commitment: str, predicate: Mapping[str, Any]) -> bytes:
    """Canonical JSON of a receipt's in-toto statement: what is signed and what is the log's leaf."""
    return statement_of(PREDICATE_TYPE, receipt_id, person_commitment, predicate)


def statement_of(kind: str, receipt_id: str, person_commitment: str, predicate: Mapping[str, Any]) -> bytes:
    """The same, with a predicate of any type about the person of a receipt."""
    body = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": receipt_id, "digest": {"sha256": person_commitment}}],
        "predicateType": kind,
        "predicate": predicate,
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def pae(payload: bytes) -> bytes:
    """DSSE pre-authentication encoding: what is signed."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def receipt_file(payload: bytes, signature: Signature, proof: str) -> bytes:
    """The receipt as handed out: canonical JSON of envelope and proof."""
    body = {
        "envelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"keyid": signature.key_id, "sig": base64.b64encode(signature.value).decode()}],
        },
        "tlog_proof": proof,
    }
    return (json.dumps(body, sort_keys=True, indent=1) + "\n").encode()


def payload_of(receipt: bytes) -> dict[str, Any]:
    """The statement inside a receipt, not verified."""
    body: dict[str, Any] = json.loads(base64.b64decode(json.loads(receipt)["envelope"]["payload"]))
    return body
