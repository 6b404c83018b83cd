"""`make test`: everything this machine can run, the test summary last."""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import time
from pathlib import Path

from infra.errors import InfraError
from infra.servers import PROGRAMS, get
from tests.servers import CHOSEN

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
_MOST_LANES = 4
_COMPILED = ("src", "infra", "tests")
CHECKS = (
    ("lint", [BIN / "ruff", "check", "."]),
    ("format", [BIN / "ruff", "format", "--check", "."]),
    ("types", [BIN / "mypy"]),
    ("layers", [BIN / "lint-imports"]),
)


def _available(name: str) -> str:
    """Gets a server's program, which may take minutes the first time; says why where it cannot be had."""
    if name not in os.environ.get(CHOSEN, name).split(","):
        return f"not chosen in {CHOSEN}; the tests that need it are skipped"
    began = time.monotonic()
    try:
        program = get(name)
    except InfraError as error:
        return f"SKIPPED, with the tests that need it. {error}"
    return f"{program} ({time.monotonic() - began:.0f} s)"


def main() -> int:
    """Runs the checks, then the tests; returns the exit code."""
    failed = []
    for name, command in CHECKS:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        sys.stdout.write(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}\n")
        if done.returncode:
            failed.append(name)
            sys.stdout.write(done.stdout + done.stderr)
    for name in PROGRAMS:
        sys.stdout.write(f"{name}: {_available(name)}\n")
        sys.stdout.flush()
    # Once, and not in every process that a test starts where Python is told to keep no compiled code.
    for name in _COMPILED:
        compileall.compile_dir(ROOT / name, quiet=2)
    # A file at a time per lane, since a file's tests share servers; one lane more than processors, since they wait.
    # Those that take longest come first (`tests.conftest`), where xdist would begin with those of most tests.
    lanes = [
        "-n",
        str(min((os.cpu_count() or 1) + 1, _MOST_LANES)),
        "--dist",
        "loadfile",
        "--no-loadscope-reorder",
        # One that dies leaves its file with nobody, and the others wait for it without end.
        "--max-worker-restart=0",
    ]
    tests = subprocess.run([sys.executable, "-m", "pytest", *lanes, *sys.argv[1:]], cwd=ROOT, check=False)
    if failed:
        sys.stderr.write(f"failed before the tests: {', '.join(failed)}\n")
    return tests.returncode or bool(failed)


if __name__ == "__main__":
    sys.exit(main())
