"""Where a lake's tables are and how it takes events, by its settings."""

from __future__ import annotations

from lake import IntakeRule, WarehousePlace
from service.errors import BadSettings
from service.settings import Ingest, Lake


def lake_place(settings: Lake) -> WarehousePlace:
    """Raises `BadSettings` when the catalog needs an address and has none."""
    if settings.catalog == "rest" and settings.uri is None:
        raise BadSettings('lake.catalog = "rest" needs lake.uri')
    uri = settings.uri.get_secret_value() if settings.uri is not None else None
    properties = {name: value.get_secret_value() for name, value in settings.properties.items()}
    return WarehousePlace(settings.catalog, uri, settings.catalog_name, settings.warehouse, properties)


def intake_rule(settings: Ingest) -> IntakeRule:
    """How much may wait of what comes over HTTP, and when it is committed."""
    return IntakeRule(
        commit_seconds=settings.commit_seconds,
        commit_events=settings.commit_events,
        commit_bytes=settings.commit_bytes,
        queue_events=settings.queue_events,
        queue_bytes=settings.queue_bytes,
        idempotency_hours=settings.idempotency_hours,
        key_seconds=settings.key_seconds,
    )
