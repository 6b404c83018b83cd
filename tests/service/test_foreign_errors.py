"""What other libraries raise, and what people type beside a command, is quoted nowhere."""

from __future__ import annotations

import gc
import io
import json
import logging
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main
from fastapi.testclient import TestClient

from keys import mask_process, masked_end, unexpected
from lake.readahead import ReadAheadProcess
from service.app import create_app
from service.cli.main import app
from service.crew import Crew
from service.runtime import Runtime, log_to_file
from tests.command import command

CANARY = "kanarie-4711"


def canary(kind: type[BaseException] = ValueError) -> BaseException:
    """A foreign exception that carries a value wherever one can: arguments, notes, cause, context, a group."""
    error = kind(f"cannot parse {CANARY!r}", {"cell": CANARY})
    error.add_note(f"in row {CANARY}")
    error.__cause__ = KeyError(CANARY)
    error.__context__ = ExceptionGroup(CANARY, [RuntimeError(CANARY), OSError(5, CANARY, CANARY)])
    return error


ERRORS: dict[str, BaseException] = {
    "chained": canary(),
    "group": ExceptionGroup(CANARY, [ValueError(CANARY), ExceptionGroup(CANARY, [KeyError(CANARY)])]),
    "base": canary(type("PanicException", (BaseException,), {})),
    "exit": SystemExit(CANARY),
    "memory": MemoryError(CANARY),
    "system": OSError(28, CANARY, f"/home/{CANARY}"),
    "decode": UnicodeDecodeError("utf-8", CANARY.encode(), 0, 3, CANARY),
}


def leaves(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, with its words."""
    children = getattr(group, "commands", None)
    if children is None:
        yield path, group
        return
    for name, child in children.items():
        yield from leaves(child, (*path, name))


LEAVES = dict(leaves(typer.main.get_command(app)))


@pytest.fixture
def masked() -> Iterator[None]:
    """This process as `mask_process` leaves it, for the length of a test."""
    hooks = (sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning)
    factory, raises = logging.getLogRecordFactory(), logging.raiseExceptions
    mask_process()
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks[:3]
    warnings.showwarning = hooks[3]
    logging.setLogRecordFactory(factory)
    logging.raiseExceptions = raises


@pytest.mark.parametrize("name", ERRORS)
def test_no_command_lets_a_foreign_exception_through_or_quotes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """All commands: one error line with type and place, a next step, exit code 1."""

    def fails(*_: Any) -> None:
        raise ERRORS[name]

    monkeypatch.setattr(typer.core.TyperCommand, "invoke", fails)
    monkeypatch.setattr(typer.core.TyperCommand, "parse_args", lambda *_: [])
    for path in LEAVES if name == "chained" else list(LEAVES)[:1]:
        done = command(tmp_path, *path)
        assert done.returncode == 1, path
        assert CANARY not in done.stdout + done.stderr, path
        assert f"error: unexpected {type(ERRORS[name]).__name__}" in done.stderr
        assert "→" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_place_is_in_our_own_code(world: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """File and line, so that a report is of use."""
    monkeypatch.setattr(type(world.views.ledger), "current", lambda *_: json.loads("{" + CANARY))
    done = command(world.home, "views", "list")
    assert done.returncode == 1
    assert "unexpected JSONDecodeError at service/cli/views.py:" in done.stderr
    assert CANARY not in done.stderr


_FILES = {("schema", "check")}  # its answer names the files that it was given


def test_wrong_use_never_echoes_what_was_typed(world: Runtime) -> None:
    """Every argument and option of every command, and one word too many: the id lands there by mistake."""
    for path, leaf in LEAVES.items():
        many = [] if path in _FILES else [[*path, *[CANARY] * 9]]
        lines = [*many, [*path, f"--{CANARY}"], [*path, f"-{CANARY}"]]
        for parameter in leaf.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                lines.append([*path, parameter.opts[0], CANARY, CANARY, CANARY, CANARY, CANARY])
        for line in lines:
            done = command(world.home, *line)
            assert done.returncode in (0, 1, 2), line
            assert CANARY not in done.stdout + done.stderr, line
    for line in ([CANARY], ["views", CANARY], ["--output", CANARY, "views", "list"], [f"--{CANARY}"]):
        done = command(world.home, *line)
        assert (done.returncode, CANARY in done.stdout + done.stderr) == (2, False), line


def test_usage_errors_say_what_fits() -> None:
    """Nothing is echoed, and still it is known what to do."""
    nowhere = Path("nowhere")
    done = command(nowhere, "views", "show", "x", "--limit", "many")
    assert "--limit does not fit: it takes a whole number of at least 1" in done.stderr
    done = command(nowhere, "views", "show", "x", "--mode", "odd")
    assert "one of as_reported, as_recomputed, reconcile" in done.stderr
    assert "missing: name" in command(nowhere, "views", "show").stderr
    assert "there are build," in command(nowhere, "views", "shwo").stderr
    assert "more is given than the command takes" in command(nowhere, "erase", "plan", "a", "b").stderr
    assert "name a person" in command(nowhere, "erase", "apply").stderr


def test_an_interrupted_command_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback; the usual code."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(typer.core.TyperCommand, "invoke", interrupted)
    done = command(tmp_path, "version")
    assert (done.returncode, "interrupted; what is committed stays" in done.stderr) == (130, True)


def test_a_reader_that_goes_away_leaves_no_trace(tmp_path: Path) -> None:
    """`shredlake … | head -1`: no line of the interpreter about a broken pipe."""
    code = "from service.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "config", "show", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"SHREDLAKE_HOME": str(tmp_path)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    told = process.stderr.read()
    process.wait()
    assert "Broken" not in told
    assert "Traceback" not in told


# -- threads, finalisers, log lines ----------------------------------------------------------------


class _Foreign:
    def __del__(self) -> None:
        raise canary()


def test_what_ends_a_thread_or_a_finaliser_is_told_by_its_type(
    masked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interpreter prints both by itself otherwise."""

    def fails() -> None:
        raise canary()

    thread = threading.Thread(target=fails)
    thread.start()
    thread.join()
    one = _Foreign()
    del one
    gc.collect()
    warnings.warn(CANARY, stacklevel=1)
    told = capsys.readouterr().err
    assert "a thread ended: unexpected ValueError" in told
    assert "while something was cleaned up: unexpected ValueError" in told
    assert CANARY not in told


def test_no_log_line_quotes_a_foreign_exception_whatever_handler_writes_it(masked: None) -> None:
    """With its traceback, as an argument, as the message; and another library's lines say their place."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    loggers = [logging.getLogger("shredlake.somewhere"), logging.getLogger("uvicorn.error")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    try:
        for logger in loggers:
            try:
                raise canary()
            except ValueError as error:
                logger.exception("it failed")
                logger.error("it failed: %s", error)
                logger.error("it failed: %(error)s", {"error": error})
                logger.error(error)
                logger.critical("stack", stack_info=True, exc_info=error)
        loggers[1].error(f"GET /{CANARY}")
        loggers[1].error("GET /%s", CANARY)
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    told = out.getvalue()
    assert told.count("unexpected ValueError") >= 5
    assert "told by test_foreign_errors.py" in told
    assert CANARY not in told


# -- other processes -------------------------------------------------------------------------------


def _fails_told(order: str, sender: Connection) -> None:
    raise canary()


def _fails_at_start() -> None:
    mask_process()
    raise canary()


class _Source:
    name, feed, total_bytes = "file", "", 1

    def read(self, start: int, batch_events: int, aside: Any = None) -> Iterator[Any]:
        raise canary()


def _run_crew() -> None:
    crew = Crew(lambda number: "", _fails_told, lambda text: sys.stderr.write(f"{text}\n") and None, ())
    crew.start(0)
    while crew.is_alive():
        crew.look(0.1)
    sys.stderr.write(f"{crew.failed[0]}\n")


def _run_read_ahead() -> None:
    try:
        list(ReadAheadProcess(_Source()).read(0))  # type: ignore[arg-type]
    except Exception as error:
        sys.stderr.write(f"{error}\n")


def _run_pool() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _fails_at_start) as pool:
        try:
            pool.submit(len, "").result()
        except Exception as error:
            sys.stderr.write(f"{unexpected(error).message}\n")


def _run_child() -> None:
    with masked_end():
        raise canary(type("PanicException", (BaseException,), {}))


def run_all() -> None:
    """One after the other: a start of the interpreter is what takes the time."""
    for run in (_run_crew, _run_read_ahead, _run_pool):
        run()
        sys.stderr.write("-- next\n")
    _run_child()


def test_a_process_that_ends_by_a_foreign_exception_does_not_quote_it() -> None:
    """`multiprocessing` prints a traceback past every hook otherwise."""
    code = "import tests.service.test_foreign_errors as t; t.run_all()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert CANARY not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    parts = done.stderr.split("-- next")
    assert ["unexpected" in part for part in parts] == [True] * 4
    assert done.returncode == 1


# -- HTTP and jobs ---------------------------------------------------------------------------------


def test_no_route_quotes_a_foreign_exception_or_the_name_that_a_sender_gave_a_field(
    world: Runtime, monkeypatch: pytest.MonkeyPatch, masked: None
) -> None:
    """Every route: 500 with type and place; a request that does not fit: our names alone."""
    log_to_file(world.home)
    application = create_app(world)
    headers = {"Authorization": f"Bearer {world.token}"}
    paths = application.openapi()["paths"]
    with TestClient(application, headers=headers, raise_server_exceptions=False) as client:
        body = {"subject": "ann", CANARY: CANARY, "regime": CANARY}
        for path, methods in paths.items():
            for method in methods:
                url = re.sub(r"\{[^}]*\}", CANARY, path)
                answer = client.request(method, url, json=body, params={CANARY: CANARY, "limit": CANARY})
                assert CANARY not in answer.text, (method, path)
        for name in ("current", "history"):
            monkeypatch.setattr(type(world.views.ledger), name, lambda *_: json.loads("{" + CANARY))
        answer = client.get("/v1/views")
        assert answer.status_code == 500
        assert answer.json()["detail"].startswith("JSONDecodeError at service/app.py:")
        assert CANARY not in answer.text
    assert CANARY not in (world.home / "logs" / "shredlake.log").read_text()
