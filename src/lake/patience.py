"""How long a consumer goes on trying, and what it waits for. Pure."""

from __future__ import annotations

from typing import Final

from keys import ShredlakeError
from lake.errors import TopicGone

GONE_SECONDS: Final = 60.0
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 10.0


class Patience:
    """A batch that failed is tried again after longer and longer pauses; a topic that is gone has a minute.

    All times are of one monotonic clock, in seconds.
    """

    def __init__(self) -> None:
        self._pause_seconds = 0.0
        self._again_at: float | None = None
        self._gone_since: float | None = None
        self._cause: str | None = None

    @property
    def waits(self) -> bool:
        """Whether a batch waits."""
        return self._again_at is not None

    @property
    def cause(self) -> str | None:
        """The type of the error that something waits for."""
        return self._cause

    def is_time(self, now: float) -> bool:
        """Whether a batch may be tried."""
        return self._again_at is None or now >= self._again_at

    def failed(self, error: ShredlakeError, now: float) -> None:
        """Something could not be done and may be tried again.

        Raises:
            ShredlakeError: `error`, where no retry helps, or the cluster has said for a minute without a
                break that it has no such topic.
        """
        self._cause = type(error).__name__
        if not isinstance(error, TopicGone):
            self._gone_since = None  # an absent broker says nothing of its topics
        elif self._gone_since is None:
            self._gone_since = now
        if not error.retry_helps or (self._gone_since is not None and now - self._gone_since > GONE_SECONDS):
            raise error

    def wait(self, error: ShredlakeError, now: float) -> float:
        """A batch waits from now on; returns for how long. Raises as `failed`."""
        self.failed(error, now)
        self._pause_seconds = min(max(_FIRST_PAUSE_SECONDS, 2 * self._pause_seconds), _LONGEST_PAUSE_SECONDS)
        self._again_at = now + self._pause_seconds
        return self._pause_seconds

    def found(self) -> None:
        """The topics are there, whatever else is wrong."""
        self._gone_since = None
        if self._again_at is None:
            self._cause = None

    def dropped(self) -> None:
        """The batch that waited is somebody else's; how long the pauses are stays known."""
        self._again_at = self._cause = None

    def landed(self) -> None:
        """Nothing waits any more."""
        self._again_at = self._cause = None
        self._pause_seconds = 0.0
