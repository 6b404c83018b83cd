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
    "crash/test_kill_anywhere.py",
    "lake/test_kafka.py",
    "test_docs.py",
    "lake/test_warehouses.py",
    "lake/test_replay.py",
    "lake/test_republish.py",
    "lake/test_everywhere.py",
    "lake/test_sealed_topics.py",
    "purge/test_broken_views.py",
    "lake/test_always_read.py",
    "lake/test_consumers.py",
    "service/test_ingest_kafka.py",
    "projections/test_equality.py",
    "lake/test_wireformat.py",
    "lake/test_interoperability.py",
    "keys/test_postgres_faults.py",
    "lake/test_doors.py",
    "purge/test_erasure.py",
    "projections/test_heads.py",
    "keys/test_agent.py",
    "service/test_restores.py",
    "keys/test_epoch_close.py",
    "service/test_cli.py",
    "service/test_door.py",
    "keys/test_history.py",
    "projections/test_inputs.py",
    "lake/test_upkeep.py",
    "lake/test_privacylint.py",
    "projections/test_types.py",
    "service/test_drill.py",
    "purge/test_scanner.py",
    "keys/test_barrier.py",
    "lake/test_bodies.py",
    "projections/test_dropping.py",
    "projections/test_alone.py",
    "service/test_servers.py",
    "lake/test_manifests.py",
    "service/test_intake.py",
    "lake/test_ingest.py",
    "service/test_outages.py",
    "keys/test_no_key_shown.py",
    "service/test_irreversible.py",
    "keys/test_any_history.py",
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
