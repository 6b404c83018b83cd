"""A process that opens the same person's value in a loop and writes down what it got.

`python -m tests.keys.barrier_reader HOME REF SEALED LOG`: each line is the moment a read began
(seconds of the monotonic clock, which all processes of a host share) and its outcome.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from keys import LeaseExpired, Shredded, open_embedded
from tests.keys.people import BLOCK, context


def main() -> None:
    """Runs until killed."""
    home, ref, sealed, log = sys.argv[1:]
    opener = open_embedded(Path(home)).opener()
    with Path(log).open("a") as out:
        while True:
            began = time.monotonic()
            try:
                (answer,) = opener.open(context(), [bytes.fromhex(ref)], [BLOCK], [bytes.fromhex(sealed)])
                outcome = "shredded" if isinstance(answer, Shredded) else "opened"
            except LeaseExpired:
                outcome = "refused"
            out.write(f"{began} {outcome}\n")
            out.flush()
            time.sleep(0.002)


if __name__ == "__main__":
    main()
