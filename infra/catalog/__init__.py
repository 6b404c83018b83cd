"""An Iceberg REST catalog on loopback: Iceberg's own adapter over its JDBC catalog in PostgreSQL.

It needs `postgres` in the same folder, which it starts where it does not run, and reaches the objects of
`s3` where that is there. No log-in: a server for tests and for trying out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import httpx

from infra.jars import jars, java_command
from infra.postgres import Postgres
from infra.process import ServerProcess, free_port
from infra.s3 import S3

NAME: Final = "catalog"
VERSION: Final = "1.11.0"
_POM = Path(__file__).parent / "pom.xml"
_LAUNCHER = Path(__file__).parent / "CatalogServer.java"
_HEAP_MB: Final = 256


class RestCatalog:
    """The catalog under `<data>/catalog`.

    Args:
        data: the folder of all servers.
    """

    def __init__(self, data: Path) -> None:
        self.folder = data / NAME
        self.process = ServerProcess(self.folder, "REST catalog")
        self._data = data
        self._facts = self.folder / "facts.json"

    def start(self) -> dict[str, str]:
        """Starts it, and its PostgreSQL; returns how to reach it.

        Raises:
            NotAvailable: no Java, no jars or no PostgreSQL.
            InfraError: it does not come up.
        """
        libraries = find_jars()
        database = Postgres(self._data)
        where = database.address() if database.process.pid is not None else database.start()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._facts.exists():
            self._facts.write_text(json.dumps({"port": free_port()}))
        (self.folder / "warehouse").mkdir(exist_ok=True)
        command = java_command([libraries], _HEAP_MB, str(_LAUNCHER), str(self._port))
        self.process.start(command, self._properties(where["POSTGRES_DSN"]))
        self.process.wait_until(self._answers)
        return self.address()

    def address(self) -> dict[str, str]:
        """`CATALOG_URI`, and whatever the store of its objects says."""
        return {"CATALOG_URI": f"http://127.0.0.1:{self._port}"}

    def stop(self) -> None:
        """Stops it; PostgreSQL is stopped by its own name."""
        self.process.stop()

    @property
    def _port(self) -> int:
        return int(json.loads(self._facts.read_text())["port"])

    def _properties(self, dsn: str) -> dict[str, str]:
        """The environment of the launcher: secrets are on no command line."""
        found = urlsplit(dsn)
        properties = {
            "CATALOG_CATALOG__IMPL": "org.apache.iceberg.jdbc.JdbcCatalog",
            "CATALOG_URI": f"jdbc:postgresql://{found.hostname}:{found.port}{found.path}",
            "CATALOG_JDBC_USER": found.username or "",
            "CATALOG_JDBC_PASSWORD": unquote(found.password or ""),
            "CATALOG_JDBC_SCHEMA__VERSION": "V1",
            "CATALOG_WAREHOUSE": (self.folder / "warehouse").resolve().as_uri(),
            "CATALOG_IO__IMPL": "org.apache.iceberg.io.ResolvingFileIO",
        }
        store = S3(self._data)
        if store.process.pid is None:
            return properties
        where = store.address()
        return properties | {
            "CATALOG_S3_ENDPOINT": where["S3_ENDPOINT"],
            "CATALOG_S3_PATH__STYLE__ACCESS": "true",
            "CATALOG_S3_ACCESS__KEY__ID": where["AWS_ACCESS_KEY_ID"],
            "CATALOG_S3_SECRET__ACCESS__KEY": where["AWS_SECRET_ACCESS_KEY"],
            "CATALOG_CLIENT_REGION": where["AWS_REGION"],
        }

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.address()['CATALOG_URI']}/v1/config", timeout=2).is_success
        except httpx.HTTPError:
            return False


def find_jars() -> Path:
    """The folder of the catalog's jars; fetched where they are not there.

    Raises:
        NotAvailable: says what to install.
    """
    return jars("iceberg-rest", VERSION, _POM)
