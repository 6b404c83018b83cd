"""Asks every server of a lake once, all together, before anything is opened.

A server that is gone refuses at once. One that hangs takes a connection and says nothing, and each client
waits for it in its own way, several times over: a command would be silent for a minute or more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Final

from service.readiness import Readiness
from service.settings import Settings, Vault

FIRST_LOOK_SECONDS: Final = 3.0
_GIVEN_UP_SECONDS: Final = 5
_POSTGRES: Final = ("postgres://", "postgresql://", "postgresql+psycopg://")


def look_first(settings: Settings) -> None:
    """Does nothing where every server says anything at all, a refusal included: its client knows its words.

    Raises:
        NotAnswering: one says nothing.
    """
    needs = servers_of(settings)
    if needs:
        for error in Readiness(needs, FIRST_LOOK_SECONDS, log_changes=False).failures().values():
            raise error


def servers_of(settings: Settings) -> Mapping[str, Callable[[], None]]:
    """Every server that opening a lake asks: what returns once it has said something."""
    found: dict[str, Callable[[], None]] = {}
    vault, place = settings.keys.vault, settings.lake
    if vault is not None:
        found["the custodian"] = lambda: _get(f"{vault.address}/v1/sys/health", vault)
    if settings.keys.page_store is not None:
        pages = settings.keys.page_store.get_secret_value()
        found["the page store"] = lambda: _connect(pages)
    if place.uri is not None:
        uri = place.uri.get_secret_value()
        if place.catalog == "rest":
            found["the catalog"] = lambda: _get(f"{uri.rstrip('/')}/v1/config")
        elif uri.startswith(_POSTGRES):
            found["the catalog"] = lambda: _connect("postgresql://" + uri.split("://", 1)[1])
    endpoint = place.properties.get("s3.endpoint")
    if endpoint is not None and (place.warehouse or "").startswith("s3://"):
        found["the object store"] = lambda: _get(endpoint.get_secret_value())
    return found


def _connect(dsn: str) -> None:
    import psycopg

    with contextlib.suppress(psycopg.Error):
        psycopg.connect(dsn, connect_timeout=_GIVEN_UP_SECONDS).close()


def _get(address: str, vault: Vault | None = None) -> None:
    import requests

    verify = str(vault.ca_file) if vault is not None and vault.ca_file is not None else True
    with contextlib.suppress(OSError):  # every error of this client is one
        requests.get(address, timeout=_GIVEN_UP_SECONDS, verify=verify, stream=True).close()
