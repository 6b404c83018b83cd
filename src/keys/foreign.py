"""Exceptions of other libraries: what may be told of them, and a process that tells no more.

Their texts quote what they stumbled over: a cell, an event, an address, a password. So of such an exception
come its type and the place in our code; its text goes into no message, log line or traceback.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final

from keys.errors import ShredlakeError

_OURS: Final = ("keys", "lake", "projections", "purge", "service")
_ROOT: Final = str(Path(__file__).parent.parent) + os.sep
_OUR_LOGGERS: Final = "shredlake"
_MOST_KINDS: Final = 4


class Unexpected(ShredlakeError):
    """Something failed that nobody foresaw; told are the exception's type and the place."""

    default_next_step = (
        "Nothing that was committed is lost. Run the same again; if it fails again, report the type and the"
        " place. The exception's own text is not shown, because it may quote a person's data."
    )


def unexpected(error: BaseException) -> Unexpected:
    """What may be told of an exception that is none of ours; the text is not kept anywhere."""
    return Unexpected(f"unexpected {kinds_of(error)} at {place_of(error)}")


def kinds_of(error: BaseException) -> str:
    """The type of an exception; of a group also the types in it."""
    name = type(error).__name__
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        return f"{name} ({os.strerror(error.errno)})"  # the system's own words, without the file's name
    if not isinstance(error, BaseExceptionGroup):
        return name
    inner = list(dict.fromkeys(kinds_of(one) for one in error.exceptions))
    more = ", …" if len(inner) > _MOST_KINDS else ""
    return f"{name} ({', '.join(inner[:_MOST_KINDS])}{more})"


def place_of(error: BaseException) -> str:
    """`package/file.py:line` of the innermost frame of our code that it passed."""
    return _place(error.__traceback__) or "a place outside of our code"


def _place(trace: TracebackType | None) -> str | None:
    found = None
    while trace is not None:
        found = _ours(trace.tb_frame.f_code.co_filename, trace.tb_lineno) or found
        trace = trace.tb_next
    return found


def _ours(file: str, line: int) -> str | None:
    path = file.removeprefix(_ROOT)
    is_ours = path != file and path.partition(os.sep)[0] in _OURS
    return f"{path.replace(os.sep, '/')}:{line}" if is_ours else None


# -- a process that tells no more ------------------------------------------------------------------


def mask_process() -> None:
    """From here on nothing that this process writes by itself has the text of a foreign exception.

    Uncaught exceptions, those of threads and finalisers, warnings, and every log record whatever handler
    writes it. Called first thing by every process of ours.
    """
    sys.excepthook = lambda kind, error, trace: _tell("error", error)
    threading.excepthook = lambda found: _tell("a thread ended", found.exc_value)
    sys.unraisablehook = lambda found: _tell("while something was cleaned up", found.exc_value)
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    logging.setLogRecordFactory(_masked_record)
    logging.raiseExceptions = False  # a handler that fails would print the record


@contextmanager
def masked_end() -> Iterator[None]:
    """Around all that a child process does: its end by a foreign exception is one line and exit code 1.

    `multiprocessing` prints a traceback with the text otherwise, past every hook.
    """
    mask_process()
    try:
        yield
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            raise
        _tell("error", error)
        raise SystemExit(1) from None
    except BaseException as error:
        _tell("error", error)
        raise SystemExit(1) from None


def _tell(what: str, error: BaseException | None) -> None:
    if error is None or isinstance(error, SystemExit | KeyboardInterrupt | BrokenPipeError):
        return
    text = told(error)
    logging.getLogger("shredlake.process").error("%s: %s", what, text)
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it
            sys.stderr.write(f"{what}: {text}\n")


def told(error: BaseException) -> str:
    """Our errors say what they say; of others the type and the place."""
    if isinstance(error, ShredlakeError):
        return f"{type(error).__name__}: {error.message}"
    return unexpected(error).message


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object
) -> None:
    where = _ours(filename, lineno) or f"{Path(filename).name}:{lineno}"
    logging.getLogger("shredlake.warnings").warning("%s at %s", category.__name__, where)


def _masked_record(*given: Any, **named: Any) -> logging.LogRecord:
    record = logging.LogRecord(*given, **named)
    error = record.exc_info[1] if record.exc_info else None
    if record.name.partition(".")[0] != _OUR_LOGGERS:
        # Another library's line: nobody knows what it is made of.
        kind = f"{kinds_of(error)} " if error is not None else ""
        record.msg = f"{kind}told by {Path(record.pathname).name}:{record.lineno}"
        record.args = None
    else:
        record.msg = told(record.msg) if isinstance(record.msg, BaseException) else record.msg
        record.args = _masked(record.args)
    if error is not None:
        record.msg, record.args = f"{record.getMessage()} [{told(error)}]", None
        record.exc_text, record.exc_info = _frames(error.__traceback__), None
    record.stack_info = None
    return record


def _masked(args: Any) -> Any:
    if isinstance(args, tuple):
        return tuple(told(one) if isinstance(one, BaseException) else one for one in args)
    if isinstance(args, dict):
        return {name: told(one) if isinstance(one, BaseException) else one for name, one in args.items()}
    return args


def _frames(trace: TracebackType | None) -> str:
    """Files and lines, without source text and locals."""
    lines = []
    while trace is not None:
        frame: FrameType = trace.tb_frame
        where = _ours(frame.f_code.co_filename, trace.tb_lineno)
        lines.append(f"  at {where or f'{Path(frame.f_code.co_filename).name}:{trace.tb_lineno}'}")
        trace = trace.tb_next
    return "\n".join(lines)
