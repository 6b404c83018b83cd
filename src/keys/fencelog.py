"""The fence log: the durable record of who may never be read again. Its own database file.

It lives in another failure domain than the pages and is written before anything is destroyed. It holds
keyed hashes only: `subject_tag` answers "was this id erased?", `ref_tag` finds the handle again in a
page store restored from a backup. Rows are hash-chained, so a truncated or edited copy shows. A return that
was authorised carries a keyed hash, so that nobody comes back by a row that somebody wrote without the key.
"""

from __future__ import annotations

import bisect
import hashlib
import hmac
import threading
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from attrs import astuple, frozen

from keys.lifecycle import Life, State, authorize_return
from keys.mac import HmacSha256
from keys.sqlite import Database
from keys.subjects import SubjectId

ALL_PURPOSES: Final = "*"
MAX_BUCKET_BITS: Final = 10
_BUCKET_MASK: Final = 0xFFC0
_GENESIS: Final = b"\0" * 32
_UNKNOWN: Final = Life()
_SUBJECT: Final = b"subject|"
_TAG_BYTES: Final = 16
_SCHEMA = """
CREATE TABLE IF NOT EXISTS fences (epoch INTEGER PRIMARY KEY, subject_tag BLOB NOT NULL,
    ref_tag BLOB NOT NULL, purpose TEXT NOT NULL, generation INTEGER NOT NULL, request_id TEXT NOT NULL,
    fenced_at TEXT NOT NULL, chain BLOB NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS fence_once ON fences (ref_tag, purpose, generation);
CREATE INDEX IF NOT EXISTS fence_by_subject ON fences (subject_tag);
CREATE TABLE IF NOT EXISTS log (log_id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS authorized_returns (subject_tag BLOB NOT NULL, purpose TEXT NOT NULL,
    epoch INTEGER NOT NULL, authorized_at TEXT NOT NULL, mac BLOB NOT NULL,
    PRIMARY KEY (subject_tag, purpose, epoch))
"""


@frozen
class Fence:
    """Generations up to `generation` of one handle are destroyed or about to be.

    Attributes:
        epoch: number of this fence, from 1.
        purpose: one purpose, or `*` for the whole person.
        request_id: the erasure request, which is also the receipt id.
    """

    epoch: int
    subject_tag: bytes
    ref_tag: bytes
    purpose: str
    generation: int
    request_id: str
    fenced_at: str
    chain: bytes

    def bucket(self, bits: int) -> int:
        """The bucket of the handle, of 2^bits; `bits` is at most `MAX_BUCKET_BITS`."""
        return int.from_bytes(self.ref_tag[:2], "big") >> (16 - bits)

    def covers(self, purpose: str) -> bool:
        """Whether this fence shuts the given purpose."""
        return self.purpose in (ALL_PURPOSES, purpose)


@frozen
class Return:
    """An erased person may come back for one purpose: until the fence after number `epoch`.

    Attributes:
        mac: keyed hash of the rest.
    """

    subject_tag: bytes
    purpose: str
    epoch: int
    authorized_at: str
    mac: bytes


class _Seen:
    """The fences that were read so far, in their order; grows, so that readers need no lock."""

    def __init__(self) -> None:
        self.fences: list[Fence] = []
        self.by_ref: dict[bytes, list[Fence]] = {}
        self.by_subject: dict[bytes, list[Fence]] = {}
        self.heads: set[bytes] = set()
        self.links: dict[int, bytes] = {}

    @property
    def newest(self) -> tuple[int, bytes]:
        """The newest one's number and link."""
        return (self.fences[-1].epoch, self.fences[-1].chain) if self.fences else (0, _GENESIS)

    def add(self, fences: Sequence[Fence]) -> None:
        """Takes what follows."""
        for fence in fences:
            self.heads.add(fence.ref_tag[:2])
            self.by_ref.setdefault(fence.ref_tag, []).append(fence)
            self.by_subject.setdefault(fence.subject_tag, []).append(fence)
            self.links[fence.epoch] = fence.chain
        self.fences.extend(fences)


class FenceLog:
    """Append-only log of fences.

    Args:
        path: SQLite file.
        tag_key: 32 bytes of the custodian for the keyed hashes; never rotated.
        clock: gives the time of a fence.

    Attributes:
        replacements: how often what this process had read was not the beginning of the log any more.
    """

    def __init__(self, path: Path, tag_key: bytes, clock: Callable[[], datetime]) -> None:
        self._db = Database(path, _SCHEMA)
        self._mac = HmacSha256(tag_key)
        self._clock = clock
        self._mutex = threading.Lock()
        self._seen = _Seen()
        self.replacements = 0
        self._id = ""

    def epoch(self) -> int:
        """The count of fences: the newest fence's number."""
        return int(self._db.read("SELECT COALESCE(MAX(epoch), 0) FROM fences")[0][0])

    def head(self) -> tuple[int, bytes]:
        """(number, link) of the newest fence; (0, 32 zero bytes) where there is none."""
        rows = self._db.read("SELECT epoch, chain FROM fences ORDER BY epoch DESC LIMIT 1")
        return rows[0] if rows else (0, _GENESIS)

    def log_id(self) -> str:
        """A random name of this log, the same in every copy of its file; made when it is first asked for."""
        if not self._id:
            with self._db.write() as db:
                row = db.execute("SELECT log_id FROM log").fetchone()
                if row is None:
                    row = (uuid.uuid4().hex,)
                    db.execute("INSERT INTO log VALUES (?)", row)
            self._id = str(row[0])
        return self._id

    def take_id(self, log_id: str) -> None:
        """Becomes the log of that name: what an import from its copy does."""
        with self._db.write() as db:
            db.execute("DELETE FROM log")
            db.execute("INSERT INTO log VALUES (?)", (log_id,))
        self._id = log_id

    def subject_tag(self, subject: SubjectId) -> bytes:
        """Keyed hash of an id."""
        return self._mac.digest(_SUBJECT + subject.reveal().encode())[:_TAG_BYTES]

    def reference_tag(self, reference: str) -> bytes:
        """Keyed hash of a name that a client gave to a request of theirs; it may hold a person's id."""
        return self._mac.digest(b"reference|" + reference.encode())[:_TAG_BYTES]

    def ref_tag(self, ref: bytes) -> bytes:
        """16 bytes: the handle's first ten bits in the clear, then its keyed hash.

        The ten bits say which bucket of a view's state has to be derived anew; a lake has at least
        thousands of people per bucket, so they name nobody.
        """
        return _head(ref) + self._mac.digest(b"ref|" + ref)[:14]

    def append(
        self, entries: Sequence[tuple[bytes, bytes, str, int]], request_ids: str | Sequence[str]
    ) -> list[Fence]:
        """Writes fences for (subject_tag, ref_tag, purpose, generation), in one transaction.

        Args:
            request_ids: the request of each, or one of all.

        One that is there already, for this generation or a later one, stays as it was: whoever erases
        a person a second time no longer sees which generation it was.
        """
        written = []
        ids = [request_ids] * len(entries) if isinstance(request_ids, str) else request_ids
        with self._db.write() as db:
            last = db.execute("SELECT epoch, chain FROM fences ORDER BY epoch DESC LIMIT 1").fetchone()
            epoch, chain = last or (0, _GENESIS)
            for (subject_tag, ref_tag, purpose, generation), request_id in zip(entries, ids, strict=True):
                found = db.execute(
                    "SELECT * FROM fences WHERE ref_tag = ? AND purpose = ? AND generation >= ?"
                    " ORDER BY epoch LIMIT 1",
                    (ref_tag, purpose, generation),
                ).fetchone()
                if found:
                    written.append(Fence(*found))
                    continue
                epoch += 1
                at = self._clock().isoformat(timespec="milliseconds")
                row = (epoch, subject_tag, ref_tag, purpose, generation, request_id, at)
                chain = _link(chain, row)
                db.execute("INSERT INTO fences VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, chain))
                written.append(Fence(*row, chain))
        return written

    def authorize_return(self, subject: SubjectId, purpose: str, epoch: int) -> None:
        """Lets an erased person be provisioned anew, until a fence after number `epoch` comes.

        Raises:
            InvalidTransition: never erased.
        """
        authorize_return(self.life(subject, purpose))
        with self._db.write() as db:
            at = self._clock().isoformat(timespec="milliseconds")
            row = (self.subject_tag(subject), purpose, epoch, at)
            # One that somebody else has written in its place is replaced; a true one says the same.
            db.execute(
                "INSERT OR REPLACE INTO authorized_returns VALUES (?, ?, ?, ?, ?)", (*row, self._mac_of(row))
            )

    def life(self, subject: SubjectId, purpose: str) -> Life:
        """Where a person who has no key record stands, by this log alone."""
        return self.lives([subject], purpose)[0]

    def lives(self, subjects: Sequence[SubjectId], purpose: str) -> list[Life]:
        """The same of many, by one look."""
        self.refresh()
        by_subject = self._seen.by_subject
        if not by_subject:  # nobody was ever fenced: no tag has to be computed
            return [_UNKNOWN] * len(subjects)
        hashes = self._mac.digests(_SUBJECT, (one.reveal().encode() for one in subjects))
        tags = [one[:_TAG_BYTES] for one in hashes]
        return [self._life(tag, purpose) if tag in by_subject else _UNKNOWN for tag in tags]

    def _life(self, tag: bytes, purpose: str) -> Life:
        fences = [f for f in self._seen.by_subject.get(tag, ()) if f.covers(purpose)]
        if not fences:
            return _UNKNOWN
        newest = fences[-1]
        # Asked each time: a return adds no epoch that would make `refresh` read it.
        sql = "SELECT * FROM authorized_returns WHERE subject_tag = ? AND purpose = ? AND epoch >= ?"
        if any(self._is_ours(Return(*row)) for row in self._db.read(sql, (tag, purpose, newest.epoch))):
            return Life(State.RETURN_AUTHORIZED, newest.generation)
        return Life(State.DESTROYED, newest.generation)

    def of_ref(self, ref: bytes, purpose: str, generation: int) -> Fence | None:
        """The fence that covers this handle, purpose and generation."""
        self.refresh()
        return self._covering(ref, purpose, generation)

    def covering(self) -> Callable[[bytes, str, int], Fence | None] | None:
        """Tells of (ref, purpose, generation) which fence covers it; None while nobody is fenced.

        Only handles that share ten bits with a fenced one cost a keyed hash.
        """
        if self.is_empty():
            return None
        heads = self._seen.heads

        def find(ref: bytes, purpose: str, generation: int) -> Fence | None:
            return self._covering(ref, purpose, generation) if _head(ref) in heads else None

        return find

    def touched_since(self, epoch: int, refs: Collection[bytes]) -> bool:
        """Whether any of these handles has a fence newer than `epoch`."""
        newer = self.after(epoch)
        if not newer:  # nearly always
            return False
        tags = {fence.ref_tag for fence in newer}
        heads = {tag[:2] for tag in tags}
        return any(_head(ref) in heads and self.ref_tag(ref) in tags for ref in refs)

    def ref_ranges(self, subject: SubjectId) -> list[tuple[bytes, bytes | None]]:
        """Ranges [from, to) of handles that the erased ones of a person lie in; None is the open end."""
        fences = self.of_tag(self.subject_tag(subject))
        heads = {int.from_bytes(one.ref_tag[:2], "big") for one in fences}
        width = _BUCKET_MASK & -_BUCKET_MASK
        return [
            (head.to_bytes(2, "big"), (head + width).to_bytes(2, "big") if head + width < 1 << 16 else None)
            for head in sorted(heads)
        ]

    def refs_of(self, subject: SubjectId, refs: Collection[bytes]) -> list[bytes]:
        """Those of these handles that were fenced as this person's."""
        tags = {one.ref_tag for one in self.of_tag(self.subject_tag(subject))}
        return [ref for ref in refs if self.ref_tag(ref) in tags]

    def of_tag(self, subject_tag: bytes) -> list[Fence]:
        """Every fence of one person, oldest first; by the index in memory, whatever the log's length."""
        self.refresh()
        return list(self._seen.by_subject.get(subject_tag, ()))

    def numbered(self, epochs: Collection[int]) -> list[Fence]:
        """The fences of these numbers, oldest first; those that are not there are left out."""
        self.refresh()
        fences, found = self._seen.fences, []
        for epoch in sorted(set(epochs)):
            at = bisect.bisect_left(fences, epoch, key=lambda f: f.epoch)
            found += [fence for fence in fences[at : at + 1] if fence.epoch == epoch]
        return found

    def after(self, epoch: int) -> Sequence[Fence]:
        """The fences newer than `epoch`, oldest first."""
        self.refresh()
        fences = self._seen.fences
        return fences[bisect.bisect_right(fences, epoch, key=lambda f: f.epoch) :]

    def is_empty(self) -> bool:
        """Whether nobody was ever fenced; then no tag has to be computed."""
        self.refresh()
        return not self._seen.fences

    def _mac_of(self, row: tuple[bytes, str, int, str]) -> bytes:
        return self._mac.digest(b"return|" + _parts(row))

    def _is_ours(self, one: Return) -> bool:
        row = (one.subject_tag, one.purpose, one.epoch, one.authorized_at)
        return hmac.compare_digest(self._mac_of(row), one.mac)

    def _covering(self, ref: bytes, purpose: str, generation: int) -> Fence | None:
        for fence in self._seen.by_ref.get(self.ref_tag(ref), ()):
            if fence.covers(purpose) and generation <= fence.generation:
                return fence
        return None

    def all(self) -> list[Fence]:
        """Every fence, oldest first."""
        return self._read_after(0)

    def _read_after(self, epoch: int) -> list[Fence]:
        sql = "SELECT * FROM fences WHERE epoch > ? ORDER BY epoch"
        return [Fence(*row) for row in self._db.read(sql, (epoch,))]

    def returns(self) -> list[Return]:
        """Every authorised return, oldest first."""
        sql = "SELECT * FROM authorized_returns ORDER BY epoch, subject_tag, purpose"
        return [Return(*row) for row in self._db.read(sql)]

    def restore(self, fences: Sequence[Fence], returns: Sequence[Return]) -> int:
        """Adds fences that follow the newest one, and returns; how many returns were new.

        Raises:
            ValueError: they do not follow.
        """
        with self._db.write() as db:
            row = db.execute("SELECT epoch, chain FROM fences ORDER BY epoch DESC LIMIT 1").fetchone()
            epoch, chain = row or (0, _GENESIS)
            for fence in fences:
                columns = astuple(fence)
                epoch, chain = epoch + 1, _link(chain, columns[:-1])
                if fence.epoch != epoch or fence.chain != chain:
                    raise ValueError(f"fence {fence.epoch} does not follow fence {epoch - 1}")
                db.execute("INSERT INTO fences VALUES (?, ?, ?, ?, ?, ?, ?, ?)", columns)
            before = db.total_changes
            rows = map(astuple, filter(self._is_ours, returns))
            db.executemany("INSERT OR IGNORE INTO authorized_returns VALUES (?, ?, ?, ?, ?)", rows)
            return db.total_changes - before

    def verify(self) -> int:
        """Recomputes every hash; returns the number of fences. Raises ValueError where one does not fit."""
        chain = _GENESIS
        fences = self.all()
        for number, fence in enumerate(fences, start=1):
            row = (fence.epoch, fence.subject_tag, fence.ref_tag, fence.purpose, fence.generation)
            chain = _link(chain, (*row, fence.request_id, fence.fenced_at))
            if fence.epoch != number or chain != fence.chain:
                raise ValueError(f"the fence log was changed at epoch {number}")
        for one in self.returns():
            if not self._is_ours(one):
                raise ValueError(f"a return was changed that was authorised after epoch {one.epoch}")
        return len(fences)

    def refresh(self) -> int:
        """Reads what other processes added; returns the newest epoch seen."""
        return self.links()[0][0]

    def links(self) -> tuple[tuple[int, bytes], Mapping[int, bytes]]:
        """The newest fence's (number, link), and the links of all by number, which may grow meanwhile.

        A link is a hash of all that came before it, so while the newest one is the same, the log is: what
        was read once need not be read again. One that went back and grew again has another link at that
        number, however long it is. An edit that leaves the newest row as it was is for `verify`.
        """
        with self._mutex:
            if self.head() != self._seen.newest:
                epoch, chain = self._seen.newest
                added = self._read_after(epoch)
                if added and _link(chain, astuple(added[0])[:-1]) == added[0].chain:
                    self._seen.add(added)
                else:  # an older file was put in its place, and may have grown since
                    other = _Seen()
                    other.add(self.all())
                    self._seen = other  # whole: no reader finds it empty
                    self.replacements += 1
            return self._seen.newest, self._seen.links

    def close(self) -> None:
        """Closes the database."""
        self._db.close()


def _head(ref: bytes) -> bytes:
    """What a handle's tag begins with: the bits that say its bucket."""
    return (int.from_bytes(ref[:2], "big") & _BUCKET_MASK).to_bytes(2, "big")


def _link(chain: bytes, row: tuple[int, bytes, bytes, str, int, str, str]) -> bytes:
    return hashlib.sha256(chain + _parts(row)).digest()


def _parts(row: tuple[bytes | str | int, ...]) -> bytes:
    """A row as bytes, each part behind its length."""
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in row]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
