"""Every place that can hold personal data, by name. A file outside of them blocks "completed"."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from attrs import frozen

from lake import ObjectStore, StoredObject

WAREHOUSE: Final = "lake/warehouse"


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


def _database(path: str) -> tuple[str, ...]:
    """A SQLite file and its side files."""
    return path, f"{path}-wal", f"{path}-shm", f"{path}-journal"


_ROOT: Final = tuple(f"keys/root.key{end}" for end in ("", ".lock", ".new", ".retired"))
STORES: Final = (
    Store("root key", _ROOT, "holds no personal data"),
    Store("key pages", _database("keys/pages.db"), "the record is destroyed; copies die with the epoch"),
    Store("key agent", ("agent/*",), "tokens and a socket; holds no personal data"),
    Store("leases", _database("keys/leases.db"), "holds no personal data"),
    Store("fence log", _database("evidence/fences.db"), "keyed hashes only"),
    Store("transparency log", _database("evidence/tlog.db"), "content-free statements"),
    Store("event catalog", _database("lake/catalog.db"), "holds no personal data"),
    Store("events table", (f"{WAREHOUSE}/lake/*",), "sealed per person"),
    Store("view tables", (f"{WAREHOUSE}/views/*",), "sealed per person, or aggregates"),
    Store("feeding topics", _database("lake/topics.db"), "holds no personal data"),
    Store(
        "intake",
        (*_database("lake/intake.db"), "lake/intake.lock"),
        "sealed under keys of nobody, destroyed once all is committed; drained on erasure",
    ),
    Store("event types", ("lake/types/*",), "holds no personal data"),
    Store("view states", _database("views/states.db"), "sealed per bucket; derived anew on erasure"),
    Store("build locks", ("views/locks/*",), "empty files named after views"),
    Store("view code", ("views/code/*",), "names of views whose code hung or killed a process"),
    Store(
        "publication ledger",
        _database("views/ledger.db"),
        "holds no personal data; source of views sealed per version, gone with its publications",
    ),
    Store(
        "request journal",
        (*_database("purge/journal.db"), "purge/locks/*"),
        "ids sealed under the person's own key",
    ),
    Store("schedule", (*_database("service/schedule.db"), "service/locks/*"), "holds no personal data"),
    Store("receipts", ("receipts/*",), "content-free statements"),
    Store("logs", ("logs/*",), "identifiers never reach a log"),
    Store("settings", ("shredlake.toml", "token"), "holds no personal data"),
    Store("plots", ("plots/*",), "aggregates only"),
)

_FOLDERS: Final = {pattern for store in STORES for pattern in store.patterns if pattern.endswith("/*")}


def store_of(relative: str) -> Store | None:
    """The store a path belongs to."""
    for store in STORES:
        if any(fnmatch(relative, pattern) for pattern in store.patterns):
            return store
    return None


def unregistered(home: Path, objects: ObjectStore) -> list[str]:
    """Files of the lake's folder, and objects of its warehouse, that no store owns.

    Raises:
        StorageFailed: the warehouse cannot be listed.
    """
    found = set(_outside_of_folders(home))
    found.update(path for path, _ in elsewhere(home, objects))
    return sorted(path for path in found if store_of(path) is None)


def _outside_of_folders(home: Path) -> Iterator[str]:
    """Files outside of folders that are one store as a whole: some of these grow with every publication."""
    for at, folders, files in os.walk(home):
        below = Path(at).relative_to(home)
        folders[:] = [name for name in folders if f"{(below / name).as_posix()}/*" not in _FOLDERS]
        yield from ((below / name).as_posix() for name in files)


def elsewhere(home: Path, objects: ObjectStore) -> Iterator[tuple[str, StoredObject]]:
    """What a warehouse outside of the lake's folder holds, with its path as if it were in the folder.

    Raises:
        StorageFailed: see `unregistered`.
    """
    if not objects.root.startswith(f"{home.resolve().as_uri()}/"):
        for one in objects.objects(objects.root):
            yield f"{WAREHOUSE}{one.location.removeprefix(objects.root)}", one
