"""The write-ahead spool of what came over HTTP: one SQLite file, every change one durable transaction.

It knows nothing of keys and tables. Events are numbered through all batches; the table's offset of the
spool's source is such a number, so the table itself says what is in it. Before a commit the spool writes
down up to where it goes (`intended`) and what becomes of each event, afterwards that it landed (`settled`).
So the table's offset is always one of these two numbers. Where it is neither, spool or table was restored
from a copy.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from keys import Database, DatabaseDamaged, DatabaseUnavailable
from lake.batches import Arrival, Batch, Note, Outcome, Queue, Waiting
from lake.errors import IntakeFull, KeyReused, StorageFailed, UnknownBatch

SOURCE_PREFIX: Final = "intake:"
_AT_ONCE: Final = 10_000
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS spool (one INTEGER PRIMARY KEY CHECK (one = 1), source TEXT NOT NULL,
    next INTEGER NOT NULL, settled INTEGER NOT NULL, intended INTEGER NOT NULL, batches INTEGER NOT NULL,
    events INTEGER NOT NULL, bytes INTEGER NOT NULL, letters_ref BLOB);
CREATE TABLE IF NOT EXISTS batches (batch_id TEXT PRIMARY KEY, events INTEGER NOT NULL,
    bytes INTEGER NOT NULL, received_at REAL NOT NULL, key_digest BLOB UNIQUE, body_digest BLOB,
    accepted INTEGER, rejected INTEGER, suppressed INTEGER, notes TEXT, committed_at REAL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS batches_committed ON batches (committed_at) WHERE committed_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS waiting (start INTEGER PRIMARY KEY, batch_id TEXT NOT NULL,
    key_ref BLOB NOT NULL, epoch INTEGER NOT NULL, sealed BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS waiting_by_key ON waiting (key_ref);
CREATE TABLE IF NOT EXISTS keys (ref BLOB PRIMARY KEY, epoch INTEGER NOT NULL, made_at REAL NOT NULL,
    uses INTEGER NOT NULL, closed INTEGER NOT NULL) WITHOUT ROWID
"""
_BATCH: Final = "batch_id, events, received_at, committed_at, accepted, rejected, suppressed, notes"


class SpoolKeyClosed(Exception):
    """The key that sealed a batch takes no more: seal it again under the next one."""


class Spool:
    """What was taken and is not in the table yet, and what became of what is.

    Args:
        path: SQLite file.
        epoch: the newest fence's number; asked under the file's write lock.
        clock_seconds: seconds since the epoch.
        max_events, max_bytes: nothing more is taken while so much waits.
    """

    def __init__(
        self,
        path: Path,
        epoch: Callable[[], int],
        clock_seconds: Callable[[], float],
        *,
        max_events: int,
        max_bytes: int,
    ) -> None:
        self._db = Database(path, _SCHEMA)
        self._epoch = epoch
        self._clock = clock_seconds
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._mutex = threading.Lock()  # SQLite lets writers poll; threads of one process queue here
        with self._write() as db:
            db.execute(
                "INSERT OR IGNORE INTO spool VALUES (1, ?, 0, 0, 0, 0, 0, 0, NULL)", (_fresh_source(),)
            )

    # -- taking ------------------------------------------------------------------------------------

    def known(self, key_digest: bytes, body_digest: bytes) -> Batch | None:
        """The batch that came under this idempotency key. Raises `KeyReused`."""
        rows = self._db.read(
            f"SELECT body_digest, {_BATCH} FROM batches WHERE key_digest = ?",  # our own names
            (key_digest,),
        )
        return _same_body(rows, body_digest) if rows else None

    def refuse_if_full(self) -> None:
        """Raises `IntakeFull`."""
        self._check_room(*self._db.read("SELECT events, bytes FROM spool")[0])

    def put(self, one: Arrival) -> tuple[Batch, bool]:
        """Writes a batch durably. Returns (it, whether it is new): under a known key the earlier one.

        Raises:
            KeyReused: the idempotency key came with another body.
            IntakeFull: too much waits; nothing was written.
            SpoolKeyClosed: see there; nothing was written.
            StorageFailed: the disk refused; nothing was written.
        """
        with self._write() as db:
            if one.key_digest is not None and one.body_digest is not None:
                sql = f"SELECT body_digest, {_BATCH} FROM batches WHERE key_digest = ?"
                rows = db.execute(sql, (one.key_digest,)).fetchall()
                if rows:
                    return _same_body(rows, one.body_digest), False
            start, events, size = db.execute("SELECT next, events, bytes FROM spool").fetchone()
            self._check_room(events, size)
            sql = "UPDATE keys SET uses = uses + 1 WHERE ref = ? AND NOT closed"
            if db.execute(sql, (one.key_ref,)).rowcount == 0:
                raise SpoolKeyClosed
            now = self._clock()
            db.execute(
                "INSERT INTO batches (batch_id, events, bytes, received_at, key_digest, body_digest)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (one.batch_id, one.events, one.size_bytes, now, one.key_digest, one.body_digest),
            )
            db.execute(
                "INSERT INTO waiting VALUES (?, ?, ?, ?, ?)",
                (start, one.batch_id, one.key_ref, self._epoch(), one.sealed),
            )
            db.execute(
                "UPDATE spool SET next = next + ?, batches = batches + 1, events = events + ?,"
                " bytes = bytes + ?",
                (one.events, one.events, one.size_bytes),
            )
        return Batch(one.batch_id, one.events, now, None, None), True

    def _check_room(self, events: int, size_bytes: int) -> None:
        if events >= self._max_events or size_bytes >= self._max_bytes:
            raise IntakeFull(f"{events} events wait to be committed")

    # -- looking -----------------------------------------------------------------------------------

    def get(self, batch_id: str) -> Batch:
        """A batch by its id. Raises `UnknownBatch`."""
        sql = f"SELECT {_BATCH} FROM batches WHERE batch_id = ?"  # our own names
        rows = self._db.read(sql, (batch_id,))
        if not rows:
            raise UnknownBatch("no batch has this id, or it was committed too long ago")
        return _batch(rows[0])

    def queue(self) -> Queue:
        """How much waits, in one look."""
        row = self._db.read(
            "SELECT source, next, settled, intended, batches, events, bytes, (SELECT received_at FROM batches"
            " WHERE batch_id = (SELECT batch_id FROM waiting ORDER BY start LIMIT 1)) FROM spool"
        )[0]
        return Queue(*row)

    def oldest_batch(self) -> str | None:
        """Id of the batch that is committed next; None when nothing waits."""
        rows = self._db.read("SELECT batch_id FROM waiting ORDER BY start LIMIT 1")
        return str(rows[0][0]) if rows else None

    def take(self, max_events: int, max_bytes: int) -> list[Waiting]:
        """The batches to commit next, in their order: those of a begun commit again, else up to a limit."""
        queue = self.queue()
        begun = queue.intended if queue.intended > queue.settled else None
        plan = self._db.read(
            "SELECT start, events, bytes FROM waiting JOIN batches USING (batch_id) ORDER BY start LIMIT ?",
            (_AT_ONCE,),
        )
        end = events = size = 0
        for start, count, size_bytes in plan:
            if begun is None and events and (events + count > max_events or size + size_bytes > max_bytes):
                break
            if begun is not None and start >= begun:
                break
            events, size, end = events + count, size + size_bytes, start + count
        sql = (
            "SELECT batch_id, start, events, key_ref, sealed FROM waiting JOIN batches USING (batch_id)"
            " WHERE start < ? ORDER BY start"
        )
        return [Waiting(*row) for row in self._db.read(sql, (end,))]

    def holds_before(self, epoch: int) -> bool:
        """Whether something waits that came before a fence, or a key is left that sealed such."""
        sql = (
            "SELECT EXISTS (SELECT 1 FROM waiting WHERE epoch < ?) OR"
            " EXISTS (SELECT 1 FROM keys WHERE epoch < ?)"
        )
        return bool(self._db.read(sql, (epoch, epoch))[0][0])

    def closed_waits(self) -> bool:
        """Whether a batch waits whose key takes no more."""
        sql = "SELECT EXISTS (SELECT 1 FROM waiting JOIN keys ON ref = key_ref WHERE closed)"
        return bool(self._db.read(sql)[0][0])

    # -- committing --------------------------------------------------------------------------------

    def intend(self, end: int, outcomes: Sequence[tuple[str, Outcome]]) -> None:
        """What a commit that comes now will have done when it lands."""
        with self._write() as db:
            db.executemany(
                "UPDATE batches SET accepted = ?, rejected = ?, suppressed = ?, notes = ? WHERE batch_id = ?",
                [
                    (one.accepted, one.rejected, one.suppressed, json.dumps(one.notes), batch_id)
                    for batch_id, one in outcomes
                ],
            )
            db.execute("UPDATE spool SET intended = ?", (end,))

    def settle(self, end: int) -> int:
        """Everything before event `end` is in the table: its bytes go, its outcome stays. Returns batches."""
        with self._write() as db:
            done = db.execute(
                "SELECT COUNT(*), COALESCE(SUM(events), 0), COALESCE(SUM(bytes), 0) FROM batches"
                " WHERE batch_id IN (SELECT batch_id FROM waiting WHERE start < ?)",
                (end,),
            ).fetchone()
            db.execute(
                "UPDATE batches SET committed_at = ? WHERE batch_id IN"
                " (SELECT batch_id FROM waiting WHERE start < ?)",
                (self._clock(), end),
            )
            db.execute("DELETE FROM waiting WHERE start < ?", (end,))
            db.execute(
                "UPDATE spool SET settled = ?, intended = ?, batches = batches - ?, events = events - ?,"
                " bytes = bytes - ?, letters_ref = NULL",
                (end, end, *done),
            )
        return int(done[0])

    def letters_key(self) -> bytes | None:
        """The key for letters that name nobody, of a commit that was begun and has not landed."""
        ref: bytes | None = self._db.read("SELECT letters_ref FROM spool")[0][0]
        return ref

    def keep_letters_key(self, ref: bytes) -> None:
        """Remembers it until the commit has landed."""
        with self._write() as db:
            db.execute("UPDATE spool SET letters_ref = ?", (ref,))

    def begin_anew(self, gone: Sequence[bytes]) -> None:
        """Goes on under a new name after a restore; what waits is numbered from 0.

        Args:
            gone: keys that are no more; what they sealed waits no more, and its outcome is unknown.
        """
        with self._write() as db:
            for ref in gone:
                sql = "SELECT batch_id FROM waiting WHERE key_ref = ?"
                for (batch_id,) in db.execute(sql, (ref,)).fetchall():
                    db.execute(
                        "UPDATE batches SET committed_at = ?, accepted = NULL WHERE batch_id = ?",
                        (self._clock(), batch_id),
                    )
                db.execute("DELETE FROM waiting WHERE key_ref = ?", (ref,))
                db.execute("DELETE FROM keys WHERE ref = ?", (ref,))
            left = db.execute(
                "SELECT start, events, bytes FROM waiting JOIN batches USING (batch_id) ORDER BY start"
            ).fetchall()
            # Behind all others first, so that no two meet while they move.
            db.execute("UPDATE waiting SET start = -1 - start")
            at = 0
            for start, events, _ in left:
                db.execute("UPDATE waiting SET start = ? WHERE start = ?", (at, -1 - start))
                at += events
            size = sum(row[2] for row in left)
            db.execute(
                "UPDATE spool SET source = ?, next = ?, settled = 0, intended = 0, batches = ?, events = ?,"
                " bytes = ?",
                (_fresh_source(), at, len(left), at, size),
            )

    def forget(self, before: float) -> None:
        """Drops batches that were committed before a moment; their idempotency keys are free again."""
        sql = "SELECT EXISTS (SELECT 1 FROM batches WHERE committed_at < ?)"
        if self._db.read(sql, (before,))[0][0]:
            with self._write() as db:
                db.execute("DELETE FROM batches WHERE committed_at < ?", (before,))

    # -- keys --------------------------------------------------------------------------------------

    def open_key(self, made_after: float, max_uses: int) -> bytes | None:
        """The handle of a key that still seals."""
        sql = "SELECT ref FROM keys WHERE NOT closed AND made_at > ? AND uses < ? ORDER BY made_at DESC"
        rows = self._db.read(sql, (made_after, max_uses))
        return bytes(rows[0][0]) if rows else None

    def has_key_of_before(self, moment: float) -> bool:
        """Whether a key that was made before a moment still seals."""
        sql = "SELECT EXISTS (SELECT 1 FROM keys WHERE NOT closed AND made_at <= ?)"
        return bool(self._db.read(sql, (moment,))[0][0])

    def add_key(self, ref: bytes) -> None:
        """A fresh key that has sealed nothing yet."""
        with self._write() as db:
            row = (ref, self._epoch(), self._clock())
            db.execute("INSERT INTO keys VALUES (?, ?, ?, 0, 0)", row)

    def close_keys(self, chosen: Callable[[bytes, int, float], bool]) -> None:
        """Keys that are chosen by handle, epoch and time of making take no more."""
        with self._write() as db:
            rows = db.execute("SELECT ref, epoch, made_at FROM keys WHERE NOT closed").fetchall()
            closed = [(ref,) for ref, epoch, made_at in rows if chosen(bytes(ref), epoch, made_at)]
            db.executemany("UPDATE keys SET closed = 1 WHERE ref = ?", closed)

    def finished_keys(self) -> list[bytes]:
        """Closed keys whose every batch is in the table: to be destroyed, then `drop_keys`."""
        sql = (
            "SELECT ref FROM keys WHERE closed AND NOT EXISTS"
            " (SELECT 1 FROM waiting WHERE waiting.key_ref = keys.ref)"
        )
        return [bytes(ref) for (ref,) in self._db.read(sql)]

    def waiting_keys(self) -> list[bytes]:
        """The keys of what waits."""
        return [bytes(ref) for (ref,) in self._db.read("SELECT DISTINCT key_ref FROM waiting")]

    def waiting(self) -> Iterator[tuple[bytes, str, bytes]]:
        """(key's handle, batch id, sealed body) of all that waits, one in memory at a time."""
        last = -1
        sql = "SELECT start, key_ref, batch_id, sealed FROM waiting WHERE start > ? ORDER BY start LIMIT 1"
        while rows := self._db.read(sql, (last,)):
            last = rows[0][0]
            yield bytes(rows[0][1]), rows[0][2], bytes(rows[0][3])

    def drop_keys(self, refs: Sequence[bytes]) -> None:
        """Forgets destroyed keys, and takes deleted bytes out of the file and its log."""
        with self._write() as db:
            db.executemany("DELETE FROM keys WHERE ref = ?", [(ref,) for ref in refs])
        self._db.flush_deleted()

    def close(self) -> None:
        """Closes the database."""
        self._db.close()

    # -- inner -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._mutex, self._db.write() as db:
                yield db
        except (DatabaseUnavailable, DatabaseDamaged) as error:
            raise StorageFailed(f"the intake cannot be written: {error.message}") from None


def _fresh_source() -> str:
    return f"{SOURCE_PREFIX}{uuid.uuid4().hex}"


def _same_body(rows: Sequence[tuple[Any, ...]], body_digest: bytes) -> Batch:
    if rows[0][0] != body_digest:
        raise KeyReused("this idempotency key came with another body")
    return _batch(rows[0][1:])


def _batch(row: tuple[Any, ...]) -> Batch:
    batch_id, events, received_at, committed_at, accepted, rejected, suppressed, notes = row
    outcome = None
    if committed_at is not None and accepted is not None:
        found = tuple(Note(*one) for one in json.loads(notes))
        outcome = Outcome(accepted, rejected, suppressed, found)
    return Batch(batch_id, events, received_at, committed_at, outcome)
