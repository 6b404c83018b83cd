"""The servers by name, and the programs that are fetched or built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from infra import catalog, kafka, postgres, registry, s3, spark, vault
from infra.process import ServerProcess


class Server(Protocol):
    """A real server in a folder of its own."""

    folder: Path
    process: ServerProcess

    def start(self) -> dict[str, str]: ...
    def stop(self) -> None: ...
    def address(self) -> dict[str, str]: ...


SERVERS: dict[str, Callable[[Path], Server]] = {
    vault.NAME: vault.Vault,
    postgres.NAME: postgres.Postgres,
    kafka.NAME: kafka.Kafka,
    s3.NAME: s3.S3,
    catalog.NAME: catalog.RestCatalog,
    registry.NAME: registry.Registry,
}
PROGRAMS: dict[str, Callable[[], Path]] = {
    vault.NAME: vault.find_binary,
    postgres.NAME: postgres.find_programs,
    kafka.NAME: kafka.find_jars,
    s3.NAME: s3.find_program,
    catalog.NAME: catalog.find_jars,
    registry.NAME: registry.find_program,
    spark.NAME: spark.find_jars,
}


def get(name: str) -> Path:
    """A program or its jars, fetched or built where they are not there yet."""
    return PROGRAMS[name]()
