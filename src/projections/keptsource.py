"""The source of publications: kept by content, sealed, and gone with the last publication of its version.

A body is the canonical form of the files that a view was loaded from. Its SHA-256 stands in the record of the
publication, and so in the transparency log. It is sealed under a key of the version, which belongs to nobody
and is destroyed when no publication of the version is kept.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keys import Database, Effects, EnvelopeError, FieldContext, KeyRecordMissing, Keyring, Shredded
from projections.definition import View
from projections.errors import DefinitionError, SourceUnknown
from projections.source import SourceFile, source_of

if TYPE_CHECKING:
    from projections.ledger import Publication

SOURCES_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS kept_sources (view TEXT NOT NULL, version TEXT NOT NULL, digest TEXT NOT NULL,
    key_ref BLOB NOT NULL, sealed BLOB NOT NULL, PRIMARY KEY (view, version, digest)) WITHOUT ROWID
"""
SOURCE_CONTEXT: Final = FieldContext(b"shredlake-source", 0, "ledger", "system", "source", 1)
_FORMAT: Final = "shredlake-source/1"
Place = tuple[str, str, str]
"""(view, version, digest)."""
Files = tuple[SourceFile, ...]


def bundle(view: View) -> bytes:
    """The canonical form of the files of a view; empty where no file defines it.

    Names are those of the files alone: a folder may be called after whoever works in it.
    """
    source = source_of(type(view))
    if source is None:
        return b""
    files = {source.path.name: base64.b64encode(source.body).decode()}
    return json.dumps({"format": _FORMAT, "files": files}, sort_keys=True, separators=(",", ":")).encode()


def digest_of(body: bytes) -> str:
    """SHA-256 of a bundle in hex; empty where there is none."""
    return hashlib.sha256(body).hexdigest() if body else ""


def other_code(publication: Publication, version: str) -> DefinitionError:
    """Says that a publication was made by other code than there is now, and where that is to be had."""
    where = f" (commit {publication.git_sha[:12]})" if publication.git_sha else ""
    by = f", source sha256:{publication.source}" if publication.source else ""
    kept = (
        "Kept source is not run: put in place what"
        f" `shredlake views source {publication.view} --publication {publication.publication_id}` shows,"
        " and ask again."
    )
    return DefinitionError(
        f"`{publication.view}` was computed by version {publication.version}{where}{by}, the code now is"
        f" {version}",
        next_step=kept if publication.source else "Check that commit out and ask again.",
    )


class KeptSources:
    """Of all publications of one lake.

    Args:
        keyring: None only where nothing is kept or asked for.
    """

    def __init__(self, db: Database, keyring: Keyring | None, effects: Effects) -> None:
        self._db = db
        self._keyring = keyring
        self._effects = effects

    def put(self, view: str, version: str, body: bytes) -> str:
        """Keeps a bundle, before a publication of it can be released; returns its digest.

        Repeating it is success; one whose key is gone is sealed anew.
        """
        if not body:
            return ""
        place = (view, version, digest_of(body))
        with suppress(SourceUnknown):
            self.get(*place)
            return place[2]
        ref = self._keys().mint(1)[0].ref
        (sealed,) = self._keys().session().seal(SOURCE_CONTEXT, [ref], [source_place(place)], [body])
        assert isinstance(sealed, bytes), "a minted key is never fenced"
        with self._effects("keep-source"), self._db.write() as db:
            db.execute("INSERT OR REPLACE INTO kept_sources VALUES (?, ?, ?, ?, ?)", (*place, ref, sealed))
        return place[2]

    def get(self, view: str, version: str, digest: str) -> Files:
        """The files of a publication, each byte as it was read; verified against the digest on record.

        Raises:
            SourceUnknown: it was never kept, is not kept any more, or is not what the digest says.
            KeysError: keys do not answer.
        """
        sql = "SELECT key_ref, sealed FROM kept_sources WHERE view = ? AND version = ? AND digest = ?"
        place = (view, version, digest)
        found = self._db.read(sql, place)
        if not found:
            raise SourceUnknown(f"the source of version {version} of `{view}` is not kept")
        body: object = None
        with suppress(KeyRecordMissing, EnvelopeError):
            (body,) = (
                self._keys()
                .opener()
                .open(SOURCE_CONTEXT, [found[0][0]], [source_place(place)], [found[0][1]])
            )
        if not isinstance(body, bytes) or isinstance(body, Shredded):
            raise SourceUnknown(
                f"the source of version {version} of `{view}` does not open: its key is gone or it changed"
            )
        if digest_of(body) != digest:
            raise SourceUnknown(f"the source of version {version} of `{view}` is not what its digest says")
        return files_of(body)

    def forget_all_but(self, kept: Iterable[Place]) -> int:
        """Deletes what no kept publication was made by, and destroys its keys; returns how many."""
        needed = set(kept)
        known = self._db.read("SELECT view, version, digest, key_ref FROM kept_sources")
        gone = [(row[:3], row[3]) for row in known if tuple(row[:3]) not in needed]
        if gone:
            self._keys().drop([ref for _, ref in gone])
            with self._effects("drop-sources"), self._db.write() as db:
                db.executemany(
                    "DELETE FROM kept_sources WHERE view = ? AND version = ? AND digest = ?",
                    [place for place, _ in gone],
                )
        return len(gone)

    def places(self) -> Collection[Place]:
        """What is kept."""
        return [tuple(row) for row in self._db.read("SELECT view, version, digest FROM kept_sources")]

    def _keys(self) -> Keyring:
        assert self._keyring is not None
        return self._keyring


def source_place(place: Place) -> bytes:
    """What the seal is bound to: no body opens in the place of another."""
    return json.dumps(place).encode()


def files_of(body: bytes) -> Files:
    """The files of a bundle, each byte as it was read."""
    files = {name: base64.b64decode(text) for name, text in json.loads(body)["files"].items()}
    return tuple(
        SourceFile(Path(name), one, hashlib.sha256(one).hexdigest()) for name, one in sorted(files.items())
    )
