"""The transparency log: receipts and publications as leaves of one append-only Merkle tree.

Checkpoints are signed notes (C2SP signed-note, tlog-checkpoint), proofs are C2SP tlog-proof text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from keys import Database, Effects, Keyring, Remembered
from purge.merkle import inclusion_proof, leaf_hash, root_of

ORIGIN: Final = "shredlake.local/log"
_ED25519: Final = b"\x01"
_LOOKED_AT: Final = 100
"""Newest leaves among which the newest fence is looked for: requests side by side end in any order."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS leaves (leaf INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    data BLOB NOT NULL, hash BLOB NOT NULL)
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
        return int(found[0])

    def size(self) -> int:
        """Number of leaves."""
        return int(self._db.read("SELECT COUNT(*) FROM leaves")[0][0])

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

    def newest_fence(self) -> Remembered | None:
        """What the restore gate asks: the newest epoch that a receipt or a publication names."""
        sql = "SELECT data FROM leaves ORDER BY leaf DESC LIMIT ?"
        found = [_fence_of(data) for (data,) in self._db.read(sql, (_LOOKED_AT,))]
        epoch, chain = max(found, default=(0, None), key=lambda one: (one[0], one[1] is not None))
        return Remembered("the transparency log", epoch, chain) if epoch else None

    def checkpoint(self) -> Checkpoint:
        """The log as it stands, signed."""
        return self._checkpoint(self._hashes())

    def proof(self, leaf: int) -> str:
        """C2SP tlog-proof of a leaf under the newest checkpoint."""
        return self.proofs([leaf])[leaf]

    def proofs(self, leaves: Iterable[int]) -> dict[int, str]:
        """The proof of each leaf, all under one checkpoint."""
        hashes = self._hashes()
        note = self._checkpoint(hashes).note
        found = {}
        for leaf in leaves:
            lines = ["c2sp.org/tlog-proof@v1", f"index {leaf}"]
            lines += [base64.b64encode(h).decode() for h in inclusion_proof(hashes, leaf)]
            found[leaf] = "\n".join(lines) + "\n\n" + note
        return found

    def verify(self) -> int:
        """Recomputes every leaf hash; returns the size. Raises ValueError where one does not fit."""
        for leaf, data, stored in self._db.read("SELECT leaf, data, hash FROM leaves ORDER BY leaf"):
            if leaf_hash(data) != stored:
                raise ValueError(f"leaf {leaf} of the transparency log was changed")
        return self.size()

    def close(self) -> None:
        """Closes the database."""
        self._db.close()

    def _hashes(self) -> list[bytes]:
        return [row[0] for row in self._db.read("SELECT hash FROM leaves ORDER BY leaf")]

    def _checkpoint(self, hashes: list[bytes]) -> Checkpoint:
        root = root_of(hashes)
        text = f"{ORIGIN}\n{len(hashes)}\n{base64.b64encode(root).decode()}\n"
        signature = self._keyring.sign(text.encode())
        public = self._keyring.custodian.public_keys()[signature.key_id]
        signed = base64.b64encode(note_key_hash(public) + signature.value).decode()
        return Checkpoint(len(hashes), root, f"{text}\n— {ORIGIN} {signed}\n")


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
