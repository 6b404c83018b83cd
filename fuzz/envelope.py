"""Fuzzes parse and open of CSE1: no crash, no wrong plaintext, every refusal an error of its own.

Half of the inputs are mutations of a good envelope, so that the fuzzer gets past the header at once.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["keys"]):
    from keys import envelope
    from keys.envelope import FieldContext
    from keys.errors import MalformedEnvelope, TamperedEnvelope, WrongKey

CONTEXT = FieldContext(b"t" * 16, 16, "personal", "service", "T", 1)
PLACE = {"prefix": CONTEXT.associated_prefix(), "ref": b"r" * 16, "block_id": b"b" * 16}
DEK, SALT, BODY = b"d" * 32, b"s" * 16, b"what was said " * 40
GOOD = {
    suite: envelope.seal(
        envelope.derive(DEK, CONTEXT.derivation_info(suite), SALT, suite),
        BODY,
        **PLACE,
        generation=1,
        salt=SALT,
        nonce=b"n" * 12,
        suite=suite,
        pad=suite == envelope.SUITE_AES_GCM_SIV,
    )
    for suite in (1, 2, 3)
}


def try_one(data: bytes) -> None:
    """One input."""
    provider = atheris.FuzzedDataProvider(data)
    if provider.ConsumeBool():
        candidate = bytearray(GOOD[provider.ConsumeIntInRange(1, 3)])
        for _ in range(provider.ConsumeIntInRange(0, 4)):
            candidate[provider.ConsumeIntInRange(0, len(candidate) - 1)] = provider.ConsumeIntInRange(0, 255)
        sealed = bytes(candidate[: provider.ConsumeIntInRange(0, len(candidate))])
    else:
        sealed = provider.ConsumeBytes(provider.remaining_bytes())
    try:
        header = envelope.parse(sealed)
        subkey = envelope.derive(DEK, CONTEXT.derivation_info(header.suite), header.salt, header.suite)
        body = envelope.open_sealed(subkey, header, sealed, **PLACE)
    except (MalformedEnvelope, WrongKey, TamperedEnvelope):
        return
    assert sealed in GOOD.values(), "something that nobody sealed was opened"
    assert body == BODY, "another plaintext came out"


def main() -> None:
    """Runs for the seconds given, or until it is stopped."""
    limit = [f"-max_total_time={sys.argv[1]}"] if len(sys.argv) > 1 else []
    atheris.Setup([sys.argv[0], *limit, "-max_len=4096", "-rss_limit_mb=1024"], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
