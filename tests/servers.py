"""Real servers for the tests: started once per run, skipped with a reason where they cannot be had."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.catalog import RestCatalog
from infra.errors import NotAvailable
from infra.kafka import Kafka
from infra.postgres import Postgres
from infra.registry import Registry
from infra.s3 import S3
from infra.vault import Vault

CHOSEN = "TEST_SERVERS"
"""Comma-separated names; unset means every server, empty means none."""


@contextmanager
def running(kind: Callable[[Path], Any], *names: str, at: Path | None = None) -> Iterator[Any]:
    """A server in a fresh folder that another user may enter; stopped and removed afterwards.

    Args:
        at: where that folder is made, instead of among the system's temporary ones.
    """
    for name in names:
        if name not in os.environ.get(CHOSEN, name).split(","):
            pytest.skip(f"{name} was not chosen in {CHOSEN}")
    folder = Path(tempfile.mkdtemp(prefix="shredlake-servers-", dir=at))
    folder.chmod(0o755)
    server = kind(folder)
    try:
        server.start()
        yield server
    except NotAvailable as missing:
        pytest.skip(str(missing))
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def vault() -> Iterator[Vault]:
    """Vault or OpenBao, set up for Shredlake."""
    with running(Vault, "vault") as server:
        yield server


@pytest.fixture
def empty_vault() -> Iterator[Vault]:
    """Another one that was only initialised; a snapshot may overwrite it."""
    with running(lambda data: Vault(data, prepared=False), "vault") as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL."""
    with running(Postgres, "postgres") as server:
        yield server


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """One Kafka broker."""
    with running(Kafka, "kafka") as server:
        yield server


class Stores:
    """An object store, and a REST catalog over PostgreSQL that reaches it, in one folder."""

    def __init__(self, data: Path) -> None:
        self.s3 = S3(data)
        self.postgres = Postgres(data)
        self.catalog = RestCatalog(data)

    def start(self) -> None:
        """Starts all three."""
        self.s3.start()
        self.postgres.start()
        self.catalog.start()

    def stop(self) -> None:
        """Stops what runs."""
        for server in (self.catalog, self.postgres, self.s3):
            server.stop()


@pytest.fixture(scope="session")
def stores() -> Iterator[Stores]:
    """S3, PostgreSQL and a REST catalog."""
    with running(Stores, "s3", "postgres", "catalog") as servers:
        yield servers


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """A schema registry."""
    with running(Registry, "registry") as server:
        yield server


@pytest.fixture
def three_brokers() -> Iterator[Kafka]:
    """A cluster that takes writes with one of its brokers lost."""
    with running(lambda data: Kafka(data, 3), "kafka") as server:
        yield server


@pytest.fixture
def secured_kafka() -> Iterator[Kafka]:
    """A broker that also has a listener with TLS, where clients log in."""
    with running(lambda data: Kafka(data, secure=True), "kafka") as server:
        yield server
