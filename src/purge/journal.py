"""The request journal: every erasure request, its stages with their times, and legal holds.

The person's id lies in it sealed under the person's own key, so it becomes unreadable with them; their
handles are removed once the receipt is out.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from keys import Database, Effects, Remembered
from purge.clocks import Regime, due_at
from purge.errors import IdempotencyConflict, NotCancellable, UnknownRequest
from purge.stages import POINT_OF_NO_RETURN, STAGES, Standing, Status, may_cancel, status_of

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS requests (request_id TEXT PRIMARY KEY, received_at TEXT NOT NULL,
    due_at TEXT NOT NULL, regime TEXT NOT NULL, purpose TEXT NOT NULL, subject_tag BLOB NOT NULL,
    ref BLOB, sealed_ref BLOB, sealed_subject BLOB, commitment TEXT NOT NULL, stage TEXT NOT NULL,
    status TEXT NOT NULL, details TEXT NOT NULL, statement BLOB, receipt BLOB,
    idempotency_key TEXT UNIQUE) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS one_open_request ON requests (subject_tag, purpose)
    WHERE status != 'cancelled';
CREATE INDEX IF NOT EXISTS without_receipt ON requests (subject_tag)
    WHERE receipt IS NULL AND status != 'cancelled';
CREATE TABLE IF NOT EXISTS holds (subject_tag BLOB PRIMARY KEY, ref BLOB NOT NULL, placed_at TEXT NOT NULL,
    why TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS newest_fence (one INTEGER PRIMARY KEY CHECK (one = 1), epoch INTEGER NOT NULL,
    chain BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS salts (request_id TEXT PRIMARY KEY, ref BLOB NOT NULL, sealed BLOB NOT NULL)
    WITHOUT ROWID
"""
_REFERENCES_DIGESTED: Final = 1
"""Version of the file in which idempotency keys are keyed digests."""


@frozen
class StageRecord:
    """A stage: when it began and ended (None while it runs), how long it took, and what it found."""

    stage: str
    started_at: str
    finished_at: str | None
    seconds: float | None
    detail: Mapping[str, Any]


@frozen
class Request:
    """An erasure request as the journal has it; holds no identifier in the clear.

    Attributes:
        request_id: also the receipt's id.
        stage: the last completed one.
        ref: the person's handle until the receipt is out.
        sealed_subject, sealed_ref: the id, and the handle of the key that seals it: the person's own
            until the fence, then one that is dropped with it.
    """

    request_id: str
    received_at: datetime
    due_at: datetime
    regime: str
    purpose: str
    subject_tag: bytes = field(repr=False)
    ref: bytes | None = field(repr=False)
    sealed_ref: bytes | None = field(repr=False)
    sealed_subject: bytes | None = field(repr=False)
    commitment: str
    stage: str
    status: Status
    stages: tuple[StageRecord, ...]
    statement: bytes | None = field(repr=False)
    receipt: bytes | None = field(repr=False)

    def detail(self, stage: str) -> Mapping[str, Any]:
        """What a completed stage found; empty when it did not run."""
        return next((s.detail for s in self.stages if s.stage == stage and s.finished_at), {})


@frozen
class Stuck:
    """A request whose last run failed behind `stage`; names nobody."""

    request_id: str
    stage: str
    due_at: datetime


def standing_of(requests: Iterable[Request], now: datetime) -> Standing:
    """Counts what is open."""
    waiting = half_done = held = overdue = 0
    for one in requests:
        if one.status in (Status.COMPLETED, Status.CANCELLED):
            continue
        is_fenced = STAGES.index(one.stage) >= STAGES.index(POINT_OF_NO_RETURN)
        held += one.status is Status.HELD
        half_done += is_fenced and one.status is not Status.HELD
        waiting += not is_fenced and one.status is not Status.HELD
        overdue += one.due_at < now
    return Standing(waiting, half_done, held, overdue)


class Journal:
    """Requests and holds in one SQLite file with secure_delete.

    Args:
        reference_tag: keyed digest of a client's idempotency key, which may name the person.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], datetime],
        effects: Effects,
        reference_tag: Callable[[str], bytes],
    ) -> None:
        self._db = Database(path, _SCHEMA)
        self._clock = clock
        self._effects = effects
        self._reference_tag = reference_tag
        self._digest_references()

    def submit(
        self,
        *,
        subject_tag: bytes,
        ref: bytes,
        sealed_subject: bytes,
        commitment: str,
        purpose: str,
        regime: Regime,
        idempotency_key: str | None,
        salt: tuple[bytes, bytes] | None = None,
    ) -> tuple[Request, bool]:
        """(the request, whether it is new). A person's open or finished request is found, not doubled.

        Args:
            salt: handle of a key and what it sealed, for the requester; kept with a new request alone.

        Raises:
            IdempotencyConflict: the key came with another person, purpose or regime.
        """
        at = self._clock()
        reference = None if idempotency_key is None else self._reference_tag(idempotency_key).hex()
        with self._effects("journal.submit"), self._db.write() as db:
            if reference is not None:
                row = db.execute(
                    "SELECT subject_tag, purpose, regime FROM requests WHERE idempotency_key = ?",
                    (reference,),
                ).fetchone()
                if row is not None and tuple(row) != (subject_tag, purpose, regime):
                    raise IdempotencyConflict("this idempotency key was used for another request")
            row = db.execute(
                "SELECT request_id FROM requests WHERE subject_tag = ? AND purpose = ? AND ref IS ? "
                "AND status != 'cancelled'",
                (subject_tag, purpose, ref),
            ).fetchone()
            new = row is None
            if row is None:
                # A person who came back lawfully starts anew: the finished request gives its place up.
                db.execute(
                    "UPDATE requests SET subject_tag = zeroblob(0) || request_id "
                    "WHERE subject_tag = ? AND purpose = ? AND status = 'completed'",
                    (subject_tag, purpose),
                )
                row = (str(uuid.uuid4()),)
                record = [_begun("received", at) | {"finished_at": at.isoformat(), "seconds": 0.0}]
                db.execute(
                    "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'received', 'pending', ?, "
                    "NULL, NULL, ?)",
                    (
                        row[0],
                        at.isoformat(),
                        due_at(at, regime).isoformat(),
                        regime,
                        purpose,
                        subject_tag,
                        ref,
                        ref,
                        sealed_subject,
                        commitment,
                        json.dumps(record),
                        reference,
                    ),
                )
                if salt is not None:
                    db.execute("INSERT INTO salts VALUES (?, ?, ?)", (row[0], *salt))
        return self.get(row[0]), new

    def get(self, request_id: str) -> Request:
        """One request. Raises `UnknownRequest`."""
        rows = self._db.read("SELECT * FROM requests WHERE request_id = ?", (request_id,))
        if not rows:
            raise UnknownRequest("there is no such erasure request")
        return _request(rows[0])

    def find(self, subject_tag: bytes) -> Request | None:
        """The newest request of a person, by keyed hash."""
        sql = "SELECT * FROM requests WHERE subject_tag = ? ORDER BY received_at DESC LIMIT 1"
        rows = self._db.read(sql, (subject_tag,))
        return _request(rows[0]) if rows else None

    def all(self) -> list[Request]:
        """Every request, the one due first ahead."""
        return [_request(row) for row in self._db.read("SELECT * FROM requests ORDER BY due_at, request_id")]

    def stuck(self) -> list[Stuck]:
        """Requests whose last run failed, the one due first ahead: what somebody may have to look at."""
        sql = "SELECT request_id, stage, due_at FROM requests WHERE status = ? ORDER BY due_at, request_id"
        rows = self._db.read(sql, (Status.INCOMPLETE.value,))
        return [Stuck(row[0], row[1], datetime.fromisoformat(row[2])) for row in rows]

    def without_receipt(self) -> list[tuple[str, bytes]]:
        """(request, keyed hash of the person) of those that are neither carried through nor taken back."""
        sql = "SELECT request_id, subject_tag FROM requests WHERE receipt IS NULL AND status != 'cancelled'"
        return [(request_id, tag) for request_id, tag in self._db.read(sql)]

    def begin(self, request_ids: Sequence[str], stage: str) -> list[str]:
        """Writes the intent of a stage before its effect; returns those that nobody has cancelled."""
        at = self._clock()
        with self._effects("journal"), self._db.write() as db:
            found = [(one, *_standing(db, one)) for one in request_ids]
            open_ = [(one, records) for one, status, records in found if status != Status.CANCELLED.value]
            db.executemany(
                "UPDATE requests SET details = ? WHERE request_id = ?",
                [(json.dumps([*_without(records, stage), _begun(stage, at)]), one) for one, records in open_],
            )
        return [one for one, _ in open_]

    def complete(self, stage: str, seconds: float, details: Mapping[str, Mapping[str, Any]]) -> None:
        """Marks a stage of some requests done, each with what it found."""
        done = {"finished_at": self._clock().isoformat(), "seconds": round(seconds, 4)}
        with self._effects("journal"), self._db.write() as db:
            for request_id, detail in details.items():
                _, records = _standing(db, request_id)
                for record in records:
                    if record["stage"] == stage:
                        record |= done | {"detail": dict(detail)}
                db.execute(
                    "UPDATE requests SET details = ?, stage = ?, status = ? WHERE request_id = ?",
                    (json.dumps(records), stage, status_of(stage).value, request_id),
                )

    def set_status(self, status: Mapping[str, Status]) -> None:
        """Notes that requests wait (held) or stand (incomplete)."""
        with self._db.write() as db:
            db.executemany(
                "UPDATE requests SET status = ? WHERE request_id = ?",
                [(one.value, request_id) for request_id, one in status.items()],
            )

    def reseal(self, sealed: Mapping[str, tuple[bytes, bytes]]) -> None:
        """Keeps ids under other keys, before the people's own are fenced: request → (handle, sealed id)."""
        with self._effects("journal.reseal"), self._db.write() as db:
            db.executemany(
                "UPDATE requests SET sealed_ref = ?, sealed_subject = ? WHERE request_id = ?",
                [(ref, subject, request_id) for request_id, (ref, subject) in sealed.items()],
            )
        self._db.flush_deleted()

    def put_statements(self, statements: Mapping[str, bytes]) -> dict[str, bytes]:
        """Keeps the first statement of each request and returns them: a resumed run signs the same ones."""
        with self._effects("journal.statement"), self._db.write() as db:
            db.executemany(
                "UPDATE requests SET statement = COALESCE(statement, ?) WHERE request_id = ?",
                [(statement, request_id) for request_id, statement in statements.items()],
            )
        kept = {request_id: self.get(request_id).statement for request_id in statements}
        return {request_id: statement for request_id, statement in kept.items() if statement is not None}

    def put_receipts(self, receipts: Mapping[str, bytes]) -> None:
        """Keeps receipts and removes what still pointed at the people."""
        with self._effects("journal.receipt"), self._db.write() as db:
            db.executemany(
                "UPDATE requests SET receipt = ?, ref = NULL, sealed_ref = NULL, sealed_subject = NULL "
                "WHERE request_id = ?",
                [(receipt, request_id) for request_id, receipt in receipts.items()],
            )
        self._db.flush_deleted()

    def remember_fence(self, epoch: int, chain: bytes) -> None:
        """Keeps the newest fence, so that a fence log that went back to an older copy is noticed."""
        with self._effects("journal.fence"), self._db.write() as db:
            db.execute(
                "INSERT INTO newest_fence VALUES (1, ?, ?) ON CONFLICT (one) DO UPDATE"
                " SET epoch = excluded.epoch, chain = excluded.chain WHERE excluded.epoch > epoch",
                (epoch, chain),
            )

    def newest_fence(self) -> Remembered | None:
        """What the restore gate asks."""
        rows = self._db.read("SELECT epoch, chain FROM newest_fence")
        return Remembered("the request journal", *rows[0]) if rows else None

    def salt(self, request_id: str) -> tuple[bytes, bytes] | None:
        """Handle and sealed salt, while it was not delivered."""
        rows = self._db.read("SELECT ref, sealed FROM salts WHERE request_id = ?", (request_id,))
        return rows[0] if rows else None

    def salts_of_before(self, moment: datetime) -> list[str]:
        """Requests received before a moment whose salts nobody has fetched."""
        sql = "SELECT request_id FROM salts JOIN requests USING (request_id) WHERE received_at < ?"
        return [row[0] for row in self._db.read(sql, (moment.isoformat(),))]

    def forget_salt(self, request_id: str) -> None:
        """Removes a salt, once its key is gone."""
        with self._effects("journal.salt"), self._db.write() as db:
            db.execute("DELETE FROM salts WHERE request_id = ?", (request_id,))
        self._db.flush_deleted()

    def cancel(self, request_id: str) -> Request:
        """Takes a request back. Raises `NotCancellable` past the fence."""
        with self._db.write() as db:
            request = self.get(request_id)
            is_fenced = any(one.stage == POINT_OF_NO_RETURN for one in request.stages)
            if is_fenced or not may_cancel(request.stage, request.status):
                raise NotCancellable(f"the request is {request.status.value} and past the fence")
            db.execute("UPDATE requests SET status = 'cancelled' WHERE request_id = ?", (request_id,))
        return self.get(request_id)

    # -- legal holds -------------------------------------------------------------------------------

    def place_hold(self, subject_tag: bytes, ref: bytes, why: str) -> None:
        """A legal hold begins."""
        with self._effects("journal.hold"), self._db.write() as db:
            db.execute(
                "INSERT OR IGNORE INTO holds VALUES (?, ?, ?, ?)",
                (subject_tag, ref, self._clock().isoformat(), why),
            )

    def release_hold(self, subject_tag: bytes) -> None:
        """A legal hold ends; requests that waited for it are pending again."""
        with self._effects("journal.hold"), self._db.write() as db:
            db.execute("DELETE FROM holds WHERE subject_tag = ?", (subject_tag,))
            db.execute(
                "UPDATE requests SET status = 'pending' WHERE subject_tag = ? AND status = 'held'",
                (subject_tag,),
            )

    def is_held(self, subject_tag: bytes) -> bool:
        """Whether a hold stands."""
        return bool(self._db.read("SELECT 1 FROM holds WHERE subject_tag = ?", (subject_tag,)))

    @contextmanager
    def holds_kept_out(self) -> Iterator[set[bytes]]:
        """Yields who is under hold, by keyed hash; none is placed or released before the block is left."""
        with self._db.write() as db:
            yield {row[0] for row in db.execute("SELECT subject_tag FROM holds")}

    def close(self) -> None:
        """Closes the database."""
        self._db.close()

    def _digest_references(self) -> None:
        """Replaces the idempotency keys that earlier releases kept as they came."""
        if self._db.read("PRAGMA user_version")[0][0] >= _REFERENCES_DIGESTED:
            return
        with self._effects("journal.references"), self._db.write() as db:
            sql = "SELECT request_id, idempotency_key FROM requests WHERE idempotency_key IS NOT NULL"
            kept = db.execute(sql).fetchall()
            db.executemany(
                "UPDATE requests SET idempotency_key = ? WHERE request_id = ?",
                [(self._reference_tag(reference).hex(), request_id) for request_id, reference in kept],
            )
            if kept:
                db.execute("REINDEX requests")  # rebuilt, so that no page keeps a boundary of its old order
            db.execute(f"PRAGMA user_version = {_REFERENCES_DIGESTED}")
        if kept:
            self._db.flush_deleted()
            with self._effects("journal.vacuum"):
                self._db.read("VACUUM")
            self._db.flush_deleted()


def _standing(db: sqlite3.Connection, request_id: str) -> tuple[str, list[dict[str, Any]]]:
    """Status and stage records of a request. Raises `UnknownRequest`."""
    row = db.execute("SELECT status, details FROM requests WHERE request_id = ?", (request_id,)).fetchone()
    if row is None:
        raise UnknownRequest("there is no such erasure request")
    return row[0], json.loads(row[1])


def _begun(stage: str, at: datetime) -> dict[str, Any]:
    return {"stage": stage, "started_at": at.isoformat(), "finished_at": None, "seconds": None, "detail": {}}


def _without(records: list[dict[str, Any]], stage: str) -> list[dict[str, Any]]:
    return [record for record in records if record["stage"] != stage]


def _request(row: tuple[Any, ...]) -> Request:
    records = tuple(StageRecord(**record) for record in json.loads(row[12]))
    ordered = tuple(sorted(records, key=lambda r: STAGES.index(r.stage)))
    return Request(
        row[0],
        datetime.fromisoformat(row[1]),
        datetime.fromisoformat(row[2]),
        row[3],
        row[4],
        row[5],
        row[6],
        row[7],
        row[8],
        row[9],
        row[10],
        Status(row[11]),
        ordered,
        row[13],
        row[14],
    )
