"""What the scanner looks through for a lake by its settings, and which of its places nobody can look into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from keys import SubjectId
from lake import ObjectStore
from purge import Scanned, scan_for
from service.keyplaces import key_places
from service.settings import Settings


def look_for(
    home: Path,
    settings: Settings,
    objects: ObjectStore,
    subjects: Sequence[SubjectId],
    progress: Callable[[int, int], None] = lambda done, files: None,
) -> list[Scanned]:
    """Looks for people in a lake's folder, warehouse and files elsewhere; errors as `purge.scan_for`."""
    return scan_for(
        home,
        subjects,
        progress,
        key_places(home, settings.keys),
        objects,
        beside=dict(_beside(home, settings)),
        out_of_reach=tuple(out_of_reach(settings)),
    )


def _beside(home: Path, settings: Settings) -> Iterator[tuple[str, Path]]:
    """Files outside of the folder, by the name that a finding gives them."""
    copies = [Path(one) for one in settings.keys.fence_copies if "://" not in one]
    named = [("fence copy", path) for path in copies]
    named += [("file of views", path) for path in settings.projections.files]
    if settings.keys.fence_log is not None:
        log = settings.keys.fence_log
        named += [("fence log", log), ("fence log", log.with_name(f"{log.name}-wal"))]
    for what, path in named:
        whole = path if path.is_absolute() else home / path
        if whole.is_file() and not whole.resolve().is_relative_to(home.resolve()):
            yield f"{what} {whole}", whole


def out_of_reach(settings: Settings) -> Iterator[str]:
    """Places that settings name and nobody looks into, each in words."""
    if settings.keys.page_store is not None:
        yield "the key pages in PostgreSQL, which hold no id, and rows deleted there until its vacuum"
    if settings.lake.uri is not None:
        yield "the database of the catalog, which holds places of files"
    if settings.keys.vault is not None:
        yield "the storage of the key server"
    if any("://" in one for one in settings.keys.fence_copies):
        yield "copies of the fence log in object stores, which hold keyed hashes"
    if settings.kafka is not None:
        yield "topics of the brokers, of which receipts tell until when they hold events"
