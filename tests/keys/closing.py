"""A lake's keys on a real Vault and PostgreSQL, and processes that close its epochs and can be killed."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.postgres import Postgres
from infra.vault import Vault
from infra.vault.setup import set_up
from keys import Effects, KeyPlaces, Keyring, LeaseExpired, Provisioned, SubjectId, open_keys
from keys.pagestore import PageWriter
from keys.postgresstore import PostgresPageStore
from keys.transit import TransitCustodian
from keys.vaultsession import AppRole, VaultServer, VaultSession
from tests.crash.crashing import Killer
from tests.keys.people import BLOCK, context
from tests.keys.servers import schema_of

Places = dict[str, str]
"""Where it is, for another process."""


def places_of(vault: Vault, postgres: Postgres, folder: Path) -> Places:
    """Keys, roles and a schema of their own."""
    name, where = schema_of(folder), vault.address()
    set_up(vault.client(), vault.folder / name, name)
    return {
        "home": str(folder / "keys"),
        "dsn": postgres.address()["POSTGRES_DSN"],
        "name": name,
        "address": where["VAULT_ADDR"],
        "ca": where["VAULT_CACERT"],
        "role": str(vault.folder / name / "roles" / "purge"),
    }


class GatedSession(VaultSession):
    """Tells of every request before and after it."""

    def __init__(self, server: VaultServer, login: AppRole, effects: Effects) -> None:
        super().__init__(server, login)
        self._effects = effects

    def call(self, method: Any, path: str, *rest: Any, **more: Any) -> dict[str, Any]:
        """See there."""
        with self._effects(f"{method} {path}"):
            return super().call(method, path, *rest, **more)


class GatedStore(PostgresPageStore):
    """Tells of every commit before and after it."""

    def __init__(self, dsn: str, schema: str, effects: Effects) -> None:
        self._effects = effects
        super().__init__(dsn, schema)

    @contextmanager
    def transaction(self) -> Iterator[PageWriter]:
        """See there."""
        opened = super().transaction()
        writer = opened.__enter__()
        try:
            yield writer
        except BaseException:
            opened.__exit__(*sys.exc_info())
            raise
        with self._effects("commit"):
            opened.__exit__(None, None, None)


def custodian_of(places: Places, effects: Effects | None = None) -> TransitCustodian:
    """The root, by the purge role's log-in."""
    role, server = Path(places["role"]), VaultServer(places["address"], Path(places["ca"]))
    session = GatedSession(server, AppRole(role / "role_id", role / "secret_id"), effects or Effects())
    return TransitCustodian(session, prefix=places["name"])


def open_there(places: Places, effects: Effects | None = None) -> Keyring:
    """The keyring of these places; its requests and commits pass the gate."""
    gate = effects or Effects()
    found = KeyPlaces(
        lambda: custodian_of(places, gate), lambda: GatedStore(places["dsn"], places["name"], gate)
    )
    return open_keys(found, Path(places["home"]))


def close_epoch(places: Places, kill_at: int | None, said: Any) -> None:
    """Closes an epoch with a killer before one of its requests and commits; tells how many there were if it lives."""
    killer = Killer(kill_at, "before")
    keyring = open_there(places, Effects(killer))
    killer.count = 0
    closed = keyring.close_epoch()
    said.put((killer.count, closed.old_wrap_refused))


def write_on(keyring: Keyring, number: int, known: list[tuple[bytes, bytes]]) -> None:
    """A new person gets a key, something is sealed and opened."""
    name = SubjectId(f"newcomer-{os.getpid()}-{number}")
    ref = next(made.ref for made in keyring.provision([name]) if isinstance(made, Provisioned))
    (sealed,) = keyring.session().seal(context(), [ref], [BLOCK], [ref])
    assert isinstance(sealed, bytes)
    assert keyring.opener().open(context(), [ref], [BLOCK], [sealed]) == [ref]


def read_on(keyring: Keyring, number: int, known: list[tuple[bytes, bytes]]) -> None:
    """Everybody known opens, by keys that are fetched anew: pages, nodes and the root are asked."""
    keyring.tree.forget_cached()
    keyring.resident.forget_all()
    refs, envelopes = [ref for ref, _ in known], [sealed for _, sealed in known]
    assert keyring.opener().open(context(), refs, [BLOCK] * len(refs), envelopes) == refs


def work(
    places: Places, job: Any, known: list[tuple[bytes, bytes]], turns: Any, ends: Any, said: Any
) -> None:
    """Does a job over and over until it is to end; tells (moment, seconds) of each turn, and the error.

    Args:
        turns: counts them for whoever watches.
    """
    took: list[tuple[float, float]] = []
    keyring, error = open_there(places), ""
    try:
        while not ends.is_set():
            began = time.monotonic()
            try:
                job(keyring, len(took), known)
            except LeaseExpired:
                continue  # the machine let us sleep for seconds: by design, and to be repeated
            took.append((began, time.monotonic() - began))
            turns.value += 1
    except Exception:
        error = traceback.format_exc()
    said.put((job.__name__, took, error))


class Town:
    """People, what was sealed of them, and who of them was erased."""

    def __init__(self) -> None:
        self._count = 0
        self.living: dict[bytes, bytes] = {}
        self.erased: dict[bytes, bytes] = {}

    def grow(self, keyring: Keyring, people: int) -> None:
        """So many more, each with something sealed."""
        names = [SubjectId(f"person-{self._count + n}") for n in range(people)]
        self._count += people
        refs = [made.ref for made in keyring.provision(names) if isinstance(made, Provisioned)]
        for ref in refs:
            (sealed,) = keyring.session().seal(context(), [ref], [BLOCK], [ref])
            assert isinstance(sealed, bytes)
            self.living[ref] = sealed

    def erase_one(self, keyring: Keyring) -> None:
        """Whoever has lived longest."""
        ref = next(iter(self.living))
        fences = keyring.fence([(SubjectId(f"person-{len(self.erased)}"), ref)], f"r{keyring.epoch()}")
        keyring.destroy([ref], fences)
        self.erased[ref] = self.living.pop(ref)

    def opened(self, keyring: Keyring) -> int:
        """How many living people open to what was sealed; all at once."""
        refs = list(self.living)
        bodies = keyring.opener().open(context(), refs, [BLOCK] * len(refs), list(self.living.values()))
        return sum(body == ref for body, ref in zip(bodies, refs, strict=True))
