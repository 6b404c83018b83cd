"""The SQL catalog with metadata read once: an Iceberg metadata file never changes, so it is cached."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import TableRequirement, TableUpdate
from sqlalchemy import event

_KEPT_METADATA: Final = 16


class CachingSqlCatalog(SqlCatalog):
    """`SqlCatalog` that parses each metadata file once per process."""

    def __init__(self, name: str, **properties: str) -> None:
        self._metadata: OrderedDict[str, TableMetadata] = OrderedDict()
        super().__init__(name, **properties)

    def _convert_orm_to_iceberg(self, orm_table: IcebergTables) -> Table:
        location = str(orm_table.metadata_location)
        cached = self._metadata.get(location)
        if cached is None:
            table = super()._convert_orm_to_iceberg(orm_table)
            self._remember(location, table.metadata)
            return table
        return Table(
            identifier=(*str(orm_table.table_namespace).split("."), str(orm_table.table_name)),
            metadata=cached,
            metadata_location=location,
            io=self._load_file_io(cached.properties, location),
            catalog=self,
        )

    def commit_table(
        self, table: Table, requirements: tuple[TableRequirement, ...], updates: tuple[TableUpdate, ...]
    ) -> CommitTableResponse:
        response = super().commit_table(table, requirements, updates)
        self._remember(response.metadata_location, response.metadata)
        return response

    def _remember(self, location: str, metadata: TableMetadata) -> None:
        self._metadata[location] = metadata
        while len(self._metadata) > _KEPT_METADATA:
            self._metadata.popitem(last=False)


def open_local_catalog(home: Path) -> CachingSqlCatalog:
    """The embedded catalog: SQLite beside the warehouse folder."""
    home.mkdir(parents=True, exist_ok=True)
    warehouse = home / "warehouse"
    warehouse.mkdir(exist_ok=True)
    catalog = CachingSqlCatalog(
        "shredlake", uri=f"sqlite:///{home / 'catalog.db'}", warehouse=warehouse.resolve().as_uri()
    )

    @event.listens_for(catalog.engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA busy_timeout=60000")
        connection.execute("PRAGMA synchronous=FULL")

    return catalog
