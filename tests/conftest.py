"""Fixtures shared by all tests."""

from __future__ import annotations

import os
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


LONGEST_FIRST = (
    "service/test_ingest_kafka.py",
    "lake/test_kafka.py",
    "lake/test_always_read.py",
    "projections/test_equality.py",
    "purge/test_erasure.py",
    "purge/test_broken_views.py",
    "test_parts.py",
    "lake/test_consumers.py",
    "test_docs.py",
    "service/test_irreversible.py",
    "purge/test_together.py",
    "service/test_restores.py",
    "crash/test_kill_anywhere.py",
    "lake/test_warehouses.py",
    "lake/test_upkeep.py",
    "keys/test_any_history.py",
    "service/test_intake.py",
    "service/test_outages.py",
    "service/test_door.py",
    "service/test_foreign_errors.py",
    "service/test_drill.py",
    "service/test_servers.py",
    "service/test_cli.py",
    "purge/test_scanner.py",
    "keys/test_history.py",
    "keys/test_postgres_faults.py",
    "projections/test_types.py",
    "projections/test_views.py",
    "test_bench.py",
    "test_proofs.py",
)
"""Files by how long they take: a lane that begins one of them as the last lets the others wait."""

# No test may depend on how fast the machine is: a loaded one takes more than hypothesis' 200 ms now and then.
settings.register_profile("unhurried", deadline=None, print_blob=True)
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest before the others; within a file the order stays."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Puts the umask back: the command line sets that of its process, which here is the one of all tests."""
    before = os.umask(0o022)
    os.umask(before)
    try:
        return (yield)
    finally:
        os.umask(before)


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
