"""`make test`: everything this machine can run, the test summary last."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
CHECKS = (
    ("lint", [BIN / "ruff", "check", "."]),
    ("format", [BIN / "ruff", "format", "--check", "."]),
    ("types", [BIN / "mypy"]),
    ("layers", [BIN / "lint-imports"]),
)


def main() -> int:
    """Runs the checks, then the tests; returns the exit code."""
    failed = []
    for name, command in CHECKS:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        sys.stdout.write(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}\n")
        if done.returncode:
            failed.append(name)
            sys.stdout.write(done.stdout + done.stderr)
    sys.stdout.write("servers: none needed; every adapter of this version is embedded\n")
    sys.stdout.flush()
    tests = subprocess.run([sys.executable, "-m", "pytest", *sys.argv[1:]], cwd=ROOT, check=False)
    if failed:
        sys.stderr.write(f"failed before the tests: {', '.join(failed)}\n")
    return tests.returncode or bool(failed)


if __name__ == "__main__":
    sys.exit(main())
