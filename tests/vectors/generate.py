"""Makes tests/vectors/cse1.json: `python -m tests.vectors.generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import zstandard

from keys import FieldContext
from keys import envelope as cse1

PATH = Path(__file__).parent / "cse1.json"
DEK, SALT, NONCE = bytes(range(32)), bytes(range(100, 116)), bytes(range(200, 212))
REF, BLOCK = bytes(range(16)), bytes(range(16, 32))
TABLE = bytes.fromhex("00112233445566778899aabbccddeeff")
CONTEXT = FieldContext(TABLE, 16, "personal", "service", "Purchased", 1)
BODY = b"The quick brown fox jumps over the lazy dog. " * 8


def sealed(body: bytes, suite: int = 1, *, compress: bool = False, pad: bool = False) -> bytes:
    """An envelope of fixed key, salt and nonce."""
    return cse1.seal(
        cse1.derive(DEK, CONTEXT.derivation_info(suite), SALT, suite),
        body,
        prefix=CONTEXT.associated_prefix(),
        ref=REF,
        block_id=BLOCK,
        generation=7,
        salt=SALT,
        nonce=NONCE,
        suite=suite,
        compressor=zstandard.ZstdCompressor(level=3) if compress else None,
        pad=pad,
    )


def case(name: str, envelope: bytes, **other: Any) -> dict[str, Any]:
    """Inputs of one opening."""
    return {
        "name": name,
        "envelope": envelope.hex(),
        "dek": DEK.hex(),
        "table_uuid": TABLE.hex(),
        "field_id": 16,
        "field_class": "personal",
        "purpose": "service",
        "event_type": "Purchased",
        "schema_version": 1,
        "ref": REF.hex(),
        "block_id": BLOCK.hex(),
    } | other


def flipped(envelope: bytes, at: int) -> bytes:
    """One bit changed."""
    changed = bytearray(envelope)
    changed[at] ^= 1
    return bytes(changed)


def vectors() -> dict[str, Any]:
    """Must-pass with the body, must-fail with reason and error."""
    short = b"one short record"
    good = sealed(short)
    passing = [case(f"suite {s}", sealed(short, s), body=short.hex()) for s in (1, 2, 3)]
    passing += [
        case("empty body", sealed(b""), body=""),
        case("long body", sealed(BODY), body=BODY.hex()),
        case("compressed", sealed(BODY, compress=True), body=BODY.hex()),
        case("padded", sealed(short, pad=True), body=short.hex()),
        case("compressed and padded", sealed(BODY, compress=True, pad=True), body=BODY.hex()),
    ]
    failing = [
        ("too short", "MalformedEnvelope", case("truncated head", good[:80])),
        ("the tag is incomplete", "TamperedEnvelope", case("truncated tail", good[:-1])),
        ("foreign first byte", "MalformedEnvelope", case("magic", b"\xe2" + good[1:])),
        ("suite 9 is not known", "MalformedEnvelope", case("suite", good[:1] + b"\x09" + good[2:])),
        ("flag 0x80 is not defined", "MalformedEnvelope", case("flags", good[:2] + b"\x80" + good[3:])),
        ("flags are bound", "TamperedEnvelope", case("zstd flag set", good[:2] + b"\x01" + good[3:])),
        ("the generation is bound", "TamperedEnvelope", case("generation", flipped(good, 4))),
        ("another salt derives another key", "WrongKey", case("salt", flipped(good, 5))),
        ("commitment to another key", "WrongKey", case("commitment", flipped(good, 21))),
        ("the nonce is authenticated", "TamperedEnvelope", case("nonce", flipped(good, 53))),
        ("ciphertext changed", "TamperedEnvelope", case("ciphertext", flipped(good, 65))),
        ("tag changed", "TamperedEnvelope", case("tag", flipped(good, len(good) - 1))),
        ("another DEK", "WrongKey", case("dek", good, dek=bytes(32).hex())),
        ("another purpose", "WrongKey", case("purpose", good, purpose="marketing")),
        ("another field class", "WrongKey", case("class", good, field_class="state")),
        ("another table", "WrongKey", case("table", good, table_uuid=bytes(16).hex())),
        ("another field", "TamperedEnvelope", case("field", good, field_id=17)),
        ("another person", "TamperedEnvelope", case("ref", good, ref=bytes(16).hex())),
        ("another block", "TamperedEnvelope", case("block", good, block_id=bytes(16).hex())),
        ("another event type", "TamperedEnvelope", case("type", good, event_type="Paid")),
        ("another schema version", "TamperedEnvelope", case("version", good, schema_version=2)),
    ]
    return {
        "format": "CSE1",
        "must_pass": passing,
        "must_fail": [vector | {"reason": why, "error": error} for why, error, vector in failing],
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n")
