"""Loads view definitions from Python files."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from projections.definition import Fold, Projection, View, check_definition
from projections.errors import DefinitionError, UnknownView


class ViewRegistry:
    """Views by name.

    Raises:
        DefinitionError: a definition is incomplete, impure, or two have the same name.
    """

    def __init__(self, views: Iterable[View]) -> None:
        self._views: dict[str, View] = {}
        for view in views:
            check_definition(view)
            if view.name in self._views:
                raise DefinitionError(f"two views are called `{view.name}`")
            self._views[view.name] = view

    @classmethod
    def load(cls, files: Iterable[Path]) -> ViewRegistry:
        """Every Projection and Fold that the files define."""
        found: list[View] = []
        for path in files:
            found.extend(_views_of(path))
        return cls(found)

    def get(self, name: str) -> View:
        """One view. Raises `UnknownView`, naming those that exist."""
        if name not in self._views:
            known = ", ".join(sorted(self._views)) or "none"
            raise UnknownView(f"there is no view `{name}`; defined are: {known}")
        return self._views[name]

    def names(self) -> list[str]:
        """All names, in order of definition."""
        return list(self._views)

    def all(self) -> list[View]:
        """All views, in order of definition."""
        return list(self._views.values())


def _views_of(path: Path) -> list[View]:
    if not path.is_file():
        raise DefinitionError(f"the view file {path.name} is not there")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    module_name = f"shredlake_views_{digest}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise DefinitionError(f"the view file {path.name} is not Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DefinitionError(f"the view file {path.name} does not load: {error}") from error
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Projection | Fold)
        and value.__module__ == module_name
        and value.name
    ]
    return [kind() for kind in classes]
