"""Where a lake's root and key pages are, by its settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from keys import Custodian, KeyPlaces, PageStore, SealRule, embedded_places
from keys.envelope import CIPHERS
from purge import Assurance
from service.errors import BadSettings
from service.settings import Keys, Vault, VaultLogin

if TYPE_CHECKING:
    from keys.vaultsession import Login, VaultSession

VaultRole = Literal["purge", "agent", "auditor"]
"""Whose policy a process needs: of everything, of wrapping and unwrapping alone, of looking alone."""


def key_places(home: Path, settings: Keys, role: VaultRole = "purge", *, create: bool = False) -> KeyPlaces:
    """Embedded by default; each of the two can be a server.

    Args:
        role: whose log-in the custodian is used with.
        create: makes an embedded root where there is none; a lake's first opening alone may.
    """
    embedded = embedded_places(home / "keys", create=create)

    def custodian() -> Custodian:
        if settings.vault is None:
            return embedded.custodian()
        from keys.transit import TransitCustodian

        vault = settings.vault
        return TransitCustodian(vault_session(vault, role), vault.mount, vault.prefix)

    def pages() -> PageStore:
        if settings.page_store is None:
            return embedded.pages()
        try:
            from keys.postgresstore import PostgresPageStore
        except ImportError:
            raise BadSettings(
                "keys.page_store needs psycopg", next_step="Install `shredlake[postgres]`."
            ) from None
        return PostgresPageStore(settings.page_store.get_secret_value(), settings.page_schema)

    return KeyPlaces(custodian, pages)


def seal_rule(settings: Keys) -> SealRule:
    """How values are sealed."""
    return SealRule(CIPHERS[settings.cipher], settings.padding)


def vault_session(settings: Vault, role: VaultRole = "purge") -> VaultSession:
    """A session with the log-in that the settings name for a role, or for everything.

    Raises:
        BadSettings: hvac is not installed, or a file that the log-in needs is not named.
    """
    try:
        from keys.vaultsession import VaultServer, VaultSession
    except ImportError:
        raise BadSettings("keys.vault needs hvac", next_step="Install `shredlake[vault]`.") from None
    server = VaultServer(settings.address, settings.ca_file, settings.namespace, settings.timeout_seconds)
    own = {"agent": settings.agent, "auditor": settings.auditor}.get(role)
    if own is None:
        return VaultSession(server, _login(settings, "keys.vault"))
    return VaultSession(server, _login(own, f"keys.vault.{role}"))


def assurance(settings: Keys) -> Assurance:
    """What receipts may say about the custodian's copies."""
    if settings.vault is None:
        return Assurance("root key file")
    return Assurance("transit engine", settings.vault.snapshot_horizon_days)


def _login(settings: VaultLogin, section: str) -> Login:
    from keys.vaultsession import AppRole, Jwt, TokenFile

    def needed(name: str) -> Path:
        path: Path | None = getattr(settings, name)
        if path is None:
            raise BadSettings(f"{section}.auth = {settings.auth!r} needs {section}.{name}")
        return path

    if settings.auth == "token_file":
        return TokenFile(needed("token_file"))
    mount = settings.auth_mount or settings.auth
    if settings.auth == "approle":
        return AppRole(needed("role_id_file"), needed("secret_id_file"), mount)
    if settings.role is None:
        raise BadSettings(f"{section}.auth = {settings.auth!r} needs {section}.role")
    return Jwt(settings.role, needed("jwt_file"), mount)
