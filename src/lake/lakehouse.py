"""The lake as one object: event types, the events table, ingest and replay over one folder."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from pyiceberg.catalog import Catalog

from keys import Effects, Keyring
from lake.catalog import open_local_catalog
from lake.events import EVENTS_PROPERTIES, EVENTS_SCHEMA, EVENTS_SPEC, EVENTS_TABLE
from lake.ingest import Ingestor
from lake.replay import Replay
from lake.table import IcebergTable
from lake.topicbook import TopicBook
from lake.typeregistry import TypeRegistry


class Lake:
    """Everything that reads or writes events.

    Args:
        catalog: keeps the heads of all tables.
        types_folder: where event types are registered.
        keyring: seals and opens.
        effects: the gate of durable effects.
        clock: gives `ingested_at`.

    Attributes:
        topics: the Kafka topics that feed it.
    """

    def __init__(
        self,
        catalog: Catalog,
        types_folder: Path,
        keyring: Keyring,
        effects: Effects,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.catalog = catalog
        self.keyring = keyring
        self.effects = effects
        self.clock = clock
        self.types = TypeRegistry(types_folder)
        self.topics = TopicBook(types_folder.parent / "topics.db")
        self.events = _events_table(catalog, effects)

    def ingestor(self) -> Ingestor:
        """A writer with a session of its own."""
        return Ingestor(self.events, self.keyring, self.types, self.clock)

    def replay(self) -> Replay:
        """A reader with an opener of its own."""
        return Replay(self.events, self.keyring, self.types)


def open_local_lake(
    home: Path,
    keyring: Keyring,
    effects: Effects | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Lake:
    """The embedded lake of a folder: SQLite catalog, local warehouse."""
    return Lake(open_local_catalog(home), home / "types", keyring, effects or Effects(), clock)


def open_local_events(home: Path, effects: Effects | None = None) -> tuple[IcebergTable, TypeRegistry]:
    """The events table and the event types of a folder, for a writer that holds no keys."""
    return _events_table(open_local_catalog(home), effects or Effects()), TypeRegistry(home / "types")


def _events_table(catalog: Catalog, effects: Effects) -> IcebergTable:
    return IcebergTable.create(catalog, EVENTS_TABLE, EVENTS_SCHEMA, EVENTS_PROPERTIES, EVENTS_SPEC, effects)
