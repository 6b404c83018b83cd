"""A schema registry on loopback: Apicurio Registry, by its interface that is compatible with Confluent's.

The newest version that runs on Java 17 and that Maven can resolve.

Its schemas lie in a database file in its folder. No log-in: a server for tests and for trying out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import httpx

from infra.jars import distribution, java
from infra.process import ServerProcess, free_port

NAME: Final = "registry"
VERSION: Final = "2.6.13.Final"
_ARTIFACT: Final = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
_HEAP_MB: Final = 384
_API: Final = "/apis/ccompat/v7"


class Registry:
    """The registry under `<data>/registry`.

    Args:
        data: the folder of all servers.
    """

    def __init__(self, data: Path) -> None:
        self.folder = data / NAME
        self.process = ServerProcess(self.folder, "schema registry")
        self._facts = self.folder / "facts.json"

    def start(self) -> dict[str, str]:
        """Starts it; returns how to reach it.

        Raises:
            NotAvailable: no Java, or its distribution cannot be fetched.
            InfraError: it does not come up.
        """
        program = find_program() / f"apicurio-registry-app-{VERSION}-runner.jar"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._facts.exists():
            self._facts.write_text(json.dumps({"port": free_port()}))
        settings = {
            "QUARKUS_HTTP_HOST": "127.0.0.1",
            "QUARKUS_HTTP_PORT": str(self._port),
            "QUARKUS_DATASOURCE_JDBC_URL": f"jdbc:h2:file:{(self.folder / 'schemas').resolve()}",
        }
        self.process.start([java(), f"-Xmx{_HEAP_MB}m", "-jar", program], settings)
        self.process.wait_until(self._answers)
        return self.address()

    def address(self) -> dict[str, str]:
        """`SCHEMA_REGISTRY_URL`."""
        return {"SCHEMA_REGISTRY_URL": f"http://127.0.0.1:{self._port}{_API}"}

    def stop(self) -> None:
        """Stops it."""
        self.process.stop()

    @property
    def _port(self) -> int:
        return int(json.loads(self._facts.read_text())["port"])

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.address()['SCHEMA_REGISTRY_URL']}/subjects", timeout=2).is_success
        except httpx.HTTPError:
            return False


def find_program() -> Path:
    """The folder of the distribution; fetched where it is not there.

    Raises:
        NotAvailable: says what to install.
    """
    return distribution("apicurio-registry", VERSION, _ARTIFACT)
