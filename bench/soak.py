"""`python -m bench.soak`: steady load with upkeep beside it; nothing may grow.

Writes the measurements as JSON Lines, and a plot: live files, latency of a commit, memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench.clicks import CLICKED, clicked
from lake import HttpBatch, verify
from service.runtime import initialise, open_runtime

PEOPLE: Final = 100_000
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_UPKEEP: Final = """
[upkeep]
merge_files = 32
keep_minutes = 1
grace_minutes = 10
"""


def main() -> int:
    """Runs for the minutes asked for; returns 1 when an event is missing or twice."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=int, default=5000, help="events a second")
    parser.add_argument("--every", type=float, default=10, help="seconds between two samples")
    parser.add_argument("--to", type=Path, default=Path("build/bench"), help="folder of the results")
    chosen = parser.parse_args()
    chosen.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shredlake-soak-") as folder:
        samples, problems = _soak(Path(folder) / "lake", chosen.minutes * 60, chosen.rate, chosen.every)
    (chosen.to / "soak.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples))
    _plot(samples, chosen.rate, chosen.to / "soak.png")
    print(f"{samples[-1]['events']:,} events in {len(samples)} samples; {'; '.join(problems) or 'each once'}")
    return bool(problems)


def _soak(home: Path, seconds: float, rate: int, every: float) -> tuple[list[dict[str, Any]], list[str]]:
    initialise(home)
    config = home / "shredlake.toml"
    config.write_text(config.read_text() + _UPKEEP)
    with open_runtime(home) as runtime:
        runtime.lake.types.register(CLICKED)
        command = [sys.executable, "-c", "from service.cli import main; main()", "--home", str(home)]
        keeper = subprocess.Popen(
            [*command, "--quiet", "lake", "upkeep", "--every", "0.5"],
            stdout=subprocess.DEVNULL,
        )
        samples: list[dict[str, Any]] = []
        ingestor, began, sent, took = runtime.lake.ingestor(), time.monotonic(), 0, []
        while (now := time.monotonic() - began) < seconds:
            due = int(now * rate)
            if due - sent >= rate // 2:
                lines = [clicked(number, PEOPLE) for number in range(sent, due)]
                start = time.perf_counter()
                ingestor.run(HttpBatch(lines, f"s{sent}", runtime.lake.types))
                took.append(time.perf_counter() - start)
                sent = due
            else:
                time.sleep(0.02)
            if took and now >= every * (len(samples) + 1):
                samples.append(
                    {
                        "second": round(now),
                        "events": sent,
                        "live_files": len(runtime.lake.events.files()),
                        "snapshots": len(runtime.lake.events.history()),
                        "batch_seconds": round(statistics.median(took), 4),
                        "ingest_mib": _resident_mib(os.getpid()),
                        "upkeep_mib": _resident_mib(keeper.pid),
                    }
                )
                took.clear()
        keeper.terminate()
        keeper.wait()
        found = verify(runtime.lake, deep=True)
        problems = list(found.problems)
        if found.stored != sent:
            problems.append(f"{sent} events were sent, {found.stored} are stored")
    return samples, problems


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * PAGE_BYTES / 1024 / 1024, 1)


def _plot(samples: list[dict[str, Any]], rate: int, to: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    minutes = [one["second"] / 60 for one in samples]
    figure, axes = plt.subplots(3, 1, figsize=(9, 7), dpi=110, sharex=True)
    panels = (
        ("live files, kept snapshots", (("live_files", "files"), ("snapshots", "snapshots"))),
        (f"half a second of events ({rate // 2:,}), sealed and committed: seconds", (("batch_seconds", ""),)),
        ("memory, MiB", (("ingest_mib", "ingest"), ("upkeep_mib", "upkeep"))),
    )
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for name, label in lines:
            axis.plot(minutes, [one[name] for one in samples], label=label or None)
        axis.set_title(title, loc="left", fontsize=10)
        top = max(one[name] for one in samples for name, _ in lines)
        axis.set_ylim(0, top * (1.35 if len(lines) > 1 else 1.1))  # room for the legend
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(frameon=False, loc="upper right", ncol=2)
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(to)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
