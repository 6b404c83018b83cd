"""Namespaces: the community server has none and ignores the header, so its audit log is asked what it was sent."""

from __future__ import annotations

from pathlib import Path

from attrs import evolve

from infra.vault import Vault
from infra.vault.setup import make_keys
from keys.transit import TransitCustodian
from keys.vaultsession import VaultSession
from tests.keys.servers import role_login, schema_of, server_of


def test_every_request_names_the_namespace(vault: Vault, tmp_path: Path) -> None:
    """The log-in and each kind of call; without the setting nothing does."""
    admin = vault.client()
    admin.adapter.post("/v1/sys/config/auditing/request-headers/X-Vault-Namespace", json={"hmac": False})
    make_keys(admin, schema_of(tmp_path))
    log = vault.folder / "audit.log"
    for namespace in ("team-a/lakes", None):
        before = log.stat().st_size
        server = evolve(server_of(vault), namespace=namespace)
        custodian = TransitCustodian(VaultSession(server, role_login(vault, "purge")))
        (wrapped,) = custodian.wrap([(b"context", bytes(32))])
        custodian.unwrap([(b"context", wrapped)])
        custodian.status()
        with log.open() as file:
            file.seek(before)
            requests = [line for line in file if '"type":"request"' in line]
        named = [line for line in requests if '"x-vault-namespace":["team-a/lakes"]' in line]
        assert len(requests) >= 4
        assert named == (requests if namespace else [])
