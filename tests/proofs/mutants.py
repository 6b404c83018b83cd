"""Runs tests over a copy of the code, with and without a mutation."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest
from attrs import frozen

from tests.proofs import recorder
from tests.proofs.book import ROOT, SOURCE, Control, Proof, is_form

TIMEOUT_SECONDS: Final = 120
"""A mutant may hang a test: that is a failed one."""
_FINISHED: Final = (0, 1)
"""Exit codes of pytest that say that the tests were run."""
_BROKEN: Final = 3
_LIBRARIES: Final = (
    "confluent_kafka",
    "cryptography.hazmat.primitives.ciphers.aead",
    "fastapi.testclient",
    "fastavro",
    "hypothesis.strategies",
    "jsonschema",
    "orjson",
    "polars",
    "pyarrow.parquet",
    "pydantic_settings",
    "pyiceberg.catalog.rest",
    "pyiceberg.catalog.sql",
    "pyiceberg.io.pyarrow",
    "pyiceberg.table",
    "rich.console",
    "typer.testing",
    "zstandard",
)
"""Slow to import, and imported once for all runs."""


@frozen
class Verdict:
    """What a run says.

    Attributes:
        is_right: green without a mutation, red with one, as far as the tests could be run here.
        says: why not, or that it is.
        skipped: tests that were not run, for the want of a server above all; they prove nothing here.
    """

    what: str
    is_right: bool
    says: str
    seconds: float
    skipped: tuple[str, ...] = ()


def run_proofs(
    proofs: Sequence[Proof], scratch: Path, tell: Callable[[Verdict], None] = lambda verdict: None
) -> list[Verdict]:
    """Every test without a mutation, then every mutant.

    Args:
        scratch: an empty folder for copies and outcomes.
        tell: called after each run.
    """
    verdicts = []
    for verdict in _verdicts(proofs, scratch):
        tell(verdict)
        verdicts.append(verdict)
    return verdicts


def _verdicts(proofs: Sequence[Proof], scratch: Path) -> Iterator[Verdict]:
    tests = sorted({test for proof in proofs for test in proof.tests})
    yield _verdict("without a mutant", tests, scratch, None)
    for proof in proofs:
        for control in proof.controls:
            what = f"{proof.guarantee[:60]} | {control.file}: {control.breaks}"
            yield _verdict(what, control.tests, scratch, control)


def _verdict(what: str, tests: Sequence[str], scratch: Path, control: Control | None) -> Verdict:
    began = time.monotonic()
    outcomes, output = _run(tests, scratch, control)
    wrong = not_green(outcomes, tests) if control is None else not_red(outcomes, tests)
    colour, idle = "green" if control is None else "red", skipped(outcomes, tests)
    says = f"NOT {colour.upper()}: {', '.join(wrong)}\n{output}" if wrong else colour
    if idle:
        says += f" (skipped: {', '.join(idle)})"
    return Verdict(what, not wrong, says, time.monotonic() - began, tuple(idle))


def not_green(outcomes: Mapping[str, Sequence[str]], tests: Sequence[str]) -> list[str]:
    """Those that are not there, or of which not all that ran passed."""
    return [
        one
        for one in tests
        if not {"passed"} <= set(_of(outcomes, one)) <= {"passed", "skipped"}
        and one not in skipped(outcomes, [one])
    ]


def not_red(outcomes: Mapping[str, Sequence[str]], tests: Sequence[str]) -> list[str]:
    """Those that ran and did not fail in any of their forms; what breaks around a test is no failure of it."""
    return [
        one for one in tests if "failed" not in _of(outcomes, one) and one not in skipped(outcomes, [one])
    ]


def skipped(outcomes: Mapping[str, Sequence[str]], tests: Sequence[str]) -> list[str]:
    """Those that were skipped in all of their forms."""
    return [one for one in tests if set(_of(outcomes, one)) == {"skipped"}]


def _of(outcomes: Mapping[str, Sequence[str]], test: str) -> list[str]:
    """What became of a test, of all its parameters where the id names none."""
    return [outcome for name, found in outcomes.items() if is_form(name, test) for outcome in found]


def _run(
    tests: Sequence[str], scratch: Path, control: Control | None
) -> tuple[Mapping[str, Sequence[str]], str]:
    """(outcomes by test id, the end of what pytest printed) over the copy."""
    copy, written, printed = scratch / "src", scratch / "outcomes.json", scratch / "printed.txt"
    written.unlink(missing_ok=True)
    with _mutated(copy, control):
        environment = {
            "PYTHONPATH": str(copy),  # before the installed one, for every process that a test starts too
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(
                scratch / "hypothesis"
            ),  # a mutant's failures are not the code's
            recorder.COPY: str(copy),
            recorder.OUTCOMES: str(written),
        }
        plugins = ["-p", recorder.__name__, "-p", "no:cacheprovider", "-p", "no:xdist"]
        arguments = [*plugins, f"--timeout={TIMEOUT_SECONDS}", "--tb=line", "--disable-warnings", *tests]
        code = _forked(arguments, copy, environment, printed)
    tail = "\n".join(printed.read_text().splitlines()[-25:])
    if code not in _FINISHED or not written.exists():
        return {}, f"pytest ended with {code}\n{tail}"
    return json.loads(written.read_text()), tail


@contextlib.contextmanager
def _mutated(copy: Path, control: Control | None) -> Iterator[None]:
    """The copy with a mutation, which is taken back behind; made when it is not there."""
    if not copy.exists():
        shutil.copytree(SOURCE, copy)  # with what is compiled, which holds as long as the times of the files
    if control is None:
        yield
        return
    path, original = copy / control.file, SOURCE / control.file
    path.write_text(control.applied(path.read_text()))
    try:
        yield
    finally:
        shutil.copy2(original, path)


def _forked(arguments: Sequence[str], copy: Path, environment: Mapping[str, str], printed: Path) -> int:
    """Runs pytest in a process of its own that has the libraries already; returns its exit code.

    None of our packages is imported here, so that the process takes them from the copy.
    """
    for library in _LIBRARIES:
        importlib.import_module(library)
    assert not set(recorder.PACKAGES) & sys.modules.keys()
    child = os.fork()
    if child == 0:
        code = _BROKEN
        try:
            os.setpgid(0, 0)
            sink = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for stream in (1, 2):
                os.dup2(sink, stream)
            os.environ.update(environment)
            os.chdir(ROOT)
            sys.path.insert(0, str(copy))
            code = int(pytest.main([*arguments]))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(ProcessLookupError):  # what a test has started and a mutant has kept alive
        os.killpg(child, signal.SIGKILL)
    return code
