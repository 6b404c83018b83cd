"""The cache of server binaries: outside the repository, made once under a lock, checked at every start."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from infra.errors import InfraError

_CHECKSUM = ".sha256"


def cache_folder() -> Path:
    """`SERVERS_CACHE`, else the user's cache folder."""
    chosen = os.environ.get("SERVERS_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base if chosen else base / "shredlake" / "servers"


def cached(name: str, version: str, make: Callable[[Path], None]) -> Path:
    """The file or folder `<cache>/<name>-<version>`; made by `make(temporary path)` where it is not there.

    Raises:
        InfraError: it is not what was put there.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}"
    with locked(folder / f"{name}.lock"):
        if path.exists():
            expected = path.with_name(path.name + _CHECKSUM).read_text().strip()
            if digest_of(path) != expected:
                raise InfraError(f"{path} is not what was put there; remove it and run this again")
            return path
        draft = folder / f".{path.name}.{os.getpid()}"
        try:
            make(draft)
            path.with_name(path.name + _CHECKSUM).write_text(digest_of(draft) + "\n")
            draft.replace(path)
        finally:
            if draft.is_dir():
                shutil.rmtree(draft)
            elif draft.exists():
                draft.unlink()
    return path


def digest_of(path: Path) -> str:
    """Hex SHA-256 of a file, or of a folder's names and their digests."""
    if path.is_file():
        return sha256_of(path)
    lines = (
        f"{one.relative_to(path)} {sha256_of(one)}\n" for one in sorted(path.rglob("*")) if one.is_file()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextlib.contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """An empty folder in the cache for a build; gone afterwards, read-only files included."""
    folder = cache_folder() / f".{name}.{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file; others wait."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
