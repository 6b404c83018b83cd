"""Spark with Iceberg's runtime, run for one query at a time: a reader that our tables must please."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from infra.errors import InfraError
from infra.jars import jars, java_command

NAME: Final = "spark"
VERSION: Final = "4.1.1"
_POM = Path(__file__).parent / "pom.xml"
_LAUNCHER = Path(__file__).parent / "SparkQuery.java"
_HEAP_MB: Final = 768
_SECONDS: Final = 300
# What Spark reaches into, by its own launcher's list for Java 17.
_OPENED: Final = (
    "java.base/java.lang",
    "java.base/java.lang.invoke",
    "java.base/java.lang.reflect",
    "java.base/java.io",
    "java.base/java.net",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/sun.nio.ch",
    "java.base/sun.nio.cs",
    "java.base/sun.security.action",
    "java.base/sun.util.calendar",
)


def find_jars() -> Path:
    """The folder of Spark's jars; fetched where they are not there.

    Raises:
        NotAvailable: says what to install.
    """
    return jars(NAME, VERSION, _POM)


def query(table: str, sql: str, scratch: Path, rest: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Rows of a query over the table `t`; takes some ten seconds.

    Args:
        table: location of its metadata file, or `rest.` and its name in a REST catalog.
        scratch: Spark writes its temporary files there.
        rest: properties of that catalog, as Iceberg names them.

    Raises:
        NotAvailable: see `find_jars`.
        InfraError: Spark refuses; shows the end of what it says.
    """
    java, heap, *others = java_command([find_jars()], _HEAP_MB, str(_LAUNCHER), table, sql)
    opens = [f"--add-opens={one}=ALL-UNNAMED" for one in _OPENED]
    named = {
        f"SPARK_REST_{name.replace('-', '__').replace('.', '_').upper()}": value
        for name, value in (rest or {}).items()
    }
    done = subprocess.run(
        [java, heap, f"-Djava.io.tmpdir={scratch}", *opens, *others],
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
        cwd=scratch,
        env={**os.environ, **named},
    )
    if done.returncode:
        raise InfraError(f"Spark refuses:\n{done.stderr[-1500:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
