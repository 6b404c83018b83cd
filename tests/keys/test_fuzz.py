"""A bounded run of the fuzzer; `python -m fuzz.envelope` goes on for as long as one likes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_nothing_the_fuzzer_finds_in_ten_seconds_breaks_the_envelope(tmp_path: Path) -> None:
    """No crash, no wrong plaintext, no error but our own."""
    pytest.importorskip("atheris", reason="atheris has no build for this platform")
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.envelope", "10"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None, done.stderr[-500:]
    assert int(runs[1]) > 10_000
