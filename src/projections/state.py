"""Partial state per (view version, bucket), each sealed under a key of its own.

Deriving a bucket anew gives it a new key and destroys the old one, so that a stale state in a backup
dies with it. A body holds its bucket's values and no other's (`projections.statebody`). States of the layout
before held bytes of their neighbours: opening their file lets go of them all, and whoever may close an epoch
settles what follows from it (`purge.mending`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from attrs import field, frozen

from keys import Database, Effects, FieldContext, KeyRecordMissing, Keyring
from projections.compute import BUCKET, Partial
from projections.errors import StateDamaged, StateMoved
from projections.statebody import read, written

LAYOUT: Final = 2
"""Of the bodies. Layout 1 were slices of Arrow tables, with their neighbours' bytes between the buffers."""
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS layout (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL,
    retired INTEGER);
INSERT OR IGNORE INTO layout SELECT 1,
    CASE WHEN EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'states') THEN 1 ELSE {LAYOUT} END, NULL;
CREATE TABLE IF NOT EXISTS states (version TEXT NOT NULL, bucket INTEGER NOT NULL,
    snapshot_id INTEGER NOT NULL, epoch INTEGER NOT NULL, ref BLOB NOT NULL, parts BLOB NOT NULL,
    PRIMARY KEY (version, bucket)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS doomed (ref BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inputs (snapshot_id INTEGER PRIMARY KEY, sequence INTEGER NOT NULL)
"""
STATE_CONTEXT: Final = FieldContext(b"shredlake-state\0", 0, "state", "system", "bucket", 1)
_LENGTH: Final = 8


@frozen
class BucketState:
    """What is known of a bucket without opening it."""

    bucket: int
    snapshot_id: int
    epoch: int
    ref: bytes = field(repr=False)


class StateStore:
    """Sealed states in one SQLite file with secure_delete.

    Args:
        path: the file.
        keyring: mints and drops the buckets' keys.
    """

    def __init__(self, path: Path, keyring: Keyring, effects: Effects) -> None:
        self._db = Database(path, _SCHEMA)
        self._keyring = keyring
        self._effects = effects
        self._retire_old_layout()
        self.drop_doomed()

    def known(self, version: str) -> dict[int, BucketState]:
        """Buckets of a version that have a state."""
        sql = "SELECT bucket, snapshot_id, epoch, ref FROM states WHERE version = ?"
        return {row[0]: BucketState(*row) for row in self._db.read(sql, (version,))}

    def versions(self) -> list[str]:
        """Versions that have any state."""
        return [row[0] for row in self._db.read("SELECT DISTINCT version FROM states")]

    def note(self, snapshot_id: int, sequence: int) -> None:
        """Remembers the place of an input among the commits, for when its snapshot has expired."""
        if self.sequence_of(snapshot_id):
            return
        with self._effects("state"), self._db.write() as db:
            db.execute("DELETE FROM inputs WHERE snapshot_id NOT IN (SELECT snapshot_id FROM states)")
            db.execute("INSERT OR REPLACE INTO inputs VALUES (?, ?)", (snapshot_id, sequence))

    def sequence_of(self, snapshot_id: int) -> int:
        """The sequence number of a state's input; 0 where it is not known."""
        rows = self._db.read("SELECT sequence FROM inputs WHERE snapshot_id = ?", (snapshot_id,))
        return int(rows[0][0]) if rows else 0

    def save(
        self, version: str, partial: Partial, buckets: Sequence[int], snapshot_id: int, epoch: int
    ) -> bool:
        """Replaces the states of these buckets and destroys the keys of the replaced ones.

        A bucket without rows gets an empty state, so that it counts as derived.

        Returns:
            False, and nothing is kept, where somebody was erased after `epoch`: an erasure forgets
            states after its fence and under the same lock, so no state from before it survives.
        """
        if not buckets:
            return True
        minted = self._keyring.mint(len(buckets))
        bodies = state_bodies(partial, buckets)
        refs = [key.ref for key in minted]
        sealed = self._keyring.session().seal(
            STATE_CONTEXT, refs, [state_place(version, b) for b in buckets], bodies
        )
        with self._effects("state"), self._db.write() as db:
            is_current = self._keyring.epoch() == epoch
            if is_current:
                self._doom(db, version, buckets)
            else:
                db.executemany("INSERT OR IGNORE INTO doomed VALUES (?)", [(ref,) for ref in refs])
            db.executemany(
                "INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (version, bucket, snapshot_id, epoch, ref, body)
                    for bucket, ref, body in zip(buckets, refs, sealed, strict=True)
                    if is_current
                ],
            )
        self.drop_doomed()
        return is_current

    def advance(self, version: str, buckets: Iterable[int], snapshot_id: int, epoch: int) -> None:
        """Notes that these buckets have nothing new up to a snapshot and epoch."""
        with self._effects("state"), self._db.write() as db:
            db.executemany(
                "UPDATE states SET snapshot_id = ?, epoch = ? WHERE version = ? AND bucket = ?",
                [(snapshot_id, epoch, version, bucket) for bucket in buckets],
            )

    def load(self, version: str, buckets: Iterable[int]) -> Partial:
        """The opened states of some buckets, put together.

        Raises:
            StateDamaged: one of them has lost its key, or the key pages are older than it.
            StateMoved: one of them is not there any more.
        """
        sql = "SELECT bucket, ref, parts FROM states WHERE version = ? ORDER BY bucket"
        wanted = set(buckets)
        stored = [row for row in self._db.read(sql, (version,)) if row[0] in wanted]
        if len(stored) < len(wanted):
            raise StateMoved("a bucket's state was forgotten")
        try:
            opened = self._keyring.opener().open(
                STATE_CONTEXT,
                [ref for _, ref, _ in stored],
                [state_place(version, bucket) for bucket, _, _ in stored],
                [sealed for _, _, sealed in stored],
            )
        except KeyRecordMissing:
            raise StateDamaged("the key pages do not know a bucket's state: they are older than it") from None
        bodies = [body for body in opened if isinstance(body, bytes)]
        if len(bodies) < len(opened):
            raise StateDamaged("the key of a bucket's state is gone")
        return state_of(bodies)

    def forget(self, version: str, buckets: Iterable[int]) -> None:
        """Destroys states of a version and their keys; the next build derives them anew."""
        gone = list(buckets)
        with self._effects("state"), self._db.write() as db:
            self._doom(db, version, gone)
            db.executemany(
                "DELETE FROM states WHERE version = ? AND bucket = ?", [(version, b) for b in gone]
            )
        self.drop_doomed()

    def retired(self) -> int | None:
        """States of layout 1 that were let go of, while what follows from it is not settled; else None."""
        found: int | None = self._db.read("SELECT retired FROM layout")[0][0]
        return found

    def settle_retired(self) -> None:
        """Notes that no copy of those states can be opened any more, and that every receipt says so."""
        with self._effects("state"), self._db.write() as db:
            db.execute("UPDATE layout SET retired = NULL")

    def close(self) -> None:
        """Closes the database."""
        self._db.close()

    def drop_doomed(self) -> None:
        """Destroys the keys of replaced states, also those that a killed process left to be destroyed."""
        refs = [row[0] for row in self._db.read("SELECT ref FROM doomed")]
        if not refs:
            return
        self._keyring.drop(refs)
        with self._effects("state"), self._db.write() as db:
            db.executemany("DELETE FROM doomed WHERE ref = ?", [(ref,) for ref in refs])
        self._db.flush_deleted()

    def _retire_old_layout(self) -> None:
        """Lets go of every state of layout 1, in one transaction; the next build derives them anew."""
        if self._db.read("SELECT version FROM layout")[0][0] == LAYOUT:
            return
        with self._effects("state"), self._db.write() as db:
            (count,) = db.execute("SELECT COUNT(*) FROM states").fetchone()
            db.execute("INSERT OR IGNORE INTO doomed SELECT ref FROM states")
            db.execute("DELETE FROM states")
            db.execute(
                "UPDATE layout SET version = ?, retired = ? WHERE version <> ?", (LAYOUT, count, LAYOUT)
            )

    def _doom(self, db: sqlite3.Connection, version: str, buckets: Iterable[int]) -> None:
        """Remembers, in the transaction that lets go of them, which keys are to be destroyed."""
        db.executemany(
            "INSERT OR IGNORE INTO doomed SELECT ref FROM states WHERE version = ? AND bucket = ?",
            [(version, bucket) for bucket in buckets],
        )


def state_place(version: str, bucket: int) -> bytes:
    """What a state is bound to besides its key."""
    return f"{version}/{bucket}".encode()


def state_bodies(partial: Partial, buckets: Sequence[int]) -> list[bytes]:
    """What is sealed for each of these buckets: its rows, tags and counts, and nothing of another bucket."""
    frames = (partial.rows, partial.tags, partial.counts)
    split = [written(frame, BUCKET, buckets) for frame in frames]
    return [
        b"".join(len(part).to_bytes(_LENGTH, "big") + part for part in parts)
        for parts in zip(*split, strict=True)
    ]


def state_of(bodies: Sequence[bytes]) -> Partial:
    """The opened bodies of some buckets, at least one, put together.

    Raises:
        StateDamaged: a body is not one that `state_bodies` made.
    """
    rows, tags, counts = (read(parts) for parts in zip(*map(_parts, bodies), strict=True))
    return Partial(rows, tags, counts)


def _parts(body: bytes) -> tuple[bytes, bytes, bytes]:
    found, at = [], 0
    while at < len(body):
        end = at + _LENGTH + int.from_bytes(body[at : at + _LENGTH], "big")
        found.append(body[at + _LENGTH : end])
        at = end
    if len(found) != 3 or at != len(body):
        raise StateDamaged("a bucket's state is cut off")
    return found[0], found[1], found[2]
