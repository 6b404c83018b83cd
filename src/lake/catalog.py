"""The catalogs that keep the heads of tables: SQL (SQLite, PostgreSQL) and REST.

An Iceberg metadata file never changes, so the SQL catalog parses each once and copies none. Errors of any
catalog are told apart by whose move they are.
"""

from __future__ import annotations

import contextlib
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import requests
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.exceptions import (
    AuthorizationExpiredError,
    BadRequestError,
    CommitStateUnknownException,
    ForbiddenError,
    OAuthError,
    ServerError,
    ServiceUnavailableError,
    TooManyRequestsError,
    UnauthorizedError,
)
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.metadata import TableMetadata, TableMetadataV2
from pyiceberg.table.update import TableRequirement, TableUpdate
from pyiceberg.typedef import Identifier
from sqlalchemy import bindparam, event, make_url, select
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from lake.errors import CatalogRefused, CatalogUnavailable, StorageUnsuitable

CatalogKind = Literal["sql", "rest"]
_KEPT_METADATA: Final = 64
_WITH_DRIVER: Final = re.compile(r"^postgres(ql)?://")
_POSTGRES_LIMITS: Final = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "tcp_user_timeout": "10000",
    # A client that stopped in mid-commit holds the table's row; nobody waits for it for ever.
    "options": "-c lock_timeout=60s -c idle_in_transaction_session_timeout=60s -c synchronous_commit=on",
}
_AWAY: Final = (
    SQLAlchemyError,
    requests.ConnectionError,
    requests.Timeout,
    ServerError,
    ServiceUnavailableError,
    TooManyRequestsError,
    CommitStateUnknownException,
)
_REFUSED: Final = (
    AuthorizationExpiredError,
    BadRequestError,
    ForbiddenError,
    OAuthError,
    UnauthorizedError,
    requests.HTTPError,
)


class _SharedMetadata(TableMetadataV2):
    """Metadata whose copies share their parts, which nobody changes in place.

    A commit copies the metadata deeply; with a hundred snapshots that takes as long as all else it does.
    """

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> _SharedMetadata:
        return self.model_copy()


class CachingSqlCatalog(SqlCatalog):
    """`SqlCatalog` that parses a metadata file once per process and asks for a head in one plain statement.

    `SqlCatalog` itself builds a statement and an object of the database layer for each look at a table, which
    takes ten times as long as the look; a build of a view looks a hundred times.
    """

    def __init__(self, name: str, **properties: str) -> None:
        self._metadata: OrderedDict[str, tuple[str, TableMetadata]] = OrderedDict()
        super().__init__(name, **properties)
        self._head = select(IcebergTables.metadata_location).where(
            IcebergTables.catalog_name == self.name,
            IcebergTables.table_namespace == bindparam("namespace"),
            IcebergTables.table_name == bindparam("table"),
        )

    def load_table(self, identifier: str | Identifier) -> Table:
        namespace = Catalog.namespace_to_string(Catalog.namespace_from(identifier))
        name = Catalog.table_name_from(identifier)
        kept = self._metadata.get(f"{namespace}.{name}")
        if kept is not None:
            with self.engine.connect() as connection:
                head = connection.execute(self._head, {"namespace": namespace, "table": name}).scalar()
            if head == kept[0]:
                return self._table(f"{namespace}.{name}", *kept)
        return super().load_table(identifier)

    def _convert_orm_to_iceberg(self, orm_table: IcebergTables) -> Table:
        table = super()._convert_orm_to_iceberg(orm_table)
        metadata = table.metadata
        if isinstance(metadata, TableMetadataV2):
            metadata = _SharedMetadata.model_construct(metadata.model_fields_set, **metadata.__dict__)
        identifier = ".".join(table.name())
        self._remember(identifier, table.metadata_location, metadata)
        return self._table(identifier, table.metadata_location, metadata)

    def _table(self, identifier: str, location: str, metadata: TableMetadata) -> Table:
        io = self._load_file_io(metadata.properties, location)
        return Table(tuple(identifier.split(".")), metadata, location, io, self)

    def commit_table(
        self, table: Table, requirements: tuple[TableRequirement, ...], updates: tuple[TableUpdate, ...]
    ) -> CommitTableResponse:
        response = super().commit_table(table, requirements, updates)
        self._remember(".".join(table.name()), response.metadata_location, response.metadata)
        return response

    def _remember(self, identifier: str, location: str, metadata: TableMetadata) -> None:
        self._metadata[identifier] = location, metadata
        self._metadata.move_to_end(identifier)
        while len(self._metadata) > _KEPT_METADATA:
            self._metadata.popitem(last=False)


def open_catalog(kind: CatalogKind, uri: str, name: str, properties: Mapping[str, str]) -> Catalog:
    """A catalog, asked once.

    Args:
        uri: of SQLAlchemy, or the address of a REST catalog.
        name: what a SQL database knows this lake by, so that several can share it.
        properties: further properties of pyiceberg's catalog and file access.

    Raises:
        StorageUnsuitable: an address that cannot be one, or its client library is not installed.
        CatalogUnavailable, CatalogRefused: see there.
    """
    with catalog_errors():
        if kind == "rest":
            from lake.restcatalog import TimedRestCatalog  # a tenth of a second that others need not wait

            return TimedRestCatalog(name, uri=uri, **properties)
        try:
            catalog = CachingSqlCatalog(name, uri=_with_limits(uri), pool_pre_ping="true", **properties)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            reason = type(error).__name__
            raise StorageUnsuitable(f"lake.uri is no database that we can open: {reason}") from None
        if catalog.engine.dialect.name == "sqlite":
            event.listen(catalog.engine, "connect", _for_several_processes)
        return catalog


def _with_limits(uri: str) -> str:
    """A database's address with our driver and time limits; those that it names itself stay."""
    url = make_url(_WITH_DRIVER.sub("postgresql+psycopg://", uri))
    if url.drivername == "postgresql+psycopg":
        url = url.update_query_dict({k: v for k, v in _POSTGRES_LIMITS.items() if k not in url.query})
    return url.render_as_string(hide_password=False)


@contextlib.contextmanager
def catalog_errors() -> Iterator[None]:
    """Turns a catalog's own errors into ours; their texts may hold addresses and log-ins.

    Raises:
        CatalogUnavailable: it does not answer.
        CatalogRefused: it refuses us.
    """
    try:
        yield
    except _AWAY as error:
        raise CatalogUnavailable(f"the catalog does not answer: {type(error).__name__}") from None
    except _REFUSED as error:
        raise CatalogRefused(f"the catalog refuses us: {type(error).__name__}") from None


def _for_several_processes(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA busy_timeout=60000")
    connection.execute("PRAGMA synchronous=FULL")
