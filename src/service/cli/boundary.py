"""Where a command ends: every error becomes a sentence and a next step, and none quotes what was given.

What people type beside a command may be a person's id: usage errors name our options and arguments, never
the words that did not fit.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

import typer
from typer._click import exceptions as usage

from keys import ShredlakeError, mask_process, unexpected
from purge import UnderHold
from service.cli.common import HELD, messages

_INTERRUPTED: Final = 130
_WRONG_USE: Final = 2


class WrongUse(typer.BadParameter):
    """Arguments that do not fit together; the message is ours and quotes none of them."""


def run(app: Callable[..., Any]) -> int:
    """Runs the command of `sys.argv`; returns the exit code. Nothing leaves it as a traceback."""
    mask_process()
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except ShredlakeError as error:
        report(error)
        return HELD if isinstance(error, UnderHold) else 1
    except usage.NoArgsIsHelpError as error:
        error.show()  # the help, nothing else
        return _WRONG_USE
    except usage.ClickException as error:
        _tell_wrong_use(error)
        return _WRONG_USE
    except (typer.Abort, EOFError):
        _print("aborted; nothing was changed")
        return 1
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:
        _let_go_of_stdout()
        return 1
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        report(unexpected(error))
        return 1
    except BaseException as error:
        report(unexpected(error))
        return 1
    if code == _INTERRUPTED:
        _print("interrupted; what is committed stays, and the same command goes on from there")
    return code if isinstance(code, int) else 0


def report(error: ShredlakeError) -> None:
    """What happened and what to do, on standard error."""
    _print(f"error: {error.message}")
    _print(f"  → {error.next_step}")
    if error.retry_helps:
        _print("  (the same call may succeed later)")


def _print(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads it
        # Whole lines: who reads a log or a pipe looks for a sentence, and a terminal wraps by itself.
        messages.print(text, markup=False, soft_wrap=True)


def _let_go_of_stdout() -> None:
    """What is still in the buffer would fail once more when the interpreter ends, with a line of its own."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):
        pass


def _tell_wrong_use(error: usage.ClickException) -> None:
    context = getattr(error, "ctx", None)
    if context is not None:
        _print(context.get_usage())
        _print(f"Try '{context.command_path} --help' for help.")
    _print(f"error: {_misfit(error, context)}")


def _misfit(error: usage.ClickException, context: Any) -> str:
    """What does not fit, in our words. The library's own quote the argument."""
    if isinstance(error, WrongUse):
        return error.message
    if isinstance(error, usage.MissingParameter):
        return f"missing: {_hint(error)}"
    if isinstance(error, usage.NoSuchOption):
        options = [name for one in context.command.params for name in one.opts if name.startswith("-")]
        return f"there is no such option; the command takes {', '.join([*options, '--help'])}"
    if isinstance(error, usage.BadOptionUsage):
        return "an option lacks its value, or has one that it does not take"
    if isinstance(error, usage.BadParameter):
        return f"what is given for {_hint(error)} does not fit: it takes {_wanted(error.param)}"
    commands = getattr(context.command, "commands", None) if context is not None else None
    if commands:
        return f"there is no such command; there are {', '.join(sorted(commands))}"
    takes = sum(one.param_type_name == "argument" for one in context.command.params) if context else 0
    return f"more is given than the command takes ({takes} argument(s))" if context else "wrong use"


def _hint(error: usage.BadParameter) -> str:
    if error.param is None:
        return str(error.param_hint or "an argument")
    return str(error.param.get_error_hint()).replace("'", "")


def _wanted(parameter: Any) -> str:
    kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(str(one.value) for one in kind)}"
    names: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}
    text = names.get(kind, "another form; see --help")
    least, most = getattr(parameter, "min", None), getattr(parameter, "max", None)
    bounds = [f"{word} {one}" for word, one in (("at least", least), ("at most", most)) if one is not None]
    return " of ".join([text, *([" and ".join(bounds)] if bounds else [])])
