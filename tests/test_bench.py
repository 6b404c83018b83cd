"""The benchmarks that nobody runs every day still run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_soak_of_seconds_ends_with_every_event_once_and_a_plot(tmp_path: Path) -> None:
    """The command of docs/performance.md, shorter."""
    options = ["--minutes", "0.1", "--rate", "500", "--every", "1", "--to", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.soak", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "each once" in done.stdout
    samples = [json.loads(line) for line in (tmp_path / "soak.jsonl").read_text().splitlines()]
    assert samples[-1]["events"] > 0
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
