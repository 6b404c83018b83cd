"""Files below a local folder: each erasure lists them, so it has to be cheap."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from urllib.parse import quote_from_bytes


def files_below(folder: str, uri: str) -> Iterator[tuple[str, os.stat_result]]:
    """(URI, stat) of the files below a folder, in order; what goes meanwhile is left out."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda one: one.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for one in found:
        name = f"{uri}/{quote_from_bytes(os.fsencode(one.name))}"
        if one.is_dir(follow_symlinks=False):
            yield from files_below(one.path, name)
            continue
        with contextlib.suppress(FileNotFoundError):
            if one.is_file():
                yield name, one.stat()
