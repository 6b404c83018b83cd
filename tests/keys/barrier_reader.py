"""A process that opens the same people's values in a loop and writes down what it got.

`python -m tests.keys.barrier_reader HOME VALUES LOG`: HOME is a folder of keys, or of a lake whose settings say
where its keys are. VALUES holds `REF SEALED` in hex, one a line. Each line of LOG is when a read began and when it ended (seconds of the monotonic clock, which all processes of
a host share) and its outcome, a letter per value: o(pened), s(hredded), or r(efused) for all of them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from keys import Keyring, LeaseExpired, Shredded, open_embedded
from service.runtime import open_keyring
from service.settings import CONFIG_NAME, load_settings
from tests.keys.people import BLOCK, context


def opened(home: Path) -> Keyring:
    """The keys of a process that may open and not destroy."""
    if (home / CONFIG_NAME).exists():
        return open_keyring(home, load_settings(home), role="agent")
    return open_embedded(home)


def main() -> None:
    """Runs until killed."""
    home, values, log = map(Path, sys.argv[1:])
    pairs = [line.split() for line in values.read_text().splitlines()]
    refs, sealed = ([bytes.fromhex(pair[at]) for pair in pairs] for at in (0, 1))
    opener = opened(home).opener()
    with log.open("a") as out:
        while True:
            began = time.monotonic()
            try:
                answers = opener.open(context(), refs, [BLOCK] * len(refs), sealed)
                outcome = "".join("s" if isinstance(answer, Shredded) else "o" for answer in answers)
            except LeaseExpired:
                outcome = "r" * len(refs)
            out.write(f"{began} {time.monotonic()} {outcome}\n")
            out.flush()
            time.sleep(0.002)


if __name__ == "__main__":
    main()
