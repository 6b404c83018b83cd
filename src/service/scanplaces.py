"""What the scanner looks through for a lake by its settings, and which of its places nobody can look into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel

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
    files, missing = beside(home, settings)
    return scan_for(
        home,
        subjects,
        progress,
        key_places(home, settings.keys),
        objects,
        beside=files,
        out_of_reach=(*missing, *out_of_reach(settings)),
    )


def beside(home: Path, settings: Settings) -> tuple[dict[str, Path], list[str]]:
    """Files outside of the folder that settings name, by the name that findings give them; what is missing.

    Whatever is a path in the settings, so that none of a later release is forgotten. What is missing is named
    by its setting alone: receipts repeat it.
    """
    files, missing = dict[str, Path](), list[str]()
    named = [*_paths(settings, ""), *(("keys.fence_copies", Path(one)) for one in _local_copies(settings))]
    for setting, path in named:
        whole = path if path.is_absolute() else home / path
        if whole.resolve().is_relative_to(home.resolve()):
            continue
        if not whole.exists():
            missing.append(f"what `{setting}` names, which is not there")
        for one in sorted(whole.rglob("*")) if whole.is_dir() else _with_its_log(whole):
            if one.is_file():
                files[f"{setting} {one}"] = one
    return files, missing


def _paths(section: BaseModel, below: str) -> Iterator[tuple[str, Path]]:
    for name, value in section:
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, BaseModel):
                yield from _paths(one, f"{below}{name}.")
            elif isinstance(one, Path):
                yield f"{below}{name}", one


def _local_copies(settings: Settings) -> list[str]:
    return [one for one in settings.keys.fence_copies if "://" not in one]


def _with_its_log(path: Path) -> list[Path]:
    """A file, and what a database has not written into it yet."""
    return [path, path.with_name(f"{path.name}-wal")]


def out_of_reach(settings: Settings) -> Iterator[str]:
    """Places that settings name and nobody looks into, each in words."""
    if settings.keys.page_store is not None:
        yield "the key pages in PostgreSQL, which hold no id, and rows deleted there until its vacuum"
    if settings.lake.uri is not None:
        yield "the database of the catalog, which holds places of files"
    if settings.keys.vault is not None:
        yield "the storage of the key server"
    if len(settings.keys.fence_copies) > len(_local_copies(settings)):
        yield "copies of the fence log in object stores, which hold keyed hashes"
    if settings.kafka is not None:
        yield "topics of the brokers, of which receipts tell until when they hold events"
