"""The one place that runs the code of a view's author: keys, measures, fold, final and checks.

What it raises becomes `ViewFailed`: Polars quotes values in its errors, and the values are those of people.
"""

from __future__ import annotations

import ast
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import polars as pl

from projections.codewatch import call_watched
from projections.columntypes import Refusal
from projections.definition import View
from projections.errors import ProjectionError, ViewFailed
from projections.source import line_of_entry, syntax_tree

P = ParamSpec("P")
R = TypeVar("R")
_RAISED: Final = (Exception, pl.exceptions.PanicException, SystemExit)
_TYPE: Final = r"`([a-zA-Z][a-zA-Z0-9]{0,11}(?:\[[a-zμµ]{1,2}\])?)`"
_CONVERSION: Final = re.compile(rf"^conversion from {_TYPE} to {_TYPE} failed in column ")
_SHARE: Final = re.compile(r" for (\d{1,20}) out of (\d{1,20}) values: ")
_COLUMN: Final = re.compile(r"\"(\w{1,64})\"")


def run_author_code(view: View, part: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `function` returns; it evaluates something that the author of `view` wrote.

    Args:
        part: what is evaluated, as the error names it: `fold`, `` key `day` ``.

    Raises:
        ViewFailed: it raised, whatever it was, an error of our packages that its code raises or causes
            included: that is no outage, and its text may quote a value. Out of memory passes as it is, and
            what this package itself says of a view.
        ViewHangs: it did not end, in a build that is watched.
    """
    try:
        return call_watched(view.name, lambda: function(*args, **kwargs))
    except MemoryError:
        raise
    except Refusal as error:
        failure = ViewFailed(
            view.name,
            part,
            type(error).__name__,
            detail=error.reason,
            place=_place(view, part, error),
            next_step=f"Nothing was published. In the view, {error.instead}; then build again.",
        )
    except _RAISED as error:
        if isinstance(error, ProjectionError) and _is_ours(error):
            raise
        failure = _failure(view, part, error)
    # Outside of `except`: an error in whose context the foreign one hangs would show its text to a logger.
    raise failure


def run_columns(
    view: View,
    columns: Mapping[str, Sequence[pl.Expr]],
    function: Callable[[Mapping[str, Sequence[pl.Expr]]], pl.DataFrame],
) -> pl.DataFrame:
    """What `function` makes of all `columns`; where it fails, the first column that fails alone is named.

    Args:
        columns: name → expressions of a key or a measure.
    """
    try:
        return run_author_code(view, "the keys and measures", function, columns)
    except ViewFailed as error:
        failure = error
    for name, expressions in columns.items():
        run_author_code(view, _part(view, name), function, {name: expressions})
    raise failure


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised it: an author can raise any error of ours, with any text."""
    innermost = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        innermost = frame
    return innermost is not None and Path(innermost.f_code.co_filename).parent == Path(__file__).parent


def _failure(view: View, part: str, error: BaseException) -> ViewFailed:
    detail = _safe_detail(view, error)
    return ViewFailed(view.name, part, type(error).__name__, detail=detail, place=_place(view, part, error))


def _safe_detail(view: View, error: BaseException) -> str:
    """Of a foreign message what cannot be a value: types, counts, and names that the view's code has."""
    text = str(error)
    conversion = _CONVERSION.match(text)
    if conversion:
        share = _SHARE.search(text)
        count = f" for {share[1]} of {share[2]} values" if share else ""
        return f"{conversion[1]} does not convert to {conversion[2]}{count}"
    if isinstance(error, pl.exceptions.ColumnNotFoundError):
        known = _texts_of(view)
        named = [name for name in _COLUMN.findall(text) if name in known]
        fields = sorted({field for fields in view.reads.values() for field in fields})
        return f"there is no column {named[0]!r}; the view reads {', '.join(fields)}" if named else ""
    return ""


def _texts_of(view: View) -> set[str]:
    try:
        tree = syntax_tree(type(view))
    except OSError:
        return set()
    return {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def _part(view: View, name: str) -> str:
    return f"{'key' if name in view.keys else 'measure'} `{name}`"


def _place(view: View, part: str, error: BaseException) -> str:
    """File and line: of the innermost frame of the view's file, else of the class's line for this part."""
    module = sys.modules.get(type(view).__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        return ""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    for attribute in ("keys", "state"):
        for name in getattr(view, attribute):
            if not line and part == _part(view, name):
                line = line_of_entry(type(view), attribute, name)
    return f"{Path(file).name}:{line}" if line else Path(file).name
