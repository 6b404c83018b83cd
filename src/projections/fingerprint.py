"""The version of a view: a fingerprint of the code it reaches. A changed fingerprint is a new version."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import subprocess
import sys
import types as pytypes
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lake import EventType
from projections.definition import View
from projections.source import syntax_tree

ENGINES = ("polars", "pyarrow", "pyiceberg", "shredlake")


def library_versions() -> dict[str, str]:
    """Versions of what computes, for the publication record."""
    return {name: version(name) for name in ENGINES} | {"python": sys.version.split()[0]}


def fingerprint(view: View, types: Mapping[str, EventType]) -> str:
    """16 hex digits over the class, every helper and constant it reaches, schemas and engine majors.

    Comments, docstrings and layout do not count: the syntax tree is what is hashed.
    """
    parts: dict[str, str] = {}
    _visit(type(view), parts)
    for target in view.reads:
        name = target.partition("/")[0]
        parts[f"schema:{name}"] = json.dumps(types[name].document, sort_keys=True)
    for name in ("polars", "shredlake"):
        parts[f"engine:{name}"] = version(name).split(".")[0]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
        return  # a library: its major version stands for it
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
