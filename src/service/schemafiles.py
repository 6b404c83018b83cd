"""Schema files outside a lake: reading them, and deciding which could be registered."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from lake import EventType, SchemaError, accepted_event_type, notes, parse_event_type, problems, refused

Known = Callable[[str], Sequence[EventType]]
"""The registered versions of a type, ascending."""


@frozen
class Verdict:
    """Whether one schema file could be registered.

    Attributes:
        name, version: None where the file cannot be read as a schema.
        problems: one sentence each, with what to do; empty where it could.
        notes: what is allowed and still worth knowing.
    """

    file: str
    name: str | None
    version: int | None
    compatibility: str | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_compatible(self) -> bool:
        """Whether it could be registered."""
        return not self.problems


def read_document(path: Path) -> dict[str, Any]:
    """A schema document; `-` reads standard input.

    Raises:
        SchemaError: unreadable, or not a JSON object.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
        document = json.loads(text)
    except OSError as error:
        raise SchemaError(f"the schema cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise SchemaError("the schema is not JSON") from None
    if not isinstance(document, dict):
        raise SchemaError("the schema is not a JSON object")
    return document


def folder_types(folder: Path) -> Known:
    """The versions in all `*.json` files under a folder, as a registry or a repository keeps them.

    Raises:
        SchemaError: no folder, a file that is no schema, or two contents for one version.
    """
    if not folder.is_dir():
        raise SchemaError("--against names no folder", next_step="Name a folder of schema files.")
    found: dict[str, dict[int, EventType]] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            one = parse_event_type(read_document(path))
        except SchemaError as error:
            raise SchemaError(f"{path}: {error.message}", next_step=error.next_step) from None
        same = found.setdefault(one.name, {}).setdefault(one.version, one)
        if same.document != one.document:
            raise SchemaError(
                f"{path}: {one.name} version {one.version} is in the folder with another content"
            )
    return lambda name: [one for _, one in sorted(found.get(name, {}).items())]


def check_files(files: Iterable[Path], known: Known) -> list[Verdict]:
    """A verdict per file. Versions of one type are taken in ascending order, each beside those before."""
    verdicts: dict[Path, Verdict] = {}
    parsed: list[tuple[Path, EventType]] = []
    files = list(files)
    for path in files:
        try:
            parsed.append((path, accepted_event_type(read_document(path))))
        except SchemaError as error:
            verdicts[path] = Verdict(str(path), None, None, None, (f"{error.message} → {error.next_step}",))
    chains: dict[str, list[EventType]] = {}
    for path, one in sorted(parsed, key=lambda pair: pair[1].version):
        chain = chains.setdefault(one.name, list(known(one.name)))
        verdicts[path] = _verdict(path, one, chain)
        if verdicts[path].is_compatible and one.version not in [v.version for v in chain]:
            chain.append(one)
    return [verdicts[path] for path in dict.fromkeys(files)]


def _verdict(path: Path, one: EventType, chain: Sequence[EventType]) -> Verdict:
    refusal = refused(chain, one)
    said: list[str] = []
    if refusal is not None:
        each = problems(chain, one)
        is_new = not chain or one.version > chain[-1].version
        said = [f"{p} → {p.next_step}" for p in each] if is_new else []
        said = said or [f"{refusal.message} → {refusal.next_step}"]
    return Verdict(str(path), one.name, one.version, one.compatibility, tuple(said), tuple(notes(one)))
