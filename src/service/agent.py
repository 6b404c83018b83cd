"""The key agent of a host as a service, and the ingest that works through it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from keys import Keyring, LeaseBook, WritingKeys
from keys.agentclient import AgentLink, BuildKeys, IngestKeys
from keys.agentserver import AgentServer, KeyAgent, make_tokens
from keys.hardening import harden
from lake import IcebergTable, Ingestor, TypeRegistry, open_events
from service.errors import NotInitialised
from service.keyplaces import seal_rule
from service.lakeplace import lake_place
from service.settings import load_settings


def socket_of(home: Path) -> Path:
    """Where a lake's agent listens."""
    return home / "agent" / "agent.sock"


def serve_agent(home: Path, keyring: Keyring, ready: Callable[[dict[str, bool]], None]) -> dict[str, int]:
    """Serves until SIGTERM or SIGINT; returns what was handed out, in counts.

    Args:
        ready: called once the socket listens, with what `harden` achieved.
    """
    agent = KeyAgent(keyring, make_tokens(home / "agent"))
    hardened = harden()
    with AgentServer(socket_of(home), agent) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            # `shutdown` waits for the loop that this very handler interrupts, so another thread asks.
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        ready(hardened)
        server.serve_forever(poll_interval=0.1)
    socket_of(home).unlink(missing_ok=True)
    return dict(agent.handed_out)


@contextmanager
def agent_ingestor(home: Path) -> Iterator[tuple[TypeRegistry, Ingestor]]:
    """(event types, an ingestor whose keys stay with the agent). Raises as `agent_writer`."""
    with agent_writer(home) as (types, events, keys):
        yield types, Ingestor(events, keys, types, lambda: datetime.now(UTC))


@contextmanager
def agent_writer(home: Path) -> Iterator[tuple[TypeRegistry, IcebergTable, WritingKeys]]:
    """(event types, the events table, keys that stay with the agent): this process can seal and open nothing.

    Raises:
        NotInitialised: no lake, or its agent never ran.
    """
    leases, settings = _lease_book(home), load_settings(home)
    link = AgentLink(socket_of(home), {"token": _token(home, "ingest")})
    keys = IngestKeys(link, leases, seal_rule(settings.keys))
    try:
        events, types = open_events(home / "lake", place=lake_place(settings.lake))
        yield types, events, keys
    finally:
        keys.close()
        leases.close()


def build_lease(home: Path) -> bytes:
    """What a build gives its workers instead of the token; dead with the next erasure.

    Raises:
        NotInitialised, AgentUnavailable: see `agent_writer`.
    """
    coordinator = BuildKeys(AgentLink(socket_of(home), {"token": _token(home, "build")}), _lease_book(home))
    try:
        return coordinator.lease_for_workers()
    finally:
        coordinator.close()


def build_keys(home: Path, lease: bytes) -> BuildKeys:
    """A build worker's keys, by a lease alone."""
    return BuildKeys(AgentLink(socket_of(home), {"lease": lease}), _lease_book(home), lease)


def _lease_book(home: Path) -> LeaseBook:
    return LeaseBook(home / "keys" / "leases.db")


def _token(home: Path, role: str) -> str:
    path = home / "agent" / f"{role}.token"
    if not path.exists():
        raise NotInitialised(
            f"no key agent ever ran for the lake in {home}", next_step="Start it: `shredlake keys agent`."
        )
    return path.read_text().strip()
