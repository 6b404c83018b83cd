"""HashiCorp Vault or OpenBao on raft storage and loopback TLS, set up for Shredlake.

The binary comes from `VAULT_BIN`, the cache, `bao` or `vault` on the PATH, or is built from Vault's
published Go module (about seven minutes, once; licence BUSL-1.1: for tests here, never to hand on).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import hvac
import requests

from infra.cache import cache_folder
from infra.errors import InfraError, NotAvailable
from infra.gomodules import program
from infra.process import ServerProcess, free_port
from infra.tls import make_certificates
from infra.vault.setup import set_up

NAME = "vault"
VERSION = "1.21.2"
_MODULE = Path(__file__).parent / "module"
_CONFIG = """\
storage "raft" {{
  path                   = "{folder}/raft"
  node_id                = "one"
  performance_multiplier = 1
}}
listener "tcp" {{
  address         = "127.0.0.1:{port}"
  cluster_address = "127.0.0.1:{cluster_port}"
  tls_cert_file   = "{folder}/server.pem"
  tls_key_file    = "{folder}/server.key"
}}
api_addr      = "https://127.0.0.1:{port}"
cluster_addr  = "https://127.0.0.1:{cluster_port}"
disable_mlock = true
"""


class Vault:
    """A Vault or OpenBao server under `<data>/vault`.

    Args:
        data: the folder of all servers.
        prepared: False leaves it as an administrator finds a new one, without engines and roles.
    """

    def __init__(self, data: Path, *, prepared: bool = True) -> None:
        self.folder = data / NAME
        self._prepared = prepared
        self.process = ServerProcess(self.folder, "Vault")
        self._config = self.folder / "vault.hcl"
        self._init = self.folder / "init.json"
        self._port = self.folder / "port"

    def start(self) -> dict[str, str]:
        """Starts, initialises where it is new, unseals, sets up; returns how to reach it.

        Raises:
            NotAvailable: no binary, and it cannot be built here.
            InfraError: it does not come up.
        """
        binary = find_binary()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._config.exists():
            (self.folder / "raft").mkdir(exist_ok=True)
            make_certificates(self.folder)
            port = free_port()
            self._port.write_text(str(port))
            text = _CONFIG.format(folder=self.folder.resolve(), port=port, cluster_port=free_port())
            self._config.write_text(text)
        self.process.start([binary, "server", f"-config={self._config.resolve()}"])
        found = self.resume()
        if self._prepared:
            set_up(self.client(), self.folder)
        return found

    def resume(self) -> dict[str, str]:
        """Unseals one that runs, where it is sealed; returns how to reach it. Raises `InfraError`."""
        self.process.wait_until(self._answers)
        self.unseal()
        client = self.client()
        self.process.wait_until(lambda: _is_active(client))
        return self.address()

    def address(self) -> dict[str, str]:
        """`VAULT_ADDR`, `VAULT_CACERT`, and the folder with each role's log-in."""
        return {
            "VAULT_ADDR": f"https://127.0.0.1:{self._port.read_text()}",
            "VAULT_CACERT": str(self.folder / "ca.pem"),
            "VAULT_ROLES": str(self.folder / "roles"),
        }

    def client(self, token: str | None = None) -> hvac.Client:
        """A client; of the server's root token where no other is given."""
        if token is None:
            token = str(self._secrets()["root_token"])
        where = self.address()
        return hvac.Client(where["VAULT_ADDR"], token=token, verify=where["VAULT_CACERT"], timeout=10)

    def unseal(self) -> None:
        """Initialises a new server, then unseals it with its one key."""
        client = hvac.Client(self.address()["VAULT_ADDR"], verify=str(self.folder / "ca.pem"), timeout=30)
        if not client.sys.is_initialized():
            self._init.touch(mode=0o600)
            self._init.write_text(json.dumps(client.sys.initialize(secret_shares=1, secret_threshold=1)))
        if client.sys.is_sealed():
            client.sys.submit_unseal_key(self._secrets()["keys"][0])

    def seal(self) -> None:
        """Seals it: everything is refused until `unseal`."""
        self.client().sys.seal()

    def unseal_keys(self) -> list[str]:
        """What unseals it, and whoever its snapshot is restored in."""
        return list(self._secrets()["keys"])

    def stop(self) -> None:
        """Stops it cleanly; it is sealed at the next start until unsealed."""
        self.process.stop()

    def _secrets(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._init.read_text())
        return found

    def _answers(self) -> bool:
        where = self.address()
        try:
            requests.get(f"{where['VAULT_ADDR']}/v1/sys/health", verify=where["VAULT_CACERT"], timeout=2)
        except requests.RequestException:
            return False
        return True


def find_binary() -> Path:
    """The server's program; built where there is none. The cache goes before the PATH: its version is ours.

    Raises:
        NotAvailable: says what to install, or that what was found is no Vault or OpenBao.
    """
    chosen = os.environ.get("VAULT_BIN")
    if chosen:
        return _checked(Path(chosen))
    if not (cache_folder() / f"{NAME}-{VERSION}").exists():
        for name in ("bao", "vault"):
            found = shutil.which(name)
            if found:
                return _checked(Path(found))
    return program(NAME, VERSION, _MODULE, flags=["-tags", "minimal"])


def _checked(binary: Path) -> Path:
    """A program that was not built here, and says that it is one of the two."""
    try:
        told = subprocess.run(
            [binary, "version"], capture_output=True, text=True, check=False, timeout=60
        ).stdout
    except OSError as error:
        raise NotAvailable(f"{binary} cannot be run: {error.strerror}") from None
    if not re.match(r"(Vault|OpenBao) v\d+\.\d+", told):
        raise NotAvailable(f"{binary} is neither Vault nor OpenBao; correct VAULT_BIN or the PATH")
    return binary


def _is_active(client: hvac.Client) -> bool:
    try:
        answer = client.adapter.get("/v1/sys/leader")
    except (requests.RequestException, hvac.exceptions.VaultError):
        return False
    if answer.get("is_self") is True:
        return True
    if "ha_enabled" in answer and not answer["ha_enabled"]:
        raise InfraError("Vault runs without raft; remove its folder and start again")
    return False
