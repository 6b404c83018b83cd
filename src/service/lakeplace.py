"""Where a lake's tables are, by its settings."""

from __future__ import annotations

from lake import WarehousePlace
from service.errors import BadSettings
from service.settings import Lake


def lake_place(settings: Lake) -> WarehousePlace:
    """Raises `BadSettings` when the catalog needs an address and has none."""
    if settings.catalog == "rest" and settings.uri is None:
        raise BadSettings('lake.catalog = "rest" needs lake.uri')
    uri = settings.uri.get_secret_value() if settings.uri is not None else None
    properties = {name: value.get_secret_value() for name, value in settings.properties.items()}
    return WarehousePlace(settings.catalog, uri, settings.catalog_name, settings.warehouse, properties)
