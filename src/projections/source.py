"""The source of views: read once; what runs, what is hashed and what is shown are those same bytes."""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, Final

from attrs import field, frozen

from projections.codewatch import CodeWatch
from projections.errors import DefinitionError, ViewHangs

_MODULE_PREFIX: Final = "shredlake_views_"
# CPython 3.11 and 3.12 count the depth of the tree being built per interpreter, not per thread: two threads
# that parse at once raise SystemError "AST constructor recursion depth mismatch" whenever a finalizer or a
# collector callback switches between them (python/cpython#106905).
_one_at_a_time = Lock()


@frozen
class SourceFile:
    """A file of views as it was read. Plain values: it travels to the processes that build.

    Attributes:
        body: the file's bytes.
        digest: SHA-256 of `body` in hex.
    """

    path: Path
    body: bytes = field(repr=False)
    digest: str

    @classmethod
    def read(cls, path: Path) -> SourceFile:
        """The file as it is now.

        Raises:
            DefinitionError: it is not there or cannot be read.
        """
        if not path.is_file():
            raise DefinitionError(f"the view file {path.name} is not there")
        try:
            body = path.read_bytes()
        except OSError as error:
            raise DefinitionError(f"the view file {path.name} cannot be read: {error.strerror}") from None
        return cls(path, body, hashlib.sha256(body).hexdigest())

    def load(self) -> ModuleType:
        """A module of exactly these bytes; the same object for the same path and bytes.

        Raises:
            DefinitionError: it is not Python, or raises; with file and line, without a value.
        """
        name = _MODULE_PREFIX + hashlib.sha256(f"{self.path}|{self.digest}".encode()).hexdigest()[:16]
        with _loading:
            if name not in sys.modules:
                sys.modules[name] = self._run(name)
            return sys.modules[name]

    def _run(self, name: str) -> ModuleType:
        module = ModuleType(name)
        module.__file__ = str(self.path)
        module.__dict__["__shredlake_source__"] = self
        failure: DefinitionError | None = None
        sys.modules[name] = module  # dataclasses and pickle look their module up while it runs
        try:
            with _one_at_a_time:
                code = compile(self.body, str(self.path), "exec", dont_inherit=True)
            # Tracebacks show the lines that run; an entry without a time of change is never read again.
            text = self.body.decode(errors="replace")
            linecache.cache[str(self.path)] = (len(text), None, text.splitlines(True), str(self.path))
            with CodeWatch(None, _LOAD_SECONDS).on() as watched:
                # What the operator named as views in the settings.
                watched.call(self.path.name, lambda: exec(code, module.__dict__))  # noqa: S102
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            failure = self._unloadable(error)
        finally:
            del sys.modules[name]
        if failure is not None:
            raise failure  # outside of `except`: the foreign error, which may quote data, is not its context
        return module

    def _unloadable(self, error: BaseException) -> DefinitionError:
        if isinstance(error, DefinitionError):
            return error
        if isinstance(error, ViewHangs):
            return DefinitionError(
                f"the view file {self.path.name} does not load: it did not end within {_LOAD_SECONDS:g} s",
                next_step="Take the loop or the long work out of its top level.",
            )
        line, trace = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None, None
        trace = error.__traceback__
        while trace is not None and not isinstance(error, SyntaxError):
            line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(self.path) else line
            trace = trace.tb_next
        where = f"{self.path.name}:{line}" if line else self.path.name
        # A module's name is code. Any other text may be of data that the file read.
        missing = f" (no module `{error.name}`)" if isinstance(error, ModuleNotFoundError) else ""
        return DefinitionError(
            f"the view file {where} does not load: {type(error).__name__}{missing}",
            next_step="Correct that line; the other view files and what is published are as they were.",
        )


_loading = Lock()
_LOAD_SECONDS: Final = 60.0


def source_of(thing: Any) -> SourceFile | None:
    """The file that a class or function was loaded from; None of one that no view file defines."""
    module = sys.modules.get(getattr(thing, "__module__", ""))
    found = getattr(module, "__shredlake_source__", None)
    return found if isinstance(found, SourceFile) else None


def sources_of(things: Iterable[type]) -> tuple[SourceFile, ...]:
    """The files that classes were loaded from, each once; none where one of them is of no view file."""
    found = dict.fromkeys(source_of(one) for one in things)
    return tuple(one for one in found if one is not None) if None not in found else ()


def parsed(source: SourceFile) -> ast.Module:
    """The syntax tree of a whole file, a new one each time."""
    with _one_at_a_time:
        return ast.parse(source.body)


def syntax_tree(thing: Any) -> ast.Module:
    """A tree of its own of a class's or function's source, with the line numbers of its file.

    Raises:
        OSError: the source is not to be had, as of a class typed into a shell.
    """
    source = source_of(thing)
    if source is None:
        lines, first = inspect.getsourcelines(thing)
        with _one_at_a_time:
            tree = ast.parse(textwrap.dedent("".join(lines)))
        ast.increment_lineno(tree, max(first - 1, 0))
        return tree
    whole = parsed(source)
    found = _named(whole, thing.__qualname__) or _at(whole, thing)
    if not found:
        raise OSError("the source does not define it")
    return ast.Module(body=found, type_ignores=[])


def _named(tree: ast.AST, qualified: str) -> list[ast.stmt]:
    """Every definition of this name: which of several is alive depends on what ran.

    Of a function that another function made, that other one: what it does decides what was made.
    """
    within: list[ast.AST] = [tree]
    for part in qualified.partition(".<locals>")[0].split("."):
        within = [
            node
            for parent in within
            for node in ast.walk(parent)
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == part
        ]
    return [node for node in within if isinstance(node, ast.stmt)]


def _at(tree: ast.AST, thing: Any) -> list[ast.stmt]:
    """The lambdas of the line that a function without a name begins in."""
    line = thing.__code__.co_firstlineno if inspect.isfunction(thing) else 0
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda) and node.lineno == line]
    return [ast.Expr(node) for node in found]


def line_of_entry(thing: Any, attribute: str, key: str) -> int:
    """The line in which a class's dict `attribute` has this key; 0 where it is not written so."""
    try:
        tree = syntax_tree(thing)
    except OSError:
        return 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(_is_name(target, attribute) for target in node.targets):
            value: ast.expr | None = node.value
        elif isinstance(node, ast.AnnAssign) and _is_name(node.target, attribute):
            value = node.value
        else:
            continue
        for found in value.keys if isinstance(value, ast.Dict) else ():
            if isinstance(found, ast.Constant) and found.value == key:
                return found.lineno
        return node.lineno
    return 0


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
