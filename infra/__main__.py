"""`python -m infra`: gets, starts, shows and stops real servers."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from infra.errors import InfraError
from infra.servers import PROGRAMS, SERVERS, Server, get
from infra.vault.setup import PREFIX

_DEFAULT_DATA = Path(tempfile.gettempdir()) / "shredlake-servers"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "get": "get the servers' programs into the cache without starting anything",
        "up": "start servers and print how to reach them",
        "status": "show which servers run",
        "down": "stop servers; their data stays",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "names", nargs="*", help=f"of: {', '.join(SERVERS)} (default: all), spark for get"
        )
        command.add_argument("--data", type=Path, default=_DEFAULT_DATA, help="folder of their data and logs")
        command.add_argument("--output", choices=["env", "json"], default="env")
    setup = commands.add_parser("vault-setup", help="set a Vault of your own up (VAULT_ADDR, VAULT_TOKEN)")
    setup.add_argument("--data", type=Path, default=Path("vault-roles"), help="folder for the roles' log-ins")
    setup.add_argument("--prefix", default=PREFIX, help="of this lake's keys and roles (keys.vault.prefix)")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "vault-setup":
            return _vault_setup(chosen.data, chosen.prefix)
        known = PROGRAMS if chosen.command == "get" else SERVERS
        names = chosen.names or list(known)
        unknown = set(names) - set(known)
        if unknown:
            parser.error(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        run: dict[str, Callable[[], dict[str, str]]] = {
            "get": lambda: {name: str(get(name)) for name in names},
            "up": lambda: _up(names, chosen.data),
            "status": lambda: _status(names, chosen.data),
            "down": lambda: _down(names, chosen.data),
        }
        _print(run[chosen.command](), chosen.output)
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _up(names: Sequence[str], data: Path) -> dict[str, str]:
    data.mkdir(parents=True, exist_ok=True, mode=0o755)
    reached: dict[str, str] = {}
    for name in names:
        server = SERVERS[name](data)
        reached |= _resumed(server) if server.process.pid is not None else _started(server)
        sys.stderr.write(f"{name}: up, data and log in {server.folder}\n")
    return reached


def _resumed(server: Server) -> dict[str, str]:
    """How to reach one that runs; a Vault that somebody has sealed is unsealed."""
    resume: Callable[[], dict[str, str]] = getattr(server, "resume", server.address)
    return resume()


def _started(server: Server) -> dict[str, str]:
    try:
        return server.start()
    except BaseException:
        server.stop()  # else the next `up` would take a half-made server for a running one
        raise


def _status(names: Sequence[str], data: Path) -> dict[str, str]:
    pids = {name: SERVERS[name](data).process.pid for name in names}
    return {name: f"running, pid {pid}" if pid else "stopped" for name, pid in pids.items()}


def _down(names: Sequence[str], data: Path) -> dict[str, str]:
    for name in names:
        SERVERS[name](data).stop()
    return _status(names, data)


def _vault_setup(data: Path, prefix: str) -> int:
    import hvac

    from infra.vault.setup import set_up

    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    set_up(hvac.Client(verify=os.environ.get("VAULT_CACERT", True)), data, prefix)
    sys.stderr.write(f"the log-in of each role is in {data / 'roles'}\n")
    return 0


def _print(values: dict[str, str], output: str) -> None:
    if output == "json":
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    for name, value in values.items():
        sys.stdout.write(f"export {name}={value}\n" if name.isupper() else f"{name}: {value}\n")


if __name__ == "__main__":
    sys.exit(main())
