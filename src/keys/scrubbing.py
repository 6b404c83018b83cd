"""Errors that leave this package take no key along.

A traceback holds the frames that it came through, and these their local variables. Whoever renders those,
as error reporters do (`traceback.TracebackException` with `capture_locals=True`), would print keys. Python
cannot wipe bytes, but it can empty a frame that is over (`frame.clear`): the places stay, the values go. So
every way into this package that works with keys is scrubbed, and no function behind it has to care.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from types import FunctionType
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")
_C = TypeVar("_C", bound=type)


def scrubbed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The same function; an error that it raises comes through empty frames."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            _empty_frames(error)
            raise

    return call


def scrubbed_class(cls: _C) -> _C:
    """The same class with its public methods scrubbed."""
    for name, value in list(vars(cls).items()):
        if isinstance(value, FunctionType) and not name.startswith("_"):
            setattr(cls, name, scrubbed(value))
    return cls


def _empty_frames(error: BaseException) -> None:
    """Of the error and of those it was raised while handling; frames that still run keep their values."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            todo += [one.__cause__, one.__context__]
