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
from lake.objects import ObjectStore, local_path, open_objects, storage_errors
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
            except FileNotFoundError as error:
                raise _lost_metadata(identifier, location, str(error)) from None
            except NoSuchTableError:
                with contextlib.suppress(NamespaceAlreadyExistsError):
                    self.catalog.create_namespace(identifier.rpartition(".")[0])
                with contextlib.suppress(TableAlreadyExistsError):  # another process may be first
                    self.catalog.create_table(
                        identifier, schema, location, partition_spec=spec, properties=dict(properties)
                    )
                found = self.catalog.load_table(identifier)
        if found.location() != location:
            raise _elsewhere(identifier, found.location(), location)
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


def _lost_metadata(identifier: str, location: str, text: str) -> StorageUnsuitable:
    """Why the metadata that the catalog names is not there.

    Args:
        text: of the error, which names the file; it is not shown.
    """
    if location.startswith("file:") and local_path(location) not in text:
        return _elsewhere(identifier, "file:", location)
    return StorageUnsuitable(
        f"the catalog names metadata of {identifier} that the warehouse lacks: they are not of one moment",
        next_step="Bring catalog (`lake/catalog.db`, or its database) and warehouse back from the same"
        " backup, the warehouse of the catalog's moment or later. Keys, fence log and journal stay.",
    )


def _elsewhere(identifier: str, has: str, wanted: str) -> StorageUnsuitable:
    if has.startswith("file:") and wanted.startswith("file:"):
        return StorageUnsuitable(
            f"the tables of this lake were made at another path than its folder has now: the catalog has"
            f" {identifier} at the old one",
            next_step="A lake in local folders does not move: table metadata names every file by its whole"
            " path. Put the folder back to where it was, or mount it there (`mount --bind`), and open"
            " the lake by the old path. If two lakes share a catalog instead, give each a name"
            " (`lake.catalog_name`).",
        )
    return StorageUnsuitable(
        f"the catalog has {identifier} at another place than this lake's warehouse",
        next_step="Give every lake a catalog name (`lake.catalog_name`) or a catalog of its own; a restored"
        " warehouse goes back to the bucket and prefix that it had.",
    )


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
