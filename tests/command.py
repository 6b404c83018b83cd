"""The command line in this process: as fast as a call, with the exit code and both streams."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from attrs import frozen

from service.cli import main


@frozen
class Done:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def command(home: Path, *arguments: str, stdin: str = "") -> Done:
    """Runs `shredlake --home HOME …` here; what leaves `main` as an exception is the test's to see.

    What it does to its process (hooks, the factory of log records) is taken back.
    """
    hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning)
    factory, raises = logging.getLogRecordFactory(), logging.raiseExceptions
    try:
        return _run(home, arguments, stdin)
    finally:
        sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks
        logging.setLogRecordFactory(factory)
        logging.raiseExceptions = raises


def _run(home: Path, arguments: Sequence[str], stdin: str) -> Done:
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    given = io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8")
    argv = ["shredlake", "--home", str(home), *arguments]
    code = 0
    with (
        mock.patch.object(sys, "stdout", streams[0]),
        mock.patch.object(sys, "stderr", streams[1]),
        mock.patch.object(sys, "stdin", given),
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict("os.environ", {"COLUMNS": "240"}),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    out, err = (one.buffer.getvalue().decode() for one in streams)  # type: ignore[attr-defined]
    return Done(code, out, err)
