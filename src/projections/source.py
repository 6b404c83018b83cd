"""The syntax tree of a view or of a helper it reaches."""

from __future__ import annotations

import ast
import inspect
import textwrap
from threading import Lock
from typing import Any

# CPython 3.11 and 3.12 count the depth of the tree being built per interpreter, not per thread: two threads
# that parse at once raise SystemError "AST constructor recursion depth mismatch" whenever a finalizer or a
# collector callback switches between them (python/cpython#106905).
_one_at_a_time = Lock()


def syntax_tree(thing: Any) -> ast.Module:
    """A tree of its own of a class's or function's source.

    Raises:
        OSError: the source is not to be had, as of a class typed into a shell.
    """
    with _one_at_a_time:
        return ast.parse(textwrap.dedent(inspect.getsource(thing)))
