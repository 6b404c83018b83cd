"""Errors of disks and object stores in our words: what happened and what to do; no path, no address."""

from __future__ import annotations

import errno
import os
from typing import Final

from lake.errors import StorageFailed, StorageUnavailable

DISK_ERRORS: Final = {
    errno.ENOSPC,
    errno.EFBIG,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
}
_AGAIN: Final = "then repeat the command; it continues where it was."
_DISK_STEPS: Final = {
    errno.ENOSPC: f"Free space on the warehouse's disk, {_AGAIN}",
    errno.EDQUOT: f"Free space, or raise the quota of this user, {_AGAIN}",
    errno.EFBIG: f"Raise the limit on the size of files (`ulimit -f`), {_AGAIN}",
    errno.EROFS: f"Mount the warehouse's file system for writing, {_AGAIN}",
    errno.EACCES: f"Give this user the right to write in the lake's folder, {_AGAIN}",
    errno.EPERM: f"Give this user the right to write in the lake's folder, {_AGAIN}",
}
_AWAY_WORDS: Final = ("error sending request", "Connection refused", "tcp connect error", "timed out")
"""What Polars' object store says of one that does not answer; the text itself is not shown."""


def read_failed(error: BaseException) -> StorageFailed:
    """Of an error of a read, whoever read."""
    if isinstance(error, OSError) and error.errno is not None:
        return StorageFailed(f"the store refused a read: {os.strerror(error.errno)}")
    if any(word in str(error) for word in _AWAY_WORDS):
        return StorageUnavailable("the object store does not answer a read")
    return StorageFailed(f"the store refused a read: {type(error).__name__}")


def storage_failed(error: OSError) -> StorageFailed:
    """Without the store's own text, which may quote addresses."""
    if error.errno is None:  # an object store's errors come without a number
        return StorageUnavailable(f"the object store does not answer: {type(error).__name__}")
    text = f"the store refused: {os.strerror(error.errno)}"
    return StorageFailed(text, next_step=_DISK_STEPS.get(error.errno))
