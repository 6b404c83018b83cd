"""Makes tests/vectors/cse1.json: `python -m tests.vectors.generate`.

The envelopes that a faulty writer seals, and every zstd frame but those of "compressed", are made by hand,
so that they are the same with every release of every library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zstandard

from keys import FieldContext
from keys import envelope as cse1
from keys.aead import AEADS

PATH = Path(__file__).parent / "cse1.json"
DEK, SALT, NONCE = bytes(range(32)), bytes(range(100, 116)), bytes(range(200, 212))
REF, BLOCK = bytes(range(16)), bytes(range(16, 32))
TABLE = bytes.fromhex("00112233445566778899aabbccddeeff")
CONTEXT = FieldContext(TABLE, 16, "personal", "service", "Purchased", 1)
BODY = b"The quick brown fox jumps over the lazy dog. " * 8
SHORT = b"one short record"
SUITES = (1, 2, 3)
ZSTD, PADDED = 1, 2
MOST_BYTES = 64 * 1024 * 1024
RAW, RLE = 0, 1
LARGEST_BLOCK = 128 * 1024

Failing = tuple[str, str, str, bytes, dict[str, Any]]
"""Name, reason, fault, envelope, what else differs from the usual inputs."""


def sealed(
    body: bytes,
    suite: int = 1,
    *,
    compress: bool = False,
    pad: bool = False,
    context: FieldContext = CONTEXT,
    generation: int = 7,
) -> bytes:
    """An envelope of fixed key, salt and nonce."""
    return cse1.seal(
        cse1.derive(DEK, context.derivation_info(suite), SALT, suite),
        body,
        prefix=context.associated_prefix(),
        ref=REF,
        block_id=BLOCK,
        generation=generation,
        salt=SALT,
        nonce=NONCE,
        suite=suite,
        compressor=zstandard.ZstdCompressor(level=3) if compress else None,
        pad=pad,
    )


def sealed_raw(body: bytes, flags: int, suite: int = 1) -> bytes:
    """An authentic envelope of any body under any flags, as a faulty writer would make it."""
    subkey = cse1.derive(DEK, CONTEXT.derivation_info(suite), SALT, suite)
    bound = cse1.associated_data(CONTEXT.associated_prefix(), flags, 7, REF, BLOCK)
    head = bytes((0xE1, suite, flags, 0, 7)) + SALT + subkey.commitment + NONCE
    return head + AEADS[subkey.suite](subkey.key).encrypt(NONCE, body, bound)


def block(content: bytes, *, is_last: bool = True, kind: int = RAW, length: int | None = None) -> bytes:
    """A block of a zstd frame (RFC 8878, section 3.1.1.2)."""
    size = len(content) if length is None else length
    return (size << 3 | kind << 1 | is_last).to_bytes(3, "little") + content


def frame(*blocks: bytes, states: int, has_checksum: bool = False) -> bytes:
    """A zstd frame of one segment (RFC 8878, section 3.1.1) that states a content size."""
    wide = states > 255
    size = states.to_bytes(4 if wide else 1, "little")
    return (
        bytes.fromhex("28b52ffd")
        + bytes(((0xA0 if wide else 0x20) | has_checksum << 2,))
        + size
        + b"".join(blocks)
    )


def zeros(count: int) -> list[bytes]:
    """Blocks of so many zeros, four bytes each."""
    sizes = [LARGEST_BLOCK] * (count // LARGEST_BLOCK) + [count % LARGEST_BLOCK] * (count % LARGEST_BLOCK > 0)
    last = len(sizes) - 1
    return [block(b"\0", is_last=n == last, kind=RLE, length=size) for n, size in enumerate(sizes)]


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


def flipped(envelope: bytes, at: int, bits: int = 1) -> bytes:
    """Some bits of one byte changed."""
    changed = bytearray(envelope)
    changed[at] ^= bits
    return bytes(changed)


def passing() -> Iterator[dict[str, Any]]:
    """Must-pass vectors."""
    for suite in SUITES:
        yield case(f"suite {suite}", sealed(SHORT, suite), body=SHORT.hex())
        yield case(f"suite {suite}: empty body", sealed(b"", suite), body="")
        yield case(f"suite {suite}: padded", sealed(SHORT, suite, pad=True), body=SHORT.hex())
        yield case(f"suite {suite}: compressed", sealed(BODY, suite, compress=True), body=BODY.hex())
        both = sealed(BODY, suite, compress=True, pad=True)
        yield case(f"suite {suite}: compressed and padded", both, body=BODY.hex())
    yield case("long body", sealed(BODY), body=BODY.hex())
    marked = b"ends like padding\x80\x00\x00"
    yield case("a body that ends like padding", sealed(marked, pad=True), body=marked.hex())
    yield case("an empty body, padded", sealed(b"", pad=True), body="")
    stored = frame(block(SHORT), states=len(SHORT))
    yield case("a frame that only stores", sealed_raw(stored, ZSTD), body=SHORT.hex())
    named = FieldContext(TABLE, 2**32 - 1, "pérsonal", "sérvice", "Gekauft – 購入", 2**32 - 1)
    other = {
        "field_id": named.field_id,
        "field_class": named.field_class,
        "purpose": named.purpose,
        "event_type": named.event_type,
        "schema_version": named.schema_version,
    }
    yield (
        case("names beyond ASCII and the largest numbers", sealed(SHORT, context=named), body=SHORT.hex())
        | other
    )
    yield case("the largest generation", sealed(SHORT, generation=2**16 - 1), body=SHORT.hex())


def changed_bytes(suite: int) -> Iterator[Failing]:
    """Every field of the layout changed or cut."""
    good = sealed(SHORT, suite)
    yield "nothing", "no byte at all", "length", b"", {}
    yield "head cut", "80 bytes are too few", "length", good[:80], {}
    yield "tail cut", "the last byte of the tag is missing", "tag", good[:-1], {}
    yield "tail added", "a byte follows the tag", "tag", good + b"\0", {}
    yield "magic", "foreign first byte", "magic", b"\xe2" + good[1:], {}
    for number in (0, 4, 255):
        why = f"suite {number} is not known"
        yield f"suite {number} said", why, "suite", good[:1] + bytes((number,)) + good[2:], {}
    other = suite % 3 + 1
    why = "another suite derives another key"
    yield f"suite {other} said", why, "commitment", good[:1] + bytes((other,)) + good[2:], {}
    for bit in range(2, 8):
        why = f"flag 0x{1 << bit:02x} is not defined"
        yield f"flag 0x{1 << bit:02x} set", why, "flags", flipped(good, 2, 1 << bit), {}
    yield "zstd flag set", "flags are bound", "tag", flipped(good, 2, ZSTD), {}
    yield "padding flag set", "flags are bound", "tag", flipped(good, 2, PADDED), {}
    padded = sealed(SHORT, suite, pad=True)
    yield "padding flag cleared", "flags are bound", "tag", flipped(padded, 2, PADDED), {}
    for byte in (3, 4):
        yield f"generation, byte {byte}", "the generation is bound", "tag", flipped(good, byte), {}
    for byte in (5, 20):
        yield f"salt, byte {byte}", "another salt derives another key", "commitment", flipped(good, byte), {}
    for byte in (21, 52):
        yield f"commitment, byte {byte}", "it is another key's", "commitment", flipped(good, byte), {}
    for byte in (53, 64):
        yield f"nonce, byte {byte}", "the nonce is authenticated", "tag", flipped(good, byte), {}
    for byte in (65, len(good) - 17):
        yield f"ciphertext, byte {byte}", "the ciphertext is authenticated", "tag", flipped(good, byte), {}
    for byte in (len(good) - 16, len(good) - 1):
        yield f"tag, byte {byte}", "the tag was changed", "tag", flipped(good, byte), {}


def other_contexts(suite: int) -> Iterator[Failing]:
    """Every part of the context another one, one by one; and parts that differ in their borders alone."""
    good = sealed(SHORT, suite)
    other_keys = {
        "dek": bytes(32).hex(),
        "table_uuid": flipped(TABLE, 15).hex(),
        "field_class": "state",
        "purpose": "marketing",
    }
    for name, value in other_keys.items():
        yield f"another {name}", f"{name} derives the key", "commitment", good, {name: value}
    bound = {
        "field_id": 17,
        "event_type": "Paid",
        "schema_version": 2,
        "ref": flipped(REF, 15).hex(),
        "block_id": flipped(BLOCK, 15).hex(),
    }
    for name, value in bound.items():
        yield f"another {name}", f"{name} is associated data", "tag", good, {name: value}
    moved = {"field_class": "personals", "purpose": "ervice"}
    yield "a letter from purpose to class", "lengths are part of the key's context", "commitment", good, moved
    moved = {"ref": (REF + BLOCK[:1]).hex(), "block_id": BLOCK[1:].hex()}
    yield "a byte from block to handle", "lengths are associated data", "tag", good, moved


def bad_bodies() -> list[tuple[str, str, str, int, bytes]]:
    """Bodies that are not what the flags promise: name, reason, fault, flags, body."""
    hello = frame(block(b"hello"), states=5)
    return [
        ("no end mark", "zeros without 0x80", "padding", PADDED, b"body\x01\0\0"),
        ("only zeros", "zeros without 0x80", "padding", PADDED, bytes(8)),
        ("no padding", "an empty body where padding is promised", "padding", PADDED, b""),
        ("no frame", "not zstd at all", "zstd_frame", ZSTD, b"plain text"),
        ("no byte of a frame", "an empty body where a frame is promised", "zstd_frame", ZSTD, b""),
        ("half a frame", "the last byte is missing", "zstd_frame", ZSTD, hello[:-1]),
        ("bad block", "block type 3 is reserved", "zstd_frame", ZSTD, frame(block(b"hello", kind=3), states=5)),
        ("bad checksum", "the checksum is another content's", "zstd_frame", ZSTD, frame(block(b"hello"), states=5, has_checksum=True) + bytes(4)),
        ("more than stated", "five bytes where three are stated", "zstd_frame", ZSTD, frame(block(b"hello"), states=3)),
        ("less than stated", "five bytes where nine are stated", "zstd_frame", ZSTD, frame(block(b"hello"), states=9)),
        ("dictionary", "a dictionary is asked for", "zstd_frame", ZSTD, bytes.fromhex("28b52ffd210705") + block(b"hello")),
        ("no size", "the frame does not state its size", "zstd_size_absent", ZSTD, bytes.fromhex("28b52ffd0058") + block(b"hello")),
        ("size zero", "an empty body is never compressed", "zstd_size_zero", ZSTD, frame(block(b""), states=0)),
        ("size zero, five bytes", "the stated size is what counts", "zstd_size_zero", ZSTD, frame(block(b"hello"), states=0)),
        ("skippable frame", "it has no content", "zstd_size_zero", ZSTD, bytes.fromhex("502a4d1803000000") + b"abc"),
        ("size over the limit", "it is refused before a byte is decompressed", "zstd_size_over", ZSTD, frame(block(b"hello"), states=MOST_BYTES + 1)),
        ("a byte behind the frame", "one frame is the whole body", "zstd_trailing", ZSTD, hello + b"x"),
        ("two frames", "one frame is the whole body", "zstd_trailing", ZSTD, hello * 2),
        ("padded: no frame", "padding is taken off first", "zstd_frame", ZSTD | PADDED, b"plain text\x80\0\0"),
        ("padded: no end mark", "padding is looked at first", "padding", ZSTD | PADDED, hello + b"\x01"),
    ]  # fmt: skip


def badly_sealed(suite: int) -> Iterator[Failing]:
    """The same in authentic envelopes."""
    for name, why, fault, flags, body in bad_bodies():
        yield name, why, fault, sealed_raw(body, flags, suite), {}


def failing() -> Iterator[dict[str, Any]]:
    """Must-fail vectors, each with its reason and the code of its fault."""
    for suite in SUITES:
        for made in (changed_bytes, other_contexts, badly_sealed):
            for name, why, fault, envelope, other in made(suite):
                yield case(f"suite {suite}: {name}", envelope, **other) | {"reason": why, "fault": fault}
    bomb = sealed_raw(frame(*zeros(MOST_BYTES + 1), states=MOST_BYTES + 1), ZSTD)
    why = "two kilobytes that would become one byte too many"
    yield case("a bomb", bomb) | {"reason": why, "fault": "zstd_size_over"}
    liar = sealed_raw(frame(*zeros(MOST_BYTES + 1), states=5), ZSTD)
    why = "the same bomb, which states five bytes"
    yield case("a bomb that lies", liar) | {"reason": why, "fault": "zstd_frame"}


def vectors() -> dict[str, Any]:
    """Must-pass with the body, must-fail with reason and fault."""
    return {"format": "CSE1", "must_pass": list(passing()), "must_fail": list(failing())}


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n")
