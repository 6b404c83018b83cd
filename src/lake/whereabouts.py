"""Where a person's sealed bytes lie: readable, or dead and on their way out."""

from __future__ import annotations

from datetime import date
from typing import Final

import polars as pl
from attrs import frozen

from keys import SubjectId
from lake.lakehouse import Lake
from lake.levels import origin
from lake.merging import day_of
from lake.selection import block_rows

_COLUMNS: Final = ("subject_ref", "generation", "facet", "primary", "event_count", "sealed")


@frozen
class Place:
    """A person's sealed blocks in one file.

    Attributes:
        level: how the file came to be.
        held_by: `head` for a live file; `snapshots` for one that older kept snapshots alone refer to.
        readable: False once the key is destroyed; such bytes go with the next L1, expiry and sweep.
        sealed_bytes: of the person's personal parts.
    """

    day: date
    level: str
    held_by: str
    readable: bool
    blocks: int
    events: int
    sealed_bytes: int


def whereabouts(lake: Lake, subject: SubjectId) -> list[Place]:
    """Where kept snapshots hold sealed bytes of a person, by day; empty means nowhere.

    An erased person's handles are known to nobody any more, but the fence log recognises them.

    Raises:
        StorageFailed: a file cannot be read.
    """
    ref = lake.keyring.ref_of(subject)
    refs = {*([ref] if ref is not None else []), *_erased_refs(lake, subject)}
    return places_of(lake, refs) if refs else []


def places_of(lake: Lake, refs: set[bytes]) -> list[Place]:
    """Where kept snapshots hold sealed bytes of these handles, by day. Raises `StorageFailed`."""
    live = {file.file_path: (file, sequence) for file, sequence in lake.events.sequenced_files()}
    kept = {file.file_path: (file, 0) for file in lake.events.kept_files()}
    found = []
    for path, (file, sequence) in {**kept, **live}.items():
        rows = block_rows(lake.events, [file], None, list(refs), columns=_COLUMNS)
        rows = rows.filter(pl.col("sealed").is_not_null())
        dead = pl.Series([_is_dead(lake, *row) for row in rows.select(_COLUMNS[:3]).rows()], dtype=pl.Boolean)
        for readable, part in ((True, rows.filter(~dead)), (False, rows.filter(dead))):
            if part.height:
                found.append(
                    Place(
                        day_of(file),
                        origin(file, sequence).level.name.lower(),
                        "head" if path in live else "snapshots",
                        readable,
                        part.height,
                        int(part.filter("primary")["event_count"].sum()),
                        int(part["sealed"].bin.size().sum()),
                    )
                )
    return sorted(found, key=lambda one: (one.day, one.held_by, one.readable))


def _is_dead(lake: Lake, ref: bytes, generation: int, facet: str) -> bool:
    return lake.keyring.fences.of_ref(ref, facet.partition("/")[2], generation) is not None


def _erased_refs(lake: Lake, subject: SubjectId) -> list[bytes]:
    """Handles that the table holds and that were fenced as this person's."""
    fences = lake.keyring.fences
    files = lake.events.kept_files()
    found = []
    for span in fences.ref_ranges(subject):
        rows = block_rows(lake.events, files, None, ref_range=span, columns=("subject_ref",))
        found += fences.refs_of(subject, rows["subject_ref"].unique().to_list())
    return found
