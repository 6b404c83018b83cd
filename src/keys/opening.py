"""Putting a keyring together from where its root and its pages are."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from attrs import frozen

from keys.custodian import Custodian
from keys.effects import Effects
from keys.embedded import EmbeddedCustodian
from keys.errors import KeysElsewhere, LeasesElsewhere
from keys.fencelog import FenceLog
from keys.gatekeeping import FENCE_LOG
from keys.keyring import Keyring
from keys.leases import LeaseBook
from keys.pagestore import PageStore, SqlitePageStore
from keys.scrubbing import scrubbed
from keys.sealing import SealRule

LEASE_BOOK: Final = "lease_book"
"""Where the page store says whose leases an erasure waits for."""


@frozen
class KeyPlaces:
    """Where the root and the pages of one lake are.

    Attributes:
        custodian, pages: open an adapter each.
    """

    custodian: Callable[[], Custodian]
    pages: Callable[[], PageStore]


def embedded_places(home: Path, *, create: bool = True) -> KeyPlaces:
    """Root file and SQLite in a folder; without `create` a root that is not there is an error."""
    root = home / "root.key"
    return KeyPlaces(
        lambda: EmbeddedCustodian.create(root) if create else EmbeddedCustodian(root),
        lambda: SqlitePageStore(home / "pages.db"),
    )


@scrubbed
def open_keys(
    places: KeyPlaces,
    home: Path,
    *,
    fence_path: Path | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    effects: Effects | None = None,
    rule: SealRule = SealRule(),
    owns_root: bool = True,
    create: bool = True,
) -> Keyring:
    """The keyring of these places, with fence log and leases of this host.

    Args:
        home: the folder of keys, made with mode 0700; holds the leases.
        fence_path: where the fence log lies; put it on another disk than the page store.
        clock: gives the time of fences.
        effects: the gate of durable effects.
        rule: how values are sealed.
        owns_root: False for a sandbox whose root others may rotate.
        create: makes the key pages where there are none.

    Raises:
        KeysElsewhere: there are none, and none are to be made.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    custodian = places.custodian()
    fences = FenceLog(fence_path or home / "fences.db", custodian.secret("fence"), clock)
    pages = places.pages()
    if not create and pages.meta("tree") is None:
        pages.close()
        raise KeysElsewhere("there are no key pages of this lake where its settings say")
    leases = LeaseBook(home / "leases.db")
    keyring = Keyring(custodian, pages, fences, leases, rule=rule, owns_root=owns_root, effects=effects)
    keyring.bind_fence_log()
    _bind_leases(keyring, leases)
    return keyring


def adopt_host(places: KeyPlaces, home: Path) -> None:
    """Lets the processes of this host work with a page store whose leases were kept on one that is gone."""
    store, leases = places.pages(), LeaseBook(home / "leases.db")
    with store.transaction() as writer:
        writer.set_meta(LEASE_BOOK, leases.book_id())
    leases.close()
    store.close()


def _bind_leases(keyring: Keyring, leases: LeaseBook) -> None:
    """Makes this host's book the page store's, where it has none: an erasure waits for the leases of one.

    Raises:
        LeasesElsewhere: the processes of another host use these pages.
    """
    store, mine = keyring.tree.store, leases.book_id()
    known = store.meta(LEASE_BOOK)
    if known is None:
        with store.transaction() as writer:
            known = store.meta(LEASE_BOOK) or mine
            writer.set_meta(LEASE_BOOK, known)
    if known != mine:
        keyring.close()
        raise LeasesElsewhere("the leases of these key pages are kept on another host")


def open_embedded(
    home: Path,
    *,
    fence_path: Path | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    effects: Effects | None = None,
) -> Keyring:
    """The keyring of a folder: root file, page store, fence log and leases; see `open_keys`."""
    return open_keys(embedded_places(home), home, fence_path=fence_path, clock=clock, effects=effects)


@scrubbed
def open_forensic(places: KeyPlaces, scratch: Path) -> Keyring:
    """A keyring that knows no fence and no hold: what somebody holding these very places could open.

    Only to prove that a person cannot be found; nothing else may read with it.

    Args:
        places: of a lake, or of a copy of one.
        scratch: an empty folder for the fence log and leases that it leaves empty.
    """
    fences = FenceLog(scratch / "fences.db", bytes(32), lambda: datetime.now(UTC))
    pages = places.pages()
    fences.take_id(pages.meta(FENCE_LOG) or "")
    keyring = Keyring(places.custodian(), pages, fences, LeaseBook(scratch / "leases.db"))
    keyring.resident.past_holds = True
    return keyring
