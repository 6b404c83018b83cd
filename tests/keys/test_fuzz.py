"""A bounded run of the fuzzer; `make fuzz` goes on for as long as one likes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from keys import EnvelopeFault
from tests.vectors.generate import SHORT, sealed

ROOT = Path(__file__).parents[2]
RUNS = 20_000
ONLY_WITH_A_HISTORY = {EnvelopeFault.GENERATION_UNKNOWN, EnvelopeFault.GENERATION_CHANGED}


def fuzz(folder: Path, *arguments: str) -> str:
    """What a run says; it has to end well."""
    pytest.importorskip("atheris", reason="atheris has no build for this platform")
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.envelope", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_nothing_the_fuzzer_finds_in_ten_seconds_breaks_the_envelope(tmp_path: Path) -> None:
    """No crash, no wrong plaintext, and of every refusal the code that an independent decoder gives."""
    said = fuzz(tmp_path, "10")
    runs = re.search(r"Done (\d+) runs", said)
    assert runs is not None, said[-500:]
    assert int(runs[1]) > RUNS
    reached = set(re.findall(r"^reached (\w+)$", said, re.MULTILINE))
    assert reached == set(EnvelopeFault) - ONLY_WITH_A_HISTORY


def test_one_input_that_was_found_is_run_alone(tmp_path: Path) -> None:
    """As whoever looks into a finding does."""
    found = tmp_path / "found"
    found.write_bytes(sealed(SHORT)[:80] + b"\0")
    assert "reached length" in fuzz(tmp_path, "0", str(found))
