"""Fuzzes parse and open of CSE1 against the decoder that knows the documentation alone.

Every input opens to the same body with both, or both refuse it with the same code. A third of the inputs
are mutations of a good envelope, so that the fuzzer gets past the header at once; a third are authentic
envelopes of any body under any flags, so that it gets past the tag. It begins with the bodies of the vectors.
Whenever it comes upon a code for the first time it says so.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["keys"]):
    from keys import envelope
    from keys.errors import EnvelopeError, EnvelopeFault

from tests.vectors.decoder import decode
from tests.vectors.generate import (
    BLOCK,
    BODY,
    CONTEXT,
    DEK,
    REF,
    SHORT,
    SUITES,
    bad_bodies,
    case,
    sealed,
    sealed_raw,
)

PLACE = {"prefix": CONTEXT.associated_prefix(), "ref": REF, "block_id": BLOCK}
GOOD = [sealed(body, suite, pad=pad) for suite in SUITES for body in (SHORT, BODY) for pad in (False, True)]
BODIES = {SHORT, BODY}
DEFINED_FLAGS = 3
ANY, CHANGED, AUTHENTIC = range(3)
_reached: set[str] = set()


def candidate(provider: atheris.FuzzedDataProvider) -> tuple[bytes, bool]:
    """An envelope, and whether a holder of the key made it."""
    way = provider.ConsumeIntInRange(ANY, AUTHENTIC)
    if way == ANY:
        return provider.ConsumeBytes(provider.remaining_bytes()), False
    if way == CHANGED:
        changed = bytearray(GOOD[provider.ConsumeIntInRange(0, len(GOOD) - 1)])
        for _ in range(provider.ConsumeIntInRange(0, 4)):
            changed[provider.ConsumeIntInRange(0, len(changed) - 1)] = provider.ConsumeIntInRange(0, 255)
        return bytes(changed[: provider.ConsumeIntInRange(0, len(changed))]), False
    flags, suite = provider.ConsumeIntInRange(0, DEFINED_FLAGS), provider.ConsumeIntInRange(1, len(SUITES))
    return sealed_raw(provider.ConsumeBytes(provider.remaining_bytes()), flags, suite), True


def seeds() -> list[bytes]:
    """Inputs that `candidate` makes the vectors' bodies of: it reads its numbers from the end."""
    return [
        body + bytes((suite - 1, flags, AUTHENTIC)) for suite in SUITES for *_, flags, body in bad_bodies()
    ]


def opened(one: bytes) -> bytes | str:
    """The body, or the code of the fault; any other error ends the run."""
    try:
        header = envelope.parse(one)
        subkey = envelope.derive(DEK, CONTEXT.derivation_info(header.suite), header.salt, header.suite)
        return envelope.open_sealed(subkey, header, one, **PLACE)
    except EnvelopeError as error:
        return EnvelopeFault(error.fault).value


def try_one(data: bytes) -> None:
    """One input."""
    one, is_authentic = candidate(atheris.FuzzedDataProvider(data))
    found = opened(one)
    assert found == decode(case("fuzz", one)), "the two decoders differ"
    if isinstance(found, str) and found not in _reached:
        _reached.add(found)
        sys.stderr.write(f"reached {found}\n")
    if isinstance(found, bytes) and not is_authentic:
        assert one in GOOD, "something that nobody sealed was opened"
        assert found in BODIES, "another plaintext came out"


def main() -> None:
    """Runs for the seconds given, or until it is stopped.

    What it found worth keeping stays in the folder, where one is given, and the next run begins with it;
    so does an input that broke something, which is run alone by its path: `fuzz.envelope 0 PATH`.
    """
    seconds = sys.argv[1] if len(sys.argv) > 1 else "0"
    place = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="fuzz-"))
    options = [f"-max_total_time={seconds}", "-max_len=4096", "-rss_limit_mb=1024"]
    if not place.is_file():
        place.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            (place / f"seed-{number}").write_bytes(seed)
        options.append(f"-artifact_prefix={place}/")
    atheris.Setup([sys.argv[0], *options, str(place)], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
