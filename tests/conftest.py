"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from service.runtime import Runtime
from tests.servers import empty_vault, kafka, postgres, registry, secured_kafka, stores, three_brokers, vault
from tests.world import Clock, make_world

__all__ = [
    "clock",
    "empty_vault",
    "kafka",
    "postgres",
    "registry",
    "secured_kafka",
    "slow_world",
    "stores",
    "three_brokers",
    "vault",
    "world",
]


# No test may depend on how fast the machine is: a loaded one takes more than hypothesis' 200 ms now and then.
settings.register_profile("unhurried", deadline=None, print_blob=True)
settings.load_profile("unhurried")


@pytest.fixture
def clock() -> Clock:
    """A clock that stands until a test moves it."""
    return Clock()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Runtime]:
    """An open lake of its own on real time."""
    runtime = make_world(tmp_path / "lake")
    yield runtime
    runtime.close()


@pytest.fixture
def slow_world(tmp_path: Path, clock: Clock) -> Iterator[Runtime]:
    """An open lake whose time the test moves."""
    runtime = make_world(tmp_path / "lake", clock=clock)
    yield runtime
    runtime.close()
