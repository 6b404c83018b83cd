"""Loads view definitions from Python files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from projections.definition import Fold, Projection, View, check_definition
from projections.errors import DefinitionError, UnknownView
from projections.source import SourceFile


class ViewRegistry:
    """Views by name.

    Raises:
        DefinitionError: a definition is incomplete, impure, or two have the same name.
    """

    def __init__(self, views: Iterable[View]) -> None:
        self._views: dict[str, View] = {}
        self._sources: tuple[SourceFile, ...] = ()
        self._files: Callable[[], Iterable[Path]] | None = None
        self._broken: dict[Path, DefinitionError] = {}
        for view in views:
            check_definition(view)
            if view.name in self._views:
                raise DefinitionError(f"two views are called `{view.name}`")
            self._views[view.name] = view

    @classmethod
    def load(cls, files: Iterable[Path]) -> ViewRegistry:
        """Every Projection and Fold that the files define."""
        return cls.of([SourceFile.read(path) for path in files])

    @classmethod
    def following(cls, files: Callable[[], Iterable[Path]]) -> ViewRegistry:
        """Every view of those files that load; one that does not stops its own views alone, see `broken`.

        Args:
            files: asked again at every `refresh`.
        """
        registry = cls(())
        registry._files = files
        registry.refresh()
        return registry

    def broken(self) -> dict[Path, DefinitionError]:
        """The files that do not load, and why; what loaded of them before stays."""
        return dict(self._broken)

    @classmethod
    def of(cls, sources: Iterable[SourceFile]) -> ViewRegistry:
        """Every view of sources that were read before, perhaps in another process."""
        read = tuple(sources)
        registry = cls(view for source in read for view in _views_of(source))
        registry._sources = read
        return registry

    def sources(self) -> tuple[SourceFile, ...]:
        """What the views were loaded from, as it was read."""
        return self._sources

    def refresh(self) -> bool:
        """Loads all files anew where one has changed; returns whether one had.

        Raises:
            DefinitionError: a changed file does not load; the views stay as they were. Where files are
                followed this is noted in `broken` instead.
        """
        if self._files is not None:
            return self._follow(self._files())
        now = tuple(SourceFile.read(source.path) for source in self._sources)
        if now == self._sources:
            return False
        fresh = ViewRegistry.of(now)
        self._views, self._sources = fresh._views, fresh._sources
        return True

    def _follow(self, files: Iterable[Path]) -> bool:
        files, before = list(files), {source.path: source for source in self._sources}
        with contextlib.suppress(DefinitionError):  # of a file that is not there: looked at below
            if not self._broken and tuple(SourceFile.read(path) for path in files) == self._sources:
                return False
        views: dict[str, View] = {}
        sources: list[SourceFile] = []
        broken: dict[Path, DefinitionError] = {}
        for path in files:
            for is_new in (True, False):  # what loaded before goes on where the file of now does not
                try:
                    source = SourceFile.read(path) if is_new else before.get(path)
                    found = {} if source is None else _apart(ViewRegistry.of([source])._views, views)
                except DefinitionError as error:
                    broken.setdefault(path, error)
                    continue
                views |= found
                sources += [] if source is None else [source]
                break
        changed = tuple(sources) != self._sources
        self._views, self._sources, self._broken = views, tuple(sources), broken
        return changed

    def get(self, name: str) -> View:
        """One view. Raises `UnknownView`, naming those that exist."""
        if name not in self._views:
            known = ", ".join(sorted(self._views)) or "none"
            unread = "; ".join(f"{path.name}: {error.message}" for path, error in self._broken.items())
            more = f"; {unread}" if unread else ""
            raise UnknownView(f"there is no view of this name; defined are: {known}{more}")
        return self._views[name]

    def floor_of(self, name: str) -> int | None:
        """People under whom a row of the view is left out; None where there is no code for it."""
        return self._views[name].min_subjects if name in self._views else None

    def names(self) -> list[str]:
        """All names, in order of definition."""
        return list(self._views)

    def all(self) -> list[View]:
        """All views, in order of definition."""
        return list(self._views.values())


def _apart(found: dict[str, View], taken: dict[str, View]) -> dict[str, View]:
    for name in found.keys() & taken.keys():
        raise DefinitionError(f"two views are called `{name}`")
    return found


def _views_of(source: SourceFile) -> list[View]:
    module = source.load()
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Projection | Fold)
        and value.__module__ == module.__name__
        and value.name
    ]
    return [_made(kind) for kind in classes]


def _made(kind: type[Projection] | type[Fold]) -> View:
    try:
        return kind()
    except Exception as error:
        raised = type(error).__name__
    raise DefinitionError(f"view class {kind.__name__}: it cannot be made without arguments ({raised})")
