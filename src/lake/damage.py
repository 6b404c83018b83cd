"""Which data file cannot be read, once a read over several has failed: its table, its day, and what is wrong.

The engine's own error says neither reliably, and its text may quote an address.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import polars as pl

from lake.errors import DataDamaged, DataFileGone, StorageFailed, StorageUnavailable

_LOCATION: Final = re.compile(r'"([^"]+\.parquet)"')
_PARTS: Final = re.compile(
    r".*/(?P<namespace>[a-z]+)/(?P<table>[a-z0-9_]+)/data/"
    r"(ingested_at_day=(?P<day>\d{4}-\d\d-\d\d)/|[^/]+/)?(?P<file>[^/]+)"
)
_OPTIONS: Final[dict[str, Mapping[str, str]]] = {}
_GONE: Final = ("NoSuchKey", "NotFound", "not found", "404")


def remember(location: str, options: Mapping[str, str]) -> None:
    """How the bucket of a file is reached, in Polars' names: a scan that fails is looked at file by file."""
    _OPTIONS[urlsplit(location).netloc] = options


def located(frame: pl.LazyFrame, failure: StorageFailed) -> StorageFailed:
    """The error that names the first file of a scan that cannot be read; `failure` where each can."""
    if isinstance(failure, StorageUnavailable):
        return failure
    try:
        with warnings.catch_warnings():  # the other form of a plan is not text
            warnings.simplefilter("ignore")
            locations = dict.fromkeys(_LOCATION.findall(frame.serialize(format="json")))
    except (pl.exceptions.PolarsError, ValueError, TypeError):
        return failure
    for location in locations:
        if (found := damage_of(location, _OPTIONS.get(urlsplit(location).netloc))) is not None:
            return found
    return failure


def damage_of(location: str, options: Mapping[str, str] | None = None) -> DataDamaged | None:
    """What is wrong with a data file; None where it can be read from its first byte to its last."""
    scan = pl.scan_parquet(location, hive_partitioning=False, storage_options=dict(options or {}) or None)
    try:
        for _ in scan.collect_batches():
            pass
    except FileNotFoundError:
        return DataFileGone(f"{named(location)} is gone")
    except OSError:
        return None  # the store or the disk, not the file
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        text = str(error)
        if any(word in text for word in _GONE):
            return DataFileGone(f"{named(location)} is gone")
        if "object-store" in text or "error sending request" in text:
            return None
        return DataDamaged(f"{named(location)} is damaged ({type(error).__name__})")
    return None


def named(location: str) -> str:
    """A data file by its table, its day where it has one, and its random name."""
    found = _PARTS.fullmatch(location)
    if found is None:
        return "a data file"
    day = f" of {found['day']}" if found["day"] else ""
    return f"the data file {found['file']}{day} of {found['namespace']}.{found['table']}"
