"""Leases: a process that caches keys may open only while its lease is fresh.

Renewal carries the epoch. An erasure knows nobody can read any more once every live lease has
acknowledged its epoch or expired (the eviction barrier; Gray and Cheriton, "Leases", 1989).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from keys.errors import LeaseExpired
from keys.sqlite import Database

LEASE_SECONDS: Final = 3.0
RENEW_AFTER_SECONDS: Final = 1.0
MAX_LEASE_SECONDS: Final = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS leases (lease_id TEXT PRIMARY KEY, epoch INTEGER NOT NULL,
    expires_at REAL NOT NULL, evictions INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS book (book_id TEXT PRIMARY KEY)
"""
_ADD_EVICTIONS = "ALTER TABLE leases ADD COLUMN evictions INTEGER NOT NULL DEFAULT 0"


def boot_seconds() -> float:
    """Seconds since boot, sleep included, the same in every process of a host; never set back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Seen(NamedTuple):
    """What a holder has looked at and dropped its keys for.

    Attributes:
        epoch: the newest fence's number.
        evictions: how often everybody was asked to drop every key; see `Keyring.evict_everywhere`.
    """

    epoch: int
    evictions: int = 0


class LeaseBook:
    """All leases of one lake on one host."""

    def __init__(self, path: Path, clock_seconds: Callable[[], float] = boot_seconds) -> None:
        self._db = Database(path, _SCHEMA)
        with self._db.write() as db:  # a file of before has no such column, and outlives its processes
            if "evictions" not in {row[1] for row in db.execute("PRAGMA table_info(leases)")}:
                db.execute(_ADD_EVICTIONS)
        self.clock_seconds = clock_seconds

    def book_id(self) -> str:
        """A random name of this book; made when it is first asked for."""
        with self._db.write() as db:
            row = db.execute("SELECT book_id FROM book").fetchone()
            if row is None:
                row = (uuid.uuid4().hex,)
                db.execute("INSERT INTO book VALUES (?)", row)
        return str(row[0])

    def renew(self, lease_id: str, seen: Seen, lease_seconds: float) -> float:
        """Writes the lease with what its holder has evicted for; returns when it expires."""
        assert lease_seconds <= MAX_LEASE_SECONDS, "a longer lease would look like one of an earlier boot"
        expires_at = self.clock_seconds() + lease_seconds
        with self._db.write() as db:
            row = (lease_id, seen.epoch, expires_at, seen.evictions)
            db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", row)
        return expires_at

    def release(self, lease_id: str) -> None:
        """Forgets a lease whose holder dropped all its keys."""
        with self._db.write() as db:
            db.execute("DELETE FROM leases WHERE lease_id = ?", (lease_id,))

    def behind(self, epoch: int, evictions: int = 0) -> int:
        """How many live leases have not acknowledged both. Leases of an earlier boot are dead."""
        now = self.clock_seconds()
        with self._db.write() as db:
            latest = self.clock_seconds() + MAX_LEASE_SECONDS  # read under the lock: nobody renews meanwhile
            db.execute("DELETE FROM leases WHERE expires_at < ? OR expires_at > ?", (now - 60, latest))
        sql = "SELECT COUNT(*) FROM leases WHERE (epoch < ? OR evictions < ?) AND expires_at >= ?"
        return int(self._db.read(sql, (epoch, evictions, now))[0][0])

    def wait_until_acknowledged(self, epoch: int, evictions: int = 0, timeout_seconds: float = 30.0) -> float:
        """Blocks until nobody can hold an older key; returns the seconds it took.

        Raises:
            LeaseExpired: holders kept renewing without acknowledging, which is a defect of theirs.
        """
        start = self.clock_seconds()
        while self.behind(epoch, evictions):
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
    def renew(self, lease_id: str, seen: Seen, lease_seconds: float) -> float: ...
    def release(self, lease_id: str) -> None: ...


class Lease:
    """One holder's lease.

    Args:
        book: shared with the other processes.
        look: reads the fence log's head and how often everybody was asked to evict.
        evict: called with the new epoch before either is acknowledged; must drop every cached key.
    """

    def __init__(
        self,
        book: Leases,
        look: Callable[[], Seen],
        evict: Callable[[int], None],
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._book = book
        self._look = look
        self._evict = evict
        self._seconds = lease_seconds
        self._id = uuid.uuid4().hex
        self._expires_at = 0.0
        self._seen = Seen(-1, -1)

    @property
    def epoch(self) -> int:
        """The epoch acknowledged last; -1 before the first."""
        return self._seen.epoch

    def ensure(self) -> int:
        """Renews where due, evicting first; returns the acknowledged epoch."""
        renew_at = self._expires_at - self._seconds + RENEW_AFTER_SECONDS
        if self._book.clock_seconds() >= min(renew_at, self._expires_at):
            # Written first, then looked: an erasure either waits for this lease or is seen here.
            expires_at = self._book.renew(self._id, self._seen, self._seconds)
            seen = self._look()
            if seen != self._seen:
                self._evict(seen.epoch)
                self._seen = seen
                self._book.renew(self._id, seen, self._seconds)
            self._expires_at = expires_at  # of before the look: a pause since then counts
        return self._seen.epoch

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
        self._evict(self._seen.epoch)
        self._book.release(self._id)
        self._expires_at, self._seen = 0.0, Seen(-1, -1)
