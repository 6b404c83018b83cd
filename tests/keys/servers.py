"""Sessions on the real servers."""

from __future__ import annotations

import hashlib
from pathlib import Path

from infra.vault import Vault
from keys.vaultsession import AppRole, Login, TokenFile, VaultServer, VaultSession


def schema_of(folder: Path) -> str:
    """A name for what a folder would hold on an embedded store."""
    return "t_" + hashlib.sha256(str(folder).encode()).hexdigest()[:16]


def server_of(vault: Vault) -> VaultServer:
    """Where it is, with its private authority."""
    where = vault.address()
    return VaultServer(where["VAULT_ADDR"], Path(where["VAULT_CACERT"]), timeout_seconds=5)


def role_login(vault: Vault, role: str) -> Login:
    """A role's AppRole."""
    folder = vault.folder / "roles" / role
    return AppRole(folder / "role_id", folder / "secret_id")


def role_session(vault: Vault, role: str) -> VaultSession:
    """A session as one of the roles."""
    return VaultSession(server_of(vault), role_login(vault, role))


def admin_session(vault: Vault) -> VaultSession:
    """A session that may do everything."""
    path = vault.folder / "admin-token"
    path.touch(mode=0o600)
    path.write_text(vault.client().token)
    return VaultSession(server_of(vault), TokenFile(path))
