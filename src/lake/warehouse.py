"""A catalog and the place that its tables lie at, as one."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import field, frozen
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC, PartitionSpec
from pyiceberg.schema import Schema

from keys import Effects
from lake.catalog import CatalogKind, catalog_errors, open_catalog
from lake.errors import StorageUnsuitable
from lake.objects import ObjectStore, open_objects, storage_errors
from lake.table import IcebergTable


@frozen
class WarehousePlace:
    """Which catalog, and where the files are; both are in the lake's own folder where nothing is named.

    Attributes:
        kind: of the catalog.
        uri: of the catalog; may hold a password.
        name: see `open_catalog`.
        root: `file:///folder` or `s3://bucket/prefix`.
        properties: of pyiceberg's catalog and file access; may hold secrets.
    """

    kind: CatalogKind = "sql"
    uri: str | None = field(default=None, repr=False)
    name: str = "shredlake"
    root: str | None = None
    properties: Mapping[str, str] = field(factory=dict, repr=False)


EMBEDDED: Final = WarehousePlace()
VIEWS_NAMESPACE: Final = "views"
"""Where the tables of views are."""


class Warehouse:
    """Makes and opens tables.

    Args:
        catalog: keeps their heads.
        objects: keeps their files.
        effects: the gate of durable effects.
    """

    def __init__(self, catalog: Catalog, objects: ObjectStore, effects: Effects) -> None:
        self.catalog = catalog
        self.objects = objects
        self._effects = effects

    def create(
        self,
        identifier: str,
        schema: Schema,
        properties: Mapping[str, str],
        spec: PartitionSpec = UNPARTITIONED_PARTITION_SPEC,
    ) -> IcebergTable:
        """The table; made where it is not there yet.

        Raises:
            CatalogUnavailable, CatalogRefused, StorageFailed: see there.
            StorageUnsuitable: the catalog has the table at another place.
        """
        location = self._location(identifier)
        table = self.table(identifier)
        with storage_errors(), catalog_errors():
            try:
                found = self.catalog.load_table(identifier)
            except NoSuchTableError:
                with contextlib.suppress(NamespaceAlreadyExistsError):
                    self.catalog.create_namespace(identifier.rpartition(".")[0])
                with contextlib.suppress(TableAlreadyExistsError):  # another process may be first
                    self.catalog.create_table(
                        identifier, schema, location, partition_spec=spec, properties=dict(properties)
                    )
                found = self.catalog.load_table(identifier)
        if found.location() != location:
            raise StorageUnsuitable(
                f"the catalog has {identifier} at another place than this lake's warehouse",
                next_step="Give every lake a catalog name (`lake.catalog_name`) or a catalog of its own.",
            )
        return table

    def names(self, namespace: str) -> list[str]:
        """What the catalog has below a namespace, `namespace.name` each.

        Raises:
            CatalogUnavailable, CatalogRefused: see there.
        """
        with catalog_errors(), contextlib.suppress(NoSuchNamespaceError):
            return sorted(".".join(one) for one in self.catalog.list_tables(namespace))
        return []

    def tables(self, namespace: str) -> list[IcebergTable]:
        """Those that lie in this warehouse; a shared catalog may have others of that namespace.

        Raises:
            CatalogUnavailable, CatalogRefused, StorageFailed: see there.
        """
        found = [self.table(name) for name in self.names(namespace)]
        return [one for one in found if one.load().location() == self._location(one.identifier)]

    def _location(self, identifier: str) -> str:
        return f"{self.objects.root}/{identifier.replace('.', '/')}"

    def table(self, identifier: str) -> IcebergTable:
        """A table that `create` made."""
        return IcebergTable(self.catalog, identifier, self._effects)


def open_warehouse(home: Path, place: WarehousePlace, effects: Effects) -> Warehouse:
    """The tables of a lake whose folder is `home`.

    Raises:
        StorageUnsuitable, CatalogUnavailable, CatalogRefused: see there.
    """
    home.mkdir(parents=True, exist_ok=True)
    folder = home / "warehouse"
    if place.root is None:
        folder.mkdir(exist_ok=True)
    objects = open_objects(place.root or folder.resolve().as_uri(), place.properties)
    uri = place.uri or f"sqlite:///{home / 'catalog.db'}"
    return Warehouse(open_catalog(place.kind, uri, place.name, place.properties), objects, effects)
