"""Every place that can hold personal data, by name. A file outside of them blocks "completed"."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from attrs import frozen


@frozen
class Store:
    """A registered place.

    Attributes:
        patterns: paths below the lake's folder.
        protection: what makes a person unreadable in it.
    """

    name: str
    patterns: tuple[str, ...]
    protection: str


STORES: Final = (
    Store("root key", ("keys/root.key*",), "holds no personal data"),
    Store("key pages", ("keys/pages.db*",), "the record is destroyed; copies die with the epoch"),
    Store("leases", ("keys/leases.db*",), "holds no personal data"),
    Store("fence log", ("evidence/fences.db*",), "keyed hashes only"),
    Store("transparency log", ("evidence/tlog.db*",), "content-free statements"),
    Store("event catalog", ("lake/catalog.db*",), "holds no personal data"),
    Store("events table", ("lake/warehouse/lake/*",), "sealed per person"),
    Store("view tables", ("lake/warehouse/views/*",), "sealed per person, or aggregates"),
    Store("event types", ("lake/types/*",), "holds no personal data"),
    Store("view states", ("views/states.db*",), "sealed per bucket; derived anew on erasure"),
    Store("publication ledger", ("views/ledger.db*",), "holds no personal data"),
    Store("request journal", ("purge/journal.db*", "purge/locks/*"), "ids sealed under the person's own key"),
    Store("schedule", ("service/*",), "holds no personal data"),
    Store("receipts", ("receipts/*",), "content-free statements"),
    Store("logs", ("logs/*",), "identifiers never reach a log"),
    Store("settings", ("shredlake.toml", "token"), "holds no personal data"),
    Store("plots", ("plots/*",), "aggregates only"),
)


def store_of(relative: str) -> Store | None:
    """The store a path belongs to."""
    for store in STORES:
        if any(fnmatch(relative, pattern) for pattern in store.patterns):
            return store
    return None


def unregistered(home: Path) -> list[str]:
    """Files that no store owns."""
    found = (str(p.relative_to(home)) for p in sorted(home.rglob("*")) if p.is_file())
    return [path for path in found if store_of(path) is None]
