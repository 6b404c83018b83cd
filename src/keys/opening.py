"""Opening a folder of keys: the embedded shape."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from keys.effects import Effects
from keys.embedded import EmbeddedCustodian
from keys.fencelog import FenceLog
from keys.keyring import Keyring
from keys.leases import LeaseBook
from keys.pagestore import SqlitePageStore


def open_embedded(
    home: Path,
    *,
    fence_path: Path | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    effects: Effects | None = None,
) -> Keyring:
    """The keyring of a folder: root file, page store, fence log and leases.

    Args:
        home: the folder of keys, made with mode 0700.
        fence_path: where the fence log lies; put it on another disk than the page store.
        clock: gives the time of fences.
        effects: the gate of durable effects.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    custodian = EmbeddedCustodian.create(home / "root.key")
    fences = FenceLog(fence_path or home / "fences.db", custodian.secret("fence"), clock)
    store = SqlitePageStore(home / "pages.db")
    return Keyring(custodian, store, fences, LeaseBook(home / "leases.db"), effects=effects)


def open_forensic(home: Path, scratch: Path) -> Keyring:
    """A keyring that knows no fence: what somebody holding these very files could open.

    Only to prove that a person cannot be found; nothing else may read with it.

    Args:
        home: a folder of keys, or a copy of one.
        scratch: an empty folder for the fence log and leases that it leaves empty.
    """
    custodian = EmbeddedCustodian(home / "root.key")
    fences = FenceLog(scratch / "fences.db", bytes(32), lambda: datetime.now(UTC))
    return Keyring(custodian, SqlitePageStore(home / "pages.db"), fences, LeaseBook(scratch / "leases.db"))
