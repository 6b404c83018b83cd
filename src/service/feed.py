"""What a writer of events works with: keys of its own, or those of the host's agent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from attrs import frozen

from keys import Effects, WritingKeys
from keys.agentclient import ATTEMPTS
from lake import AsideBook, IcebergTable, Ingestor, TopicBook, TypeRegistry, open_events
from service.agent import ingest_keys
from service.firstlook import look_first
from service.lakeplace import lake_place
from service.privatefiles import keep_private
from service.runtime import open_runtime
from service.settings import Settings, load_settings


@frozen
class Feed:
    """An open lake as a writer sees it.

    Attributes:
        keys: of this process, which can then do everything with them; or of the agent's ingest role, which
            names people and seals.
        ingestor: appends with these keys.
        effects: the gate of durable effects.
    """

    settings: Settings
    types: TypeRegistry
    events: IcebergTable
    topics: TopicBook
    keys: WritingKeys
    ingestor: Ingestor
    effects: Effects


@contextmanager
def open_feed(home: Path, *, agent: bool = False, agent_attempts: int = ATTEMPTS) -> Iterator[Feed]:
    """The feed of a lake.

    Args:
        agent: leave the keys with the host's agent; `keys.agent` in the settings does so as well.
        agent_attempts: see `AgentLink`; few for who waits for the agent in a way of their own.

    Raises:
        AgentUnavailable: the agent is away.
        NotInitialised: no lake, or its agent never ran.
        AgentDenied: this user may not take the ingest role.
        RestoreGateClosed: the fence log cannot be relied on; an agent has asked when it started.
    """
    settings = load_settings(home)
    if not (agent or settings.keys.agent):
        with open_runtime(home, role="agent") as runtime:
            runtime.keyring.gate().trusted()
            lake = runtime.lake
            yield Feed(
                settings, lake.types, lake.events, lake.topics, runtime.keyring, lake.ingestor(), lake.effects
            )
        return
    keep_private(settings.keys.agent_users)
    look_first(settings)
    keys = ingest_keys(home, agent_attempts)
    topics, asides = TopicBook(home / "lake" / "topics.db"), AsideBook(home / "lake" / "topics.db")
    try:
        events, types = open_events(home / "lake", place=lake_place(settings.lake))
        ingestor = Ingestor(events, keys, types, lambda: datetime.now(UTC), asides.of)
        yield Feed(settings, types, events, topics, keys, ingestor, Effects())
    finally:
        topics.close()
        asides.close()
        keys.close()
