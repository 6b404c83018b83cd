"""Servers that are built from published Go modules, once, into the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from infra.cache import cached, scratch_folder
from infra.errors import NotAvailable

_BUILD_SECONDS = 3600


def program(name: str, version: str, module: Path, package: str = ".", flags: Sequence[str] = ()) -> Path:
    """The program of a Go module, whose go.sum holds the checksums of all that goes in.

    Args:
        name: for messages, and in the cache.
        package: what of the module, or of what it requires, is built.

    Raises:
        NotAvailable: no Go, or the build failed.
    """
    return cached(name, version, lambda to: _build(name, module, package, flags, to))


def _build(name: str, module: Path, package: str, flags: Sequence[str], to: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise NotAvailable(f"{name}: install Go, which builds it from its published module")
    with scratch_folder(f"{name}-build") as scratch:
        sources = scratch / "source"
        shutil.copytree(module, sources)
        environment = {
            **os.environ,
            "GOMODCACHE": str(scratch / "modules"),
            "GOCACHE": str(scratch / "objects"),
            "GOFLAGS": "-modcacherw",
            "GOTOOLCHAIN": "local",
            "CGO_ENABLED": "0",
        }
        done = subprocess.run(
            [go, "build", "-mod=readonly", *flags, "-trimpath", "-ldflags=-s -w", "-o", to, package],
            cwd=sources,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_BUILD_SECONDS,
        )
    if done.returncode:
        raise NotAvailable(f"{name}: its build failed:\n{done.stderr[-800:]}")
