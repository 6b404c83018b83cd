"""Figures with their goals, and medians of repeated runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import asdict, frozen


@frozen
class Figure:
    """A measured value.

    Attributes:
        goal: what it should reach, in words; empty where it is only shown.
        met: whether it does; None where there is no goal.
        yardstick: what it was measured against in the same run.
    """

    name: str
    value: float
    unit: str
    goal: str = ""
    met: bool | None = None
    yardstick: str = ""

    @property
    def met_text(self) -> str:
        """yes, no, or nothing."""
        return "" if self.met is None else "yes" if self.met else "no"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_seconds(work: Callable[[], object], runs: int = 5) -> float:
    """Median wall seconds; the machine is noisy."""
    return statistics.median(seconds(work) for _ in range(runs))


def at_least(name: str, value: float, unit: str, goal: float, yardstick: str = "") -> Figure:
    """A figure that should not be lower than its goal."""
    return Figure(name, value, unit, f"≥ {goal:,g}", value >= goal, yardstick)


def at_most(name: str, value: float, unit: str, goal: float, yardstick: str = "") -> Figure:
    """A figure that should not be higher than its goal."""
    return Figure(name, value, unit, f"≤ {goal:,g}", value <= goal, yardstick)


def peak_mib(pid: int) -> float:
    """The most memory that was resident in a process that runs, since it began its program."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
