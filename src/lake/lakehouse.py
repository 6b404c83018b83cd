"""The lake as one object: event types, the events table, ingest and replay over one folder."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from keys import Effects, Keyring
from lake.consumerbook import open_consumer_book
from lake.events import EVENTS_PROPERTIES, EVENTS_SCHEMA, EVENTS_SPEC, EVENTS_TABLE
from lake.ingest import Ingestor
from lake.intake import Intake, IntakeRule
from lake.replay import Replay
from lake.table import IcebergTable
from lake.topicbook import TopicBook
from lake.typeregistry import TypeRegistry
from lake.warehouse import EMBEDDED, Warehouse, WarehousePlace, open_warehouse


class Lake:
    """Everything that reads or writes events.

    Args:
        warehouse: keeps all tables.
        types_folder: where event types are registered.
        keyring: seals and opens.
        effects: the gate of durable effects.
        clock: gives `ingested_at`.
        intake_rule: of what comes over HTTP.

    Attributes:
        topics: the Kafka topics that feed it.
        consumers: what their consumers say of themselves.
        intake: what came over HTTP and waits to be committed.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        types_folder: Path,
        keyring: Keyring,
        effects: Effects,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        intake_rule: IntakeRule | None = None,
    ) -> None:
        self.warehouse = warehouse
        self.keyring = keyring
        self.effects = effects
        self.clock = clock
        self.types = TypeRegistry(types_folder)
        self.topics = TopicBook(types_folder.parent / "topics.db")
        self.consumers = open_consumer_book(types_folder.parent)
        self.events = _events_table(warehouse)
        rule = intake_rule or IntakeRule()
        self.intake = Intake(types_folder.parent, keyring, self.types, self.ingestor, effects, rule)

    def close(self) -> None:
        """Closes the databases of its own."""
        self.topics.close()
        self.consumers.close()
        self.intake.close()

    def ingestor(self) -> Ingestor:
        """A writer with a session of its own."""
        return Ingestor(self.events, self.keyring, self.types, self.clock, self.intake.asides.of)

    def replay(self) -> Replay:
        """A reader with an opener of its own."""
        return Replay(self.events, self.keyring, self.types)


def open_lake(
    home: Path,
    keyring: Keyring,
    effects: Effects | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    place: WarehousePlace = EMBEDDED,
    intake_rule: IntakeRule | None = None,
) -> Lake:
    """The lake of a folder.

    Args:
        place: where its tables are; default: SQLite catalog and files in the folder.
        intake_rule: how much may wait of what comes over HTTP, and when it is committed.

    Raises:
        StorageUnsuitable, CatalogUnavailable, CatalogRefused, StorageFailed: see there.
    """
    effects = effects or Effects()
    warehouse = open_warehouse(home, place, effects)
    return Lake(warehouse, home / "types", keyring, effects, clock, intake_rule)


def open_events(
    home: Path, effects: Effects | None = None, place: WarehousePlace = EMBEDDED
) -> tuple[IcebergTable, TypeRegistry]:
    """The events table and the event types of a folder, for a writer that holds no keys."""
    return _events_table(open_warehouse(home, place, effects or Effects())), TypeRegistry(home / "types")


def _events_table(warehouse: Warehouse) -> IcebergTable:
    return warehouse.create(EVENTS_TABLE, EVENTS_SCHEMA, EVENTS_PROPERTIES, EVENTS_SPEC)
