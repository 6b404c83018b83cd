"""Leases: a process that caches keys may open only while its lease is fresh.

Renewal carries the epoch. An erasure knows nobody can read any more once every live lease has
acknowledged its epoch or expired (the eviction barrier; Gray and Cheriton, "Leases", 1989).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from keys.errors import LeaseExpired
from keys.sqlite import Database

LEASE_SECONDS: Final = 3.0
RENEW_AFTER_SECONDS: Final = 1.0
MAX_LEASE_SECONDS: Final = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS leases (lease_id TEXT PRIMARY KEY, epoch INTEGER NOT NULL,
    expires_at REAL NOT NULL) WITHOUT ROWID
"""


def boot_seconds() -> float:
    """Seconds since boot, sleep included, the same in every process of a host; never set back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseBook:
    """All leases of one lake on one host."""

    def __init__(self, path: Path, clock_seconds: Callable[[], float] = boot_seconds) -> None:
        self._db = Database(path, _SCHEMA)
        self.clock_seconds = clock_seconds

    def renew(self, lease_id: str, epoch: int, lease_seconds: float) -> float:
        """Writes the lease with the epoch its holder has evicted up to; returns when it expires."""
        assert lease_seconds <= MAX_LEASE_SECONDS, "a longer lease would look like one of an earlier boot"
        expires_at = self.clock_seconds() + lease_seconds
        with self._db.write() as db:
            db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (lease_id, epoch, expires_at))
        return expires_at

    def release(self, lease_id: str) -> None:
        """Forgets a lease whose holder dropped all its keys."""
        with self._db.write() as db:
            db.execute("DELETE FROM leases WHERE lease_id = ?", (lease_id,))

    def behind(self, epoch: int) -> int:
        """How many live leases have not acknowledged `epoch`. Leases of an earlier boot are dead."""
        now = self.clock_seconds()
        with self._db.write() as db:
            latest = self.clock_seconds() + MAX_LEASE_SECONDS  # read under the lock: nobody renews meanwhile
            db.execute("DELETE FROM leases WHERE expires_at < ? OR expires_at > ?", (now - 60, latest))
        sql = "SELECT COUNT(*) FROM leases WHERE epoch < ? AND expires_at >= ?"
        return int(self._db.read(sql, (epoch, now))[0][0])

    def wait_until_acknowledged(self, epoch: int, timeout_seconds: float = 30.0) -> float:
        """Blocks until nobody can hold an older key; returns the seconds it took.

        Raises:
            LeaseExpired: holders kept renewing without acknowledging, which is a defect of theirs.
        """
        start = self.clock_seconds()
        while self.behind(epoch):
            if self.clock_seconds() - start > timeout_seconds:
                raise LeaseExpired("a process keeps renewing its lease without evicting erased keys")
            time.sleep(0.02)
        return self.clock_seconds() - start

    def close(self) -> None:
        """Closes the database."""
        self._db.close()


class Leases(Protocol):
    """Where a holder writes its lease: the book, or the key agent that keeps it."""

    @property
    def clock_seconds(self) -> Callable[[], float]: ...
    def renew(self, lease_id: str, epoch: int, lease_seconds: float) -> float: ...
    def release(self, lease_id: str) -> None: ...


class Lease:
    """One holder's lease.

    Args:
        book: shared with the other processes.
        current_epoch: reads the fence log's head.
        evict: called with the new epoch before it is acknowledged; must drop every cached key of it.
    """

    def __init__(
        self,
        book: Leases,
        current_epoch: Callable[[], int],
        evict: Callable[[int], None],
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._book = book
        self._current_epoch = current_epoch
        self._evict = evict
        self._seconds = lease_seconds
        self._id = uuid.uuid4().hex
        self._expires_at = 0.0
        self._epoch = -1

    @property
    def epoch(self) -> int:
        """The epoch acknowledged last; -1 before the first."""
        return self._epoch

    def ensure(self) -> int:
        """Renews where due, evicting first; returns the acknowledged epoch."""
        renew_at = self._expires_at - self._seconds + RENEW_AFTER_SECONDS
        if self._book.clock_seconds() >= min(renew_at, self._expires_at):
            # Written first, then looked: an erasure either waits for this lease or is seen here.
            expires_at = self._book.renew(self._id, self._epoch, self._seconds)
            epoch = self._current_epoch()
            if epoch != self._epoch:
                self._evict(epoch)
                self._epoch = epoch
                self._book.renew(self._id, epoch, self._seconds)
            self._expires_at = expires_at  # of before the look: a pause since then counts
        return self._epoch

    def check(self) -> None:
        """Called after opening and before handing plaintext out.

        Raises:
            LeaseExpired: the process was paused past its lease; what it opened must be thrown away.
        """
        if self._book.clock_seconds() > self._expires_at:
            raise LeaseExpired("the lease ran out while values were being opened")

    def acknowledge_now(self) -> None:
        """Evicts and acknowledges at once: what the erasing process itself does."""
        if self._expires_at:
            self._expires_at = 0.0
            self.ensure()

    def release(self) -> None:
        """Gives the lease up; the keys must be dropped first."""
        self._evict(self._epoch)
        self._book.release(self._id)
        self._expires_at, self._epoch = 0.0, -1
