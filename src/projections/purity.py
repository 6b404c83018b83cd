"""Refuses what makes a view's answer depend on more than its input: clocks, chance, files, environment.

Judged is what is called or read, by where it comes from, not how it is spelled: `c("at").dt.time()` is a
column's, `time.time()` is a clock's. Helpers of the view's file are looked through.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import packages_distributions, version
from types import FunctionType, ModuleType
from typing import Any, Final

from projections.errors import DefinitionError
from projections.source import SourceFile, parsed, source_of, syntax_tree

_OURS: Final = ("keys", "lake", "projections", "purge", "service")
_IMPURE: Final = (
    *("random", "secrets", "time", "posix", "nt", "socket", "subprocess", "ctypes", "threading"),
    *("requests", "httpx", "urllib.request", "urllib3", "http", "ftplib", "smtplib", "sqlite3", "_sqlite3"),
    *("io", "_io", "pathlib", "tempfile", "glob", "shutil", "numpy.random", "importlib", "_random"),
    *("os", "uuid.uuid1", "uuid.uuid4", "platform", "getpass", "locale"),
    *("datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today"),
    *("builtins.open", "builtins.input", "builtins.exec", "builtins.eval", "builtins.__import__"),
    *("builtins.hash", "builtins.id"),
)
_PURE: Final = ("os.path.join", "os.path.basename", "os.path.splitext", "io.StringIO", "io.BytesIO")
_POLARS_IO: Final = ("read_", "scan_", "write_", "sink_")
_METHODS: Final = ("now", "utcnow", "today", "sample", "shuffle", "read_text", "read_bytes", "write_text")
"""Refused whatever they are called on: no column has a method of these names that is reproducible."""


def refuse_impure(name: str, thing: type) -> None:
    """Looks through a view's class and the helpers that it reaches.

    Raises:
        DefinitionError: with the file's line and what is not reproducible there, or which code of another
            file the view uses: that is not read with it, so no version would tell that it changed.
    """
    _refuse_other_files(name, thing)
    seen: set[int] = set()
    waiting: list[Any] = [thing]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        try:
            tree = syntax_tree(one)
        except OSError:
            continue
        names = _Names(one, tree)
        for node, what in _findings(tree, names):
            source = source_of(one)
            where = f"{source.path.name}:{node.lineno}" if source is not None else f"line {node.lineno}"
            raise DefinitionError(
                f"view `{name}` {where}: `{what}` is not reproducible",
                next_step="Take it out: a view is a function of its events, so anybody can recompute it.",
            )
        waiting += names.helpers()


def _refuse_other_files(name: str, thing: type) -> None:
    source = source_of(thing)
    if source is None:
        return
    for module, line in [*_imports(source), *_reached(thing)]:
        if _is_local(module):
            where = f"{source.path.name}:{line}" if line else source.path.name
            raise DefinitionError(
                f"view `{name}` {where}: `{module}` is a file of its own, which is not read with the view's",
                next_step="Put what the view uses into its file, or install it as a package with a version.",
            )


@functools.lru_cache(maxsize=256)
def _imports(source: SourceFile) -> tuple[tuple[str, int], ...]:
    """Modules that a view file imports, anywhere in it, with the lines."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module.partition(".")[0], node.lineno))
    return tuple(found)


def _reached(thing: type) -> Iterator[tuple[str, int]]:
    """Modules that the file's names stand for or come from, however they came there."""
    module = sys.modules[thing.__module__]
    for value in list(vars(module).values()):
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(home, str) and home != thing.__module__:
            yield home.partition(".")[0], 0


def _is_local(module: str) -> bool:
    """Whether it is a file that is no installed package, no part of Python and none of ours."""
    if module in sys.stdlib_module_names or module in _OURS or module in sys.builtin_module_names:
        return False
    found = sys.modules.get(module)
    try:
        spec = getattr(found, "__spec__", None) or importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        spec = None
    places = [getattr(found, "__file__", None), getattr(spec, "origin", None)]
    places += list(getattr(spec, "submodule_search_locations", None) or ())
    files = [place for place in places if place and place not in ("built-in", "frozen", "namespace")]
    return bool(files) and not any(_is_installed(file) for file in files)


def _is_installed(file: str) -> bool:
    return any(part in file for part in ("site-packages", "dist-packages")) or file.startswith(
        (sys.prefix, sys.base_prefix)
    )


def used_libraries(thing: type) -> dict[str, str]:
    """Distribution → version of the installed packages that the view's file uses, those of `_OURS` and
    Polars left out: of these the major version counts.
    """
    source = source_of(thing)
    if source is None:
        return {}
    tops = {module for module, _ in [*_imports(source), *_reached(thing)]}
    tops -= {*_OURS, *sys.stdlib_module_names, "polars", "builtins"}
    owners = _distributions() if tops else {}
    return {name: version(name) for top in sorted(tops) for name in owners.get(top, ())}


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return packages_distributions()


class _Names:
    """What the names in a piece of source stand for, as dotted paths."""

    def __init__(self, thing: Any, tree: ast.AST) -> None:
        module = sys.modules.get(thing.__module__)
        self._globals: Mapping[str, Any] = vars(module) if module is not None else {}
        self._home = thing.__module__
        self._tree = tree
        self._imported: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._imported[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self._imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        self._local = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)} | {
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }

    def path(self, node: ast.expr) -> str:
        """The dotted path of a name or attribute; "" where it is a value of the view's own."""
        if isinstance(node, ast.Attribute):
            owner = self.path(node.value)
            return f"{owner}.{node.attr}" if owner else ""
        if not isinstance(node, ast.Name):
            return ""
        if node.id in self._imported:
            return self._imported[node.id]
        if node.id in self._local:
            return ""
        if node.id in self._globals:
            return _path_of(self._globals[node.id])
        return f"builtins.{node.id}" if hasattr(builtins, node.id) else ""

    def helpers(self) -> Iterator[Any]:
        """Functions and classes of view files and of their neighbours that the source names."""
        for node in ast.walk(self._tree):
            found: Any = None
            if isinstance(node, ast.Name):
                found = self._globals.get(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = self._globals.get(node.value.id)
                found = getattr(module, node.attr, None) if isinstance(module, ModuleType) else None
            found = getattr(found, "__wrapped__", found)
            if isinstance(found, FunctionType | type) and _is_own(found.__module__, self._home):
                yield found


def _path_of(value: Any) -> str:
    if isinstance(value, ModuleType):
        return value.__name__
    if type(value).__name__ == "_Environ":
        return "os.environ"
    bound = getattr(value, "__self__", None)
    owner = type(bound) if bound is not None and not isinstance(bound, ModuleType | type) else bound
    if isinstance(owner, type) and callable(value):  # as `random = Random().random`
        return f"{owner.__module__}.{owner.__qualname__}.{getattr(value, '__name__', '')}"
    if isinstance(value, type) or callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    return ""


def _is_own(module: str, home: str) -> bool:
    """Whether a module is of the author: of the same file, or of a file that is no installed package."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    top = module.partition(".")[0]
    ours = top in _OURS
    return module == home or bool(
        file and not _is_installed(file) and not ours and top not in sys.stdlib_module_names
    )


def _findings(tree: ast.AST, names: _Names) -> Iterator[tuple[ast.expr, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            path = names.path(node)
            if _is_impure(path):
                yield node, path.removeprefix("builtins.")
        if not isinstance(node, ast.Call):
            continue
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if method in _METHODS or method.startswith(_POLARS_IO):
            yield node, f"{method}()"
        keep = {k.arg: k.value for k in node.keywords}.get("keep")
        if method == "unique" and isinstance(keep, ast.Constant) and keep.value == "any":
            yield node, 'keep="any"'


def _is_impure(path: str) -> bool:
    if path.startswith("polars."):
        return path.rpartition(".")[2].startswith(_POLARS_IO)
    modules_alone = "." not in path
    return (
        not modules_alone
        and any(path == one or path.startswith(f"{one}.") for one in _IMPURE)
        and (not path.startswith(_PURE) and path != "os.path")
    )
