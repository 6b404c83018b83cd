"""What publications keep back, sealed: which rows, and how many people changed in them.

A row is known by a digest of its keys, and a digest of a day or a band is guessed within seconds. So all of
a build's stands as one body under a key of its own, which belongs to nobody and is destroyed when the
publication is dropped, or when the same build is written again.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Final

from keys import Database, Effects, FieldContext, KeyRecordMissing, Keyring
from projections.differencing import Withheld
from projections.errors import GateClosed

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS withheld (build_id TEXT NOT NULL, key_digest BLOB NOT NULL,
    people INTEGER NOT NULL, changed INTEGER NOT NULL, PRIMARY KEY (build_id, key_digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS withheld_sealed (build_id TEXT PRIMARY KEY, key_ref BLOB NOT NULL,
    sealed BLOB NOT NULL) WITHOUT ROWID
"""
"""The first is of earlier releases: see `WithheldRows.seal_older`."""
_CONTEXT: Final = FieldContext(b"shredlake-ledger", 0, "ledger", "system", "withheld", 1)
_PLACE: Final = b"withheld rows"
_ROW: Final = struct.Struct(">32sqq")
Rows = Mapping[bytes, Withheld]


class WithheldRows:
    """Of all builds of one lake.

    Args:
        keyring: None only where nothing is withheld or asked for.
    """

    def __init__(self, db: Database, keyring: Keyring | None, effects: Effects) -> None:
        self._db = db
        self._keyring = keyring
        self._effects = effects

    def put(self, build_id: str, rows: Rows) -> None:
        """Remembers which rows a build keeps back, in place of what it kept back before."""
        sealed = self._sealed(rows) if rows else None
        before = self._refs([build_id])
        with self._effects("withheld"), self._db.write() as db:
            db.execute("DELETE FROM withheld WHERE build_id = ?", (build_id,))
            db.execute("DELETE FROM withheld_sealed WHERE build_id = ?", (build_id,))
            if sealed is not None:
                db.execute("INSERT INTO withheld_sealed VALUES (?, ?, ?)", (build_id, *sealed))
        self._drop(before)

    def get(self, build_id: str) -> dict[bytes, Withheld]:
        """Rows that a build keeps back, by digest of their keys.

        Raises:
            GateClosed: their key is gone.
            KeysError: keys do not answer.
        """
        found = self._db.read("SELECT key_ref, sealed FROM withheld_sealed WHERE build_id = ?", (build_id,))
        if found:
            ref, sealed = found[0]
            body = self._opened(ref, sealed)
            return {row[0]: Withheld(row[1], row[2]) for row in _ROW.iter_unpack(body)}
        sql = "SELECT key_digest, people, changed FROM withheld WHERE build_id = ?"
        return {row[0]: Withheld(row[1], row[2]) for row in self._db.read(sql, (build_id,))}

    def forget(self, build_ids: Collection[str]) -> None:
        """Deletes what builds kept back, and destroys its keys; repeating it is success."""
        refs = self._refs(build_ids)
        ids = [(one,) for one in build_ids]
        with self._effects("withheld"), self._db.write() as db:
            db.executemany("DELETE FROM withheld WHERE build_id = ?", ids)
            db.executemany("DELETE FROM withheld_sealed WHERE build_id = ?", ids)
        self._drop(refs)

    def seal_older(self) -> int:
        """Seals what an earlier release stored as plain digests; returns of how many builds."""
        older = [row[0] for row in self._db.read("SELECT DISTINCT build_id FROM withheld")]
        for build_id in older:
            self.put(build_id, self.get(build_id))
        if older:
            self._db.flush_deleted()
        return len(older)

    def _opened(self, ref: bytes, sealed: bytes) -> bytes:
        with suppress(KeyRecordMissing):
            (body,) = self._keys().opener().open(_CONTEXT, [ref], [_PLACE], [sealed])
            assert isinstance(body, bytes), "a minted key is never fenced"
            return body
        raise GateClosed(
            "what an earlier publication kept back cannot be opened: its key is gone",
            next_step="Bring key pages and ledger back from the same moment, or publish under another name.",
        )

    def _sealed(self, rows: Rows) -> tuple[bytes, bytes]:
        body = b"".join(_ROW.pack(digest, one.people, one.changed) for digest, one in sorted(rows.items()))
        ref = self._keys().mint(1)[0].ref
        (sealed,) = self._keys().session().seal(_CONTEXT, [ref], [_PLACE], [body])
        assert isinstance(sealed, bytes), "a minted key is never fenced"
        return ref, sealed

    def _refs(self, build_ids: Collection[str]) -> list[bytes]:
        known = dict(self._db.read("SELECT build_id, key_ref FROM withheld_sealed"))
        return [known[one] for one in build_ids if one in known]

    def _drop(self, refs: list[bytes]) -> None:
        if refs:
            self._keys().drop(refs)

    def _keys(self) -> Keyring:
        assert self._keyring is not None
        return self._keyring
