"""The version of a view: a fingerprint of the code it reaches. A changed fingerprint is a new version."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import subprocess
import sys
import types as pytypes
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from lake import EventType, needed_fields
from projections.definition import View
from projections.purity import used_libraries
from projections.source import syntax_tree

_version = functools.cache(version)  # reads files; what is installed stays while a process runs
ENGINES = ("polars", "pyarrow", "pyiceberg", "shredlake")
_OF_FIELDS: Final = frozenset({"version", "compatibility", "properties", "required", "upcast", "description"})
"""Of a schema document what is of single fields, or says nothing of values."""


def library_versions() -> dict[str, str]:
    """Versions of what computes, for the publication record."""
    return {name: _version(name) for name in ENGINES} | {"python": sys.version.split()[0]}


def fingerprint(
    view: View, types: Mapping[str, EventType], chains: Mapping[str, Sequence[EventType]] | None = None
) -> str:
    """16 hex digits over the class, every helper and constant it reaches, schemas and library versions.

    Comments, docstrings and layout do not count: the syntax tree is what is hashed. Of an event type counts
    what the view reads, in every version: a field that it does not read may be added.

    Args:
        types: by name, the newest version of those that the view reads.
        chains: by name, every version, ascending; the newest alone where none is given.
    """
    parts: dict[str, str] = {}
    _visit(type(view), parts)
    for target, fields in view.reads.items():
        name, _, facet = target.partition("/")
        chain = (chains or {}).get(name) or (types[name],)
        read = [one.name for one in types[name].fields] if facet else fields
        parts[f"schema:{target}"] = json.dumps(_schema_of(chain, read), sort_keys=True)
    for name, used in used_libraries(type(view)).items():
        parts[f"library:{name}"] = used
    for name in ("polars", "shredlake"):
        parts[f"engine:{name}"] = _version(name).split(".")[0]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _schema_of(chain: Sequence[EventType], fields: Sequence[str]) -> list[Any]:
    """What these fields of the newest version are and come from, and all else that a document says of it.

    A version that changes nothing about them leaves no trace.
    """
    newest = chain[-1].document
    found: list[Any] = [{key: value for key, value in newest.items() if key not in _OF_FIELDS}]
    before: dict[str, Any] = {}
    for one, needed in zip(chain, needed_fields(chain, fields), strict=True):
        properties = one.document.get("properties", {})
        now = {name: properties.get(name) for name in sorted(needed)}
        rules = {name: rule for name, rule in one.document.get("upcast", {}).items() if name in needed}
        if rules or now != before:
            found.append([now, rules])
        before = now
    return found


def _visit(thing: Any, parts: dict[str, str]) -> None:
    name = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
    if name in parts:
        return
    tree = syntax_tree(thing)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Module)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    parts[name.rpartition(".")[2]] = ast.dump(tree)
    parts[name] = ""
    module = sys.modules[thing.__module__]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and hasattr(module, node.id):
            _reach(node.id, getattr(module, node.id), thing.__module__, parts)
    del parts[name]


def _reach(name: str, value: Any, home: str, parts: dict[str, str]) -> None:
    if isinstance(value, pytypes.ModuleType):
        return  # a library: its version stands for it
    owner = getattr(value, "__module__", home)
    if isinstance(value, type) or inspect.isfunction(value):
        if owner == home and value.__qualname__ not in parts:
            _visit(value, parts)
    elif not callable(value):
        parts[f"constant:{name}"] = repr(value)


def git_state(folder: Path | None) -> tuple[str, bool]:
    """(commit, whether files differ from it) of a folder; ("", False) outside git."""
    if folder is None:
        return "", False
    try:
        sha = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain", "--", "."],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "", False
    return sha, bool(changed)
