"""PostgreSQL from the operating system's packages, as a system user, with a socket in its own folder."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

from infra.errors import InfraError, NotAvailable
from infra.process import ServerProcess, free_port

NAME = "postgres"
MINIMUM_MAJOR = 13
_USER = "shredlake"
_SYSTEM_USERS = ("postgres", "nobody")


class Postgres:
    """A PostgreSQL server under `<data>/postgres`.

    Args:
        data: the folder of all servers; when run as root it must be reachable for another user.
    """

    def __init__(self, data: Path) -> None:
        self.folder = data / NAME
        self.process = ServerProcess(self.folder, "PostgreSQL")
        self._cluster = self.folder / "cluster"
        self._facts = self.folder / "facts.json"

    def start(self) -> dict[str, str]:
        """Starts it, making the cluster first where there is none; returns how to reach it.

        Raises:
            NotAvailable: no server binaries on this machine, and they cannot be installed.
            InfraError: it does not come up.
        """
        programs = find_programs()
        make_reachable(self.folder)
        if not self._facts.exists():
            self._facts.touch(mode=0o600)
            facts = {"port": free_port(), "password": secrets.token_urlsafe(16)}
            self._facts.write_text(json.dumps(facts))
        if not (self._cluster / "PG_VERSION").exists():
            self._initialise(programs)
        facts = json.loads(self._facts.read_text())
        command = [
            *_as_system_user(),
            programs / "postgres",
            *("-D", self._cluster, "-p", str(facts["port"]), "-k", self.folder),
            *("-c", "listen_addresses=127.0.0.1", "-c", "max_connections=60"),
        ]
        self.process.start(command)
        self.process.wait_until(lambda: self._is_ready(programs))
        return self.address()

    def address(self) -> dict[str, str]:
        """`POSTGRES_DSN`, with the password of this folder."""
        facts = json.loads(self._facts.read_text())
        dsn = f"postgresql://{_USER}:{quote(facts['password'])}@127.0.0.1:{facts['port']}/postgres"
        return {"POSTGRES_DSN": dsn}

    def stop(self) -> None:
        """A fast shutdown: open transactions are rolled back."""
        self.process.stop(signal.SIGINT)

    def _is_ready(self, programs: Path) -> bool:
        port = str(json.loads(self._facts.read_text())["port"])
        done = subprocess.run(
            [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", port], check=False, timeout=10
        )
        return done.returncode == 0

    def _initialise(self, programs: Path) -> None:
        facts = json.loads(self._facts.read_text())
        password = self.folder / "password"
        password.touch(mode=0o600)
        password.write_text(facts["password"])
        owner = _owner()
        if owner is not None:
            for path in (self.folder, password):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        try:
            done = subprocess.run(
                [
                    *(str(part) for part in _as_system_user()),
                    programs / "initdb",
                    *("-D", self._cluster, "-U", _USER, "--auth=scram-sha-256", "--encoding=UTF8"),
                    *("--locale=C", f"--pwfile={password}"),
                ],
                capture_output=True,
                text=True,
                check=False,
                cwd="/",
            )
        finally:
            password.unlink()
        if done.returncode:
            raise InfraError(
                f"initdb failed in {self.folder}; as root the folder must be reachable for the system user "
                f"{owner.pw_name if owner else ''}:\n{done.stderr[-800:]}"
            )


def make_reachable(folder: Path) -> None:
    """Makes a folder and those missing above it, so that another user gets through under any umask."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        one.chmod(0o711)


def find_programs() -> Path:
    """The folder of PostgreSQL's programs; installs Debian's package where that is possible.

    Raises:
        NotAvailable: says what to install.
    """
    found = _installed()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _install()
        found = _installed()
    if found is None:
        raise NotAvailable("PostgreSQL: install the package `postgresql` (13 or newer)")
    return found


def _installed() -> Path | None:
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    for folder in [*homes, *([Path(on_path).resolve().parent] if on_path else [])]:
        if (
            (folder / "initdb").exists()
            and (folder / "postgres").exists()
            and _major(folder) >= MINIMUM_MAJOR
        ):
            return folder
    return None


def _major(folder: Path) -> int:
    done = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[2].split(".")[0])


def _install() -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "postgresql"]
    for command in (["apt-get", "update", "-q"], install):
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=600
        )
        if done.returncode:
            return


def _owner() -> pwd.struct_passwd | None:
    """The system user that root hands the server to; None where we are not root."""
    if os.geteuid() != 0:
        return None
    for name in _SYSTEM_USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NotAvailable("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody`")


def _as_system_user() -> list[str]:
    owner = _owner()
    if owner is None:
        return []
    ids = [f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
    return ["setpriv", *ids, "--"]
