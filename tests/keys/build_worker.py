"""A build worker of the key agent that can be stopped with opening keys in its hand.

`python -m tests.keys.build_worker SOCKET`: the first line of its input is its lease in hex, every further
one `REF SEALED`, in hex too. With `stop` behind it the worker stops itself (SIGSTOP) when it has the keys and
has not opened anything yet. It answers a line: `opened`, `shredded`, or the name of the error.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from keys import Held, KeysError, Shredded
from keys.agentclient import AgentLink, BuildKeys
from keys.envelope import FieldContext, Header, Subkey
from tests.keys.people import BLOCK, WORD, context


class StoppingKeys(BuildKeys):
    """Stops the process with what the agent gave it, where it is told to."""

    is_to_stop = False

    def opening(
        self, context: FieldContext, refs: Sequence[bytes], headers: Sequence[Header]
    ) -> list[Subkey | Shredded | Held]:
        """See `BuildKeys.opening`."""
        found = super().opening(context, refs, headers)
        if self.is_to_stop:
            assert all(isinstance(one, Subkey) for one in found)
            os.kill(os.getpid(), signal.SIGSTOP)
        return found


def main() -> None:
    """Runs until its input ends."""
    lease = bytes.fromhex(sys.stdin.readline())
    keys = StoppingKeys(AgentLink(Path(sys.argv[1]), {"lease": lease}), lease)
    opener = keys.opener()
    for line in sys.stdin:
        ref, sealed, *stop = line.split()
        keys.is_to_stop = bool(stop)
        try:
            (got,) = opener.open(context(), [bytes.fromhex(ref)], [BLOCK], [bytes.fromhex(sealed)])
        except KeysError as error:
            answer = type(error).__name__
        else:
            answer = "opened" if got == WORD else type(got).__name__.lower()
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
