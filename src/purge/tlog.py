"""The transparency log: receipts and publications as leaves of one append-only Merkle tree.

Checkpoints are signed notes (C2SP signed-note, tlog-checkpoint), proofs are C2SP tlog-proof text. Hashes of
complete subtrees and the newest signed checkpoint are kept: no read's work grows with the log, and what is
covered by a checkpoint is proven without the custodian.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from keys import Database, Effects, Keyring, KeysError, Remembered
from purge.merkle import completed_by, inclusion_proof, leaf_hash, root_of

ORIGIN: Final = "shredlake.local/log"
_ED25519: Final = b"\x01"
_LOOKED_AT: Final = 100
_RECEIPTS_LOOKED_AT: Final = 8
_RECEIPT: Final = "receipt/"
"""Newest leaves among which the newest fence is looked for: requests side by side end in any order."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS leaves (leaf INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    data BLOB NOT NULL, hash BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS nodes (level INTEGER NOT NULL, at INTEGER NOT NULL, hash BLOB NOT NULL,
    PRIMARY KEY (level, at)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS signed (one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL,
    root BLOB NOT NULL, note TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS signers (key_id TEXT PRIMARY KEY, public BLOB NOT NULL, at INTEGER NOT NULL)
"""


@frozen
class Checkpoint:
    """Size and root of the log at a moment, signed."""

    size: int
    root: bytes
    note: str


class TransparencyLog:
    """Appends leaves and proves them.

    Args:
        path: SQLite file.
        keyring: signs checkpoints.
    """

    def __init__(self, path: Path, keyring: Keyring, effects: Effects) -> None:
        self._db = Database(path, _SCHEMA)
        self._keyring = keyring
        self._effects = effects
        self._grow()

    def append(self, name: str, data: bytes) -> int:
        """The leaf number; a name that is there already keeps its first data."""
        with self._effects("tlog"), self._db.write() as db:
            found = db.execute("SELECT leaf FROM leaves WHERE name = ?", (name,)).fetchone()
            if found is None:
                found = db.execute(
                    "INSERT INTO leaves (leaf, name, data, hash) "
                    "SELECT COALESCE(MAX(leaf) + 1, 0), ?, ?, ? FROM leaves RETURNING leaf",
                    (name, data, leaf_hash(data)),
                ).fetchone()
                self._complete(db, int(found[0]), leaf_hash(data))
        return int(found[0])

    def size(self) -> int:
        """Number of leaves."""
        return int(self._db.read("SELECT COALESCE(MAX(leaf) + 1, 0) FROM leaves")[0][0])

    def data(self, leaf: int) -> bytes:
        """What a leaf holds. Raises IndexError."""
        rows = self._db.read("SELECT data FROM leaves WHERE leaf = ?", (leaf,))
        if not rows:
            raise IndexError(f"the log has no leaf {leaf}")
        found: bytes = rows[0][0]
        return found

    def named(self, prefix: str) -> list[tuple[int, str, bytes]]:
        """Leaves whose name begins so: number, name, data; oldest first."""
        sql = "SELECT leaf, name, data FROM leaves WHERE substr(name, 1, ?) = ? ORDER BY leaf"
        return [(int(leaf), name, data) for leaf, name, data in self._db.read(sql, (len(prefix), prefix))]

    def attested(self) -> list[str]:
        """Requests whose receipt is a leaf."""
        return self.names_below(_RECEIPT)

    def names_below(self, prefix: str) -> list[str]:
        """What follows a prefix in the names that begin with it."""
        sql = "SELECT substr(name, ?) FROM leaves WHERE substr(name, 1, ?) = ?"
        return [name for (name,) in self._db.read(sql, (len(prefix) + 1, len(prefix), prefix))]

    def newest_publications(self) -> dict[str, str]:
        """View → build of its newest publication, of those among the newest leaves: what readers ask."""
        sql = "SELECT data FROM leaves WHERE substr(name, 1, ?) = ? ORDER BY leaf DESC LIMIT ?"
        prefix, found = "publication/", dict[str, str]()
        for (data,) in self._db.read(sql, (len(prefix), prefix, _LOOKED_AT)):
            stated = json.loads(data)
            found.setdefault(stated["view"], stated["build_id"])
        return found

    def newest_fence(self) -> Remembered | None:
        """What the restore gate asks: the newest epoch that a receipt or a publication names."""
        sql = "SELECT data FROM leaves ORDER BY leaf DESC LIMIT ?"
        found = [_fence_of(data) for (data,) in self._db.read(sql, (_LOOKED_AT,))]
        epoch, chain = max(found, default=(0, None), key=lambda one: (one[0], one[1] is not None))
        return Remembered("the transparency log", epoch, chain) if epoch else None

    def newest_attested(self) -> int:
        """The highest fence sequence among the newest receipts; 0 where there is none."""
        sql = "SELECT data FROM leaves WHERE substr(name, 1, ?) = ? ORDER BY leaf DESC LIMIT ?"
        found = self._db.read(sql, (len(_RECEIPT), _RECEIPT, _RECEIPTS_LOOKED_AT))
        return max((_fence_of(data)[0] for (data,) in found), default=0)

    def published(self) -> Checkpoint:
        """The newest checkpoint that was signed; the custodian is asked where there is none yet.

        What is appended is signed for when it is, so this covers it unless the custodian was away then.

        Raises:
            KeysError: none was ever signed, and none can be now.
        """
        return self._signed() or self.checkpoint()

    def signers(self) -> list[bytes]:
        """Public keys that checkpoints and receipts verify with, as they were told last; oldest first.

        Raises:
            KeysError: the custodian never told them, and does not now.
        """
        sql = "SELECT public FROM signers ORDER BY at"
        return [public for (public,) in self._db.read(sql) or self._noted(sql)]

    def catch_up(self) -> None:
        """Signs for what was appended while the custodian was away, and asks it which keys there are.

        Raises:
            KeysError: it does not answer.
        """
        self._note_signers()
        signed = self._signed()
        if signed is not None and signed.size < self.size():
            self._sign(self.size())

    def checkpoint(self) -> Checkpoint:
        """The log as it stands, signed; while the custodian does not answer, as it was when last signed.

        Raises:
            KeysError: it cannot be signed, and never was.
        """
        size, signed = self.size(), self._signed()
        if signed is not None and signed.size == size:
            return signed
        try:
            return self._sign(size)
        except KeysError as error:
            if signed is None or not error.retry_helps:
                raise
            return signed

    def proof(self, leaf: int) -> str:
        """C2SP tlog-proof of a leaf under a checkpoint that covers it. Raises as `proofs`."""
        return self.proofs([leaf])[leaf]

    def proofs(self, leaves: Iterable[int]) -> dict[int, str]:
        """The proof of each leaf, all under one checkpoint.

        Raises:
            IndexError: there is no such leaf.
            KeysError: no checkpoint covers one of them, and none can be signed now.
        """
        wanted, point = list(leaves), self.published()
        if wanted and point.size <= max(wanted) < self.size():
            point = self._sign(self.size())
        found = {}
        for leaf in wanted:
            lines = ["c2sp.org/tlog-proof@v1", f"index {leaf}"]
            lines += [base64.b64encode(h).decode() for h in inclusion_proof(leaf, point.size, self._node)]
            found[leaf] = "\n".join(lines) + "\n\n" + point.note
        return found

    def verify(self) -> int:
        """Recomputes every hash; returns the size. Raises ValueError where one does not fit."""
        row = "SELECT leaf, data, hash FROM leaves ORDER BY leaf"
        for expected, (leaf, data, stored) in enumerate(self._db.rows(row)):
            if leaf != expected or leaf_hash(data) != stored:
                raise ValueError(f"leaf {expected} of the transparency log was changed")
            for level, at, found in completed_by(leaf, stored, self._node):
                if self._node(level, at) != found:
                    raise ValueError(f"a hash above leaf {leaf} of the transparency log was changed")
        return self.size()

    def close(self) -> None:
        """Closes the database."""
        self._db.close()

    def _node(self, level: int, at: int) -> bytes:
        if level == 0:
            rows = self._db.read("SELECT hash FROM leaves WHERE leaf = ?", (at,))
        else:
            rows = self._db.read("SELECT hash FROM nodes WHERE level = ? AND at = ?", (level, at))
        if not rows:
            raise ValueError(f"the transparency log lacks the hash ({level}, {at})")
        found: bytes = rows[0][0]
        return found

    def _complete(self, db: sqlite3.Connection, leaf: int, found: bytes) -> None:
        """Keeps what is complete with this leaf; in the transaction that appends it."""
        nodes = completed_by(leaf, found, self._node)
        db.executemany("INSERT OR REPLACE INTO nodes (level, at, hash) VALUES (?, ?, ?)", nodes)

    def _grow(self) -> None:
        """Gives a log that was written without them its subtree hashes, once."""
        pairs = self.size() // 2
        if pairs == 0 or self._db.read("SELECT 1 FROM nodes WHERE level = 1 AND at = ?", (pairs - 1,)):
            return
        with self._db.write() as db:
            for leaf, found in db.execute("SELECT leaf, hash FROM leaves ORDER BY leaf").fetchall():
                self._complete(db, leaf, found)

    def _signed(self) -> Checkpoint | None:
        rows = self._db.read("SELECT size, root, note FROM signed")
        return Checkpoint(*rows[0]) if rows else None

    def _note_signers(self) -> Mapping[str, bytes]:
        """Which keys there are, by the custodian, and kept for readers of the log."""
        found = self._keyring.custodian.public_keys()
        kept = dict(self._db.read("SELECT key_id, public FROM signers"))
        if kept != found:
            rows = [(key_id, public, at) for at, (key_id, public) in enumerate(found.items())]
            with self._db.write() as db:
                db.execute("DELETE FROM signers")
                db.executemany("INSERT INTO signers VALUES (?, ?, ?)", rows)
        return found

    def _noted(self, sql: str) -> list[tuple[Any, ...]]:
        self._note_signers()
        return self._db.read(sql)

    def _sign(self, size: int) -> Checkpoint:
        root = root_of(size, self._node)
        text = f"{ORIGIN}\n{size}\n{base64.b64encode(root).decode()}\n"
        signature = self._keyring.sign(text.encode())
        public = self._note_signers()[signature.key_id]
        signed = base64.b64encode(note_key_hash(public) + signature.value).decode()
        made = Checkpoint(size, root, f"{text}\n— {ORIGIN} {signed}\n")
        with self._db.write() as db:  # another process may have signed a larger one meanwhile
            db.execute(
                "INSERT INTO signed (one, size, root, note) VALUES (1, ?, ?, ?) ON CONFLICT (one) DO UPDATE"
                " SET size = excluded.size, root = excluded.root, note = excluded.note"
                " WHERE excluded.size > size",
                (made.size, made.root, made.note),
            )
        return made


def _fence_of(leaf: bytes) -> tuple[int, bytes | None]:
    body: dict[str, Any] = json.loads(leaf)
    stated = body.get("predicate", body)  # a receipt's statement, or a publication
    chain = stated.get("fence_chain")
    return int(stated.get("epoch") or 0), bytes.fromhex(chain) if chain else None


def note_key_hash(public_key: bytes) -> bytes:
    """First four bytes that name a key in a signed note."""
    return hashlib.sha256(ORIGIN.encode() + b"\n" + _ED25519 + public_key).digest()[:4]


def verifier_keys(public_keys: Iterable[bytes]) -> str:
    """All vkeys, one a line: signatures of a key that was rotated since verify with theirs."""
    return "".join(f"{verifier_key(public)}\n" for public in public_keys)


def verifier_key(public_key: bytes) -> str:
    """C2SP vkey: what an auditor is given."""
    body = base64.b64encode(_ED25519 + public_key).decode()
    return f"{ORIGIN}+{note_key_hash(public_key).hex()}+{body}"
