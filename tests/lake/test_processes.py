"""Worker processes share the cores of a machine."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from lake import sharing_cores

THREADS = "POLARS_MAX_THREADS"


@pytest.mark.parametrize(("cores", "processes", "each"), [(8, 2, "4"), (8, 3, "2"), (2, 8, "1")])
def test_each_process_takes_its_share_and_the_next_ones_are_not_bound(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, each: str
) -> None:
    monkeypatch.delenv(THREADS, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    with suppress(KeyError), sharing_cores(processes):
        assert os.environ[THREADS] == each
        raise KeyError
    assert THREADS not in os.environ


def test_what_the_operator_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS, "7")
    with sharing_cores(4):
        assert os.environ[THREADS] == "7"
    assert os.environ[THREADS] == "7"
