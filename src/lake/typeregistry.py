"""The registry of event types: a folder with one schema document per version."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lake.acceptance import accepted_event_type
from lake.bodies import Schema
from lake.compatibility import problems
from lake.errors import SchemaError, UnknownEventType
from lake.eventtypes import DEAD_LETTER, EventType, is_type_name, parse_event_type


class TypeRegistry:
    """Registered event types, one JSON file per version under a folder.

    Args:
        folder: `<folder>/<name>/v<version>.json`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cache: dict[tuple[str, int], EventType] = {}
        dead_letter = parse_event_type(_DEAD_LETTER_DOCUMENT)
        self._cache[DEAD_LETTER, 1] = dead_letter

    def register(self, document: dict[str, Any]) -> EventType:
        """Adds a version; the same document again changes nothing.

        Raises:
            SchemaError: invalid, other content under a known version, older than a registered one, or
                not compatible (see `lake.compatibility`).
        """
        found = accepted_event_type(document)
        if found.name == DEAD_LETTER:
            raise SchemaError(f"`{DEAD_LETTER}` is a name of our own")
        known = self.chain(found.name)  # looked at once: another process may register meanwhile
        if refusal := refused(known, found):
            raise refusal
        if any(one.version == found.version for one in known):
            return self.get(found.name, found.version)
        path = self._path(found.name, found.version)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        draft.write_text(json.dumps(document, indent=2) + "\n")
        try:
            os.link(draft, path)  # whole or not at all, and never over what another process registered
        except FileExistsError:
            if refusal := refused(self.chain(found.name), found):
                raise refusal from None
            return self.get(found.name, found.version)
        finally:
            draft.unlink()
        self._cache[found.name, found.version] = found
        return found

    def get(self, name: str, version: int | None = None) -> EventType:
        """A version of a type, the newest where none is named.

        Raises:
            UnknownEventType: not registered.
        """
        if version is None:
            versions = self.versions(name)
            if not versions:
                raise UnknownEventType("no event type of this name is registered")
            version = versions[-1]
        if (name, version) not in self._cache:
            path = self._path(name, version)
            if not is_type_name(name) or not path.exists():
                raise UnknownEventType(f"no event type of this name has a version {version}")
            self._cache[name, version] = parse_event_type(json.loads(path.read_bytes()))
        return self._cache[name, version]

    def open_schema(self, name: str, version: int) -> Schema:
        """Of a version's open parts. Raises as `get`."""
        return self.get(name, version).open_schema

    def versions(self, name: str) -> list[int]:
        """Registered versions, ascending."""
        if name == DEAD_LETTER:
            return [1]
        if not is_type_name(name):
            return []
        return sorted(int(p.stem[1:]) for p in (self._folder / name).glob("v*.json"))

    def chain(self, name: str) -> tuple[EventType, ...]:
        """All registered versions, ascending; empty where there is none."""
        return tuple(self.get(name, version) for version in self.versions(name))

    def names(self) -> list[str]:
        """Registered type names."""
        return sorted(p.name for p in self._folder.glob("*") if p.is_dir())

    def _path(self, name: str, version: int) -> Path:
        return self._folder / name / f"v{version}.json"


def refused(known: Sequence[EventType], newer: EventType) -> SchemaError | None:
    """Why a version cannot be added to known ones (ascending); None where it can, or is one of them."""
    which = f"{newer.name} version {newer.version}"
    same = next((one for one in known if one.version == newer.version), None)
    if same is not None:
        if same.document == newer.document:
            return None
        return SchemaError(
            f"{which} is registered with another content",
            next_step=f"Give the changed schema version number {known[-1].version + 1}.",
        )
    if known and newer.version < known[-1].version:
        return SchemaError(
            f"{which} comes after version {known[-1].version}, and upcasts go from each version to the next",
            next_step=f"Give the schema version number {known[-1].version + 1}.",
        )
    found = problems(known, newer)
    if not found:
        return None
    return SchemaError(
        f"{which} is not compatible ({newer.compatibility}): {'; '.join(map(str, found))}",
        next_step=" ".join(dict.fromkeys(f"`{one.field}`: {one.next_step}" for one in found)),
    )


_DEAD_LETTER_DOCUMENT: Final[dict[str, Any]] = {
    "name": DEAD_LETTER,
    "version": 1,
    "type": "object",
    "properties": {
        "reason": {"type": "string", "anonymous": True},
        "field": {"type": "string", "anonymous": True},
        "feed": {"type": "string", "anonymous": True},
        "line": {"type": "integer", "anonymous": True},
        "raw": {"type": "string"},
    },
    "required": ["reason", "feed", "line", "raw"],
}
