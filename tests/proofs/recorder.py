"""A pytest plugin of the runs in a copy: looks that the copy is what is imported, writes what became of each test."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Final

import pytest
from hypothesis import Phase, settings

COPY: Final = "PROOFS_COPY"
"""Environment variable: the folder that our packages must come from."""
OUTCOMES: Final = "PROOFS_OUTCOMES"
"""Environment variable: the file to write to."""
PACKAGES: Final = ("keys", "lake", "projections", "purge", "service")
_outcomes: dict[str, list[str]] = {}


def pytest_sessionstart(session: pytest.Session) -> None:
    """Ends the run where one of our packages is not the copy's; property tests do not look for small examples."""
    copy = Path(os.environ[COPY]).resolve()
    for name in PACKAGES:
        where = Path(importlib.import_module(name).__file__ or "").resolve()
        if copy not in where.parents:
            pytest.exit(f"{name} is imported from {where}, not from the copy", returncode=3)
    # Behind the profile of the tests: that something fails is enough, its smallest form takes minutes.
    settings.register_profile("without shrinking", settings.default, phases=(Phase.explicit, Phase.generate))
    settings.load_profile("without shrinking")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remembers failures of the test itself, errors around it, and skips."""
    if report.when == "call" or report.outcome != "passed":
        outcome = report.outcome if report.when == "call" or report.outcome == "skipped" else "error"
        _outcomes.setdefault(report.nodeid, []).append(outcome)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes test id → outcomes as JSON."""
    Path(os.environ[OUTCOMES]).write_text(json.dumps(_outcomes))
