"""Code run as another user of this system, for tests of what the system itself refuses."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

INGEST_USER, BUILD_USER, STRANGER = 12_001, 12_002, 12_003
ROOT = Path(__file__).parents[1]


@functools.cache
def python_for_others() -> Path | None:
    """An interpreter of our version that other users may enter with our packages; None: there is none."""
    for found in (Path(sys.executable), Path(f"/usr/bin/python3.{sys.version_info.minor}")):
        with contextlib.suppress(OSError):
            if _run(found, STRANGER, "import keys, msgpack, cryptography").returncode == 0:
                return found
    return None


def need_other_users() -> Path:
    """Skips with a reason where this process cannot become somebody else."""
    if os.geteuid() != 0:
        pytest.skip("only root can try as another user")
    python = python_for_others()
    if python is None:
        pytest.skip("other users can enter no interpreter of ours: install the system's python3")
    return python


def as_user(user: int, code: str, *arguments: str) -> Any:
    """What code of that user prints as JSON; `sys.argv[1:]` are the arguments."""
    done = _run(need_other_users(), user, code, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def command_of(user: int, code: str, *arguments: str) -> list[str]:
    """A command that runs code as that user, with as much locked memory as the system lets root give it."""
    python = need_other_users()
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    unlimited = ["prlimit", "--memlock=unlimited"]
    allowed = subprocess.run([*unlimited, "true"], capture_output=True, check=False).returncode == 0
    command = [str(python), "-c", _with_packages(code), *arguments]
    return [*(unlimited if allowed else ()), *become, *command]


def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, removed afterwards: pytest's own is for its user alone."""
    folder = Path(tempfile.mkdtemp(prefix="shredlake-users-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _run(python: Path, user: int, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", _with_packages(code), *arguments],
        user=user,
        group=user,
        extra_groups=[],
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def _with_packages(code: str) -> str:
    site = sysconfig.get_paths()["purelib"]
    return f"import site, sys; sys.path.insert(0, {site!r}); site.addsitedir({site!r})\n{code}"
