"""The one gate every durable effect passes: journals, commits, destructions, publications.

Nothing happens in it in production. Crash tests pass an observer that kills the process before or
after the n-th effect, for every n.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

When = Literal["before", "after"]


class Effects:
    """Wraps each durable effect: `with effects("commit"): …`."""

    def __init__(self, observer: Callable[[When, str], None] | None = None) -> None:
        self._observer = observer

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Tells the observer before and, where the effect did not raise, after."""
        if self._observer is not None:
            self._observer("before", name)
        yield
        if self._observer is not None:
            self._observer("after", name)
