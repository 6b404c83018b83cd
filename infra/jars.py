"""Java servers: their jars by Maven, once, into the cache; and how to run one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from infra.cache import cached, sha256_of
from infra.errors import NotAvailable

_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
_COPY, _COPY_ONE = f"{_PLUGIN}:copy-dependencies", f"{_PLUGIN}:copy"
_MAVEN_SECONDS = 900
MINIMUM_JAVA = 17


def jars(name: str, version: str, pom: Path) -> Path:
    """The folder of a pom's runtime jars; another pom is another folder.

    Raises:
        NotAvailable: says what to install, or why they cannot be fetched.
    """
    java()

    def make(draft: Path) -> None:
        _maven(name, draft, "*.jar", "-f", pom, _COPY, "-DincludeScope=runtime")

    return cached(name, f"{version}-{sha256_of(pom)[:8]}", make)


def distribution(name: str, version: str, artifact: str) -> Path:
    """The folder of what an archive holds: `group:name:version:type:classifier` of Maven.

    Raises:
        NotAvailable: says what to install, or why they cannot be fetched.
    """

    def make(draft: Path) -> None:
        _maven(name, draft, "*.tar.gz", _COPY_ONE, f"-Dartifact={artifact}", "-Dtransitive=false")
        for archive in draft.glob("*.tar.gz"):
            with tarfile.open(archive) as packed:
                packed.extractall(draft, filter="data")
            archive.unlink()

    java()
    return cached(name, version, make)


def java() -> str:
    """The Java runtime.

    Raises:
        NotAvailable: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    found = (shutil.which("java", path=f"{home}/bin") if home else None) or shutil.which("java")
    if found is not None:
        told = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
        version = re.search(r'version "(\d+)', told)
        if version is not None and int(version[1]) >= MINIMUM_JAVA:
            return found
    raise NotAvailable(f"Java servers: install a JDK, {MINIMUM_JAVA} or newer, and Maven")


def java_command(
    folders: Sequence[Path], heap_mb: int, main: str, *arguments: str | Path
) -> list[str | Path]:
    """Runs a class with the jars and classes of some folders."""
    path = os.pathsep.join(f"{folder}/*" for folder in folders)
    return [java(), f"-Xmx{heap_mb}m", "-cp", path, main, *arguments]


def _maven(name: str, draft: Path, wanted: str, *arguments: str | Path) -> None:
    """Lets Maven fill a folder."""
    maven = shutil.which("mvn")
    if maven is None:
        raise NotAvailable(f"{name}: install Maven (`mvn`), which fetches its jars")
    command = [maven, "-q", "-B", *arguments, f"-DoutputDirectory={draft}"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_MAVEN_SECONDS,
        )
    except subprocess.TimeoutExpired:
        shutil.rmtree(draft, ignore_errors=True)
        raise NotAvailable(f"{name}: Maven did not fetch its jars in {_MAVEN_SECONDS} s") from None
    if done.returncode or not any(draft.glob(wanted)):
        shutil.rmtree(draft, ignore_errors=True)
        raise NotAvailable(f"{name}: Maven could not fetch its jars:\n{done.stdout[-600:]}")
