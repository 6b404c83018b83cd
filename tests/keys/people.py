"""What the tests of this folder say with one word: provision, seal, open, shred."""

from __future__ import annotations

import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from keys import (
    ALL_PURPOSES,
    EmbeddedCustodian,
    FenceLog,
    FieldContext,
    Held,
    Keyring,
    LeaseBook,
    Provisioned,
    Shredded,
    SqlitePageStore,
    SubjectId,
)

ANN, BOB, CID = SubjectId("ann"), SubjectId("bob"), SubjectId("cid")
BLOCK = b"b" * 16
WORD = b"word"


def context(purpose: str = "service") -> FieldContext:
    """The place everything here is sealed for."""
    return FieldContext(b"t" * 16, 16, "personal", purpose, "T", 1)


def provision(keyring: Keyring, who: SubjectId = ANN, purpose: str = "service") -> Provisioned:
    """A key of a person who may have one."""
    (made,) = keyring.provision([who], purpose)
    assert isinstance(made, Provisioned)
    return made


def seal(keyring: Keyring, ref: bytes, purpose: str = "service", body: bytes = WORD) -> bytes:
    """A sealed word."""
    (sealed,) = keyring.session().seal(context(purpose), [ref], [BLOCK], [body])
    assert isinstance(sealed, bytes)
    return sealed


def unseal(keyring: Keyring, ref: bytes, sealed: bytes, purpose: str = "service") -> bytes | Shredded | Held:
    """What it opens to."""
    return keyring.opener().open(context(purpose), [ref], [BLOCK], [sealed])[0]


def shred(keyring: Keyring, who: SubjectId, ref: bytes, purpose: str = ALL_PURPOSES) -> int:
    """Fence and destroy; the epoch."""
    fences = keyring.fence([(who, ref)], f"r{keyring.epoch() + 1}", purpose)
    keyring.destroy([ref], fences)
    return fences[-1].epoch


def now() -> datetime:
    """The time of fences where it does not matter."""
    return datetime.now(UTC)


def assemble(
    home: Path,
    *,
    store: SqlitePageStore | None = None,
    fences: FenceLog | None = None,
    leases: LeaseBook | None = None,
) -> Keyring:
    """A keyring over a folder with one of its collaborators replaced by a watched one."""
    custodian = EmbeddedCustodian.create(home / "root.key")
    return Keyring(
        custodian,
        store or SqlitePageStore(home / "pages.db"),
        fences or FenceLog(home / "fences.db", custodian.secret("fence"), now),
        leases or LeaseBook(home / "leases.db"),
    )


def backup(database: Path, to: Path) -> None:
    """A consistent copy of a live SQLite file, as a backup tool makes it."""
    source, target = sqlite3.connect(database), sqlite3.connect(to)
    source.backup(target)
    source.close()
    target.close()


def restore(copy: Path, database: Path) -> None:
    """Puts a copy in the place of a database nobody has open."""
    for side in ("-wal", "-shm"):
        database.with_name(database.name + side).unlink(missing_ok=True)
    shutil.copy(copy, database)
