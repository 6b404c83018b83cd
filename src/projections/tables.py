"""Where view rows lie: plain Iceberg tables for aggregates, rows sealed per person for subject grain.

A view has one table, whatever its version. Builds lie in it as snapshots that no other engine sees until
they are published; see `projections.heads`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np
import polars as pl
from attrs import field, frozen
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    IcebergType,
    LongType,
    NestedField,
    StringType,
    TimestampType,
    TimestamptzType,
    TimeType,
)

from keys import Effects, FieldContext, Held, Keyring, Shredded
from lake import CommitConflict, IcebergTable, Warehouse, collected
from lake.bodies import pack
from lake.bodyreader import unpack
from lake.branches import BUILDS, Branched, evolved, same_columns
from lake.offsets import BATCH, EPOCH, KIND
from lake.snapshotdrop import drop_snapshots
from lake.table import MAX_ATTEMPTS, summary_of
from lake.warehouse import VIEWS_NAMESPACE
from projections.definition import SUBJECT
from projections.errors import DefinitionError
from projections.headbook import table_of
from projections.ledger import Publication
from projections.viewrows import ContextOf, open_rows, parse_row, seal_rows

PUBLICATION: Final = "publication"
AGGREGATE: Final = "aggregate"
_SEALED_ID: Final = 3
_SEALED_SCHEMA: Final = Schema(
    NestedField(1, SUBJECT, BinaryType(), required=True),
    NestedField(2, "row_id", BinaryType(), required=True),
    NestedField(_SEALED_ID, "sealed", BinaryType(), required=True),
)
_PROPERTIES: Final = {
    "format-version": "2",
    "write.metadata.metrics.default": "none",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
    "commit.manifest-merge.enabled": "true",
    "gc.enabled": "false",  # other engines then leave alone what was reported
}
_ICEBERG: Final[dict[type[pl.DataType], IcebergType]] = {
    pl.Int64: LongType(),
    pl.Float64: DoubleType(),
    pl.String: StringType(),
    pl.Boolean: BooleanType(),
    pl.Date: DateType(),
    pl.Time: TimeType(),
    pl.Binary: BinaryType(),
}
"""Of what `projections.columntypes.published` gives, less decimals and moments."""
_POLARS: Final[dict[str, pl.DataType]] = {
    "long": pl.Int64(),
    "double": pl.Float64(),
    "string": pl.String(),
    "boolean": pl.Boolean(),
    "date": pl.Date(),
    "time": pl.Time(),
    "timestamp": pl.Datetime("us"),
    "timestamptz": pl.Datetime("us", "UTC"),
    "binary": pl.Binary(),
}
_DECIMAL: Final = re.compile(r"decimal\((\d+), ?(\d+)\)")


@frozen
class Written:
    """A snapshot of a view's table and the digest of its rows."""

    snapshot_id: int
    digest: str


@frozen
class SubjectRows:
    """Rows of a subject-grain view.

    Attributes:
        frame: opened rows with `subject_ref`.
        shredded: handle → receipt of rows whose key is gone.
        held: handles of rows under a legal hold.
    """

    frame: pl.DataFrame = field(repr=False)
    shredded: dict[bytes, Shredded] = field(repr=False)
    held: frozenset[bytes] = field(default=frozenset(), repr=False)


class ViewTables:
    """Reads and writes the tables of views, one table per view."""

    def __init__(self, warehouse: Warehouse, keyring: Keyring) -> None:
        self._warehouse = warehouse
        self._keyring = keyring

    def table_name(self, view: str) -> str:
        """`views.<view>`."""
        return table_of(view)

    def write(
        self,
        name: str,
        version: str,
        build_id: str,
        rows: pl.DataFrame,
        purposes: Sequence[str] | None,
        epoch: int,
    ) -> Written:
        """Writes a build's rows as a snapshot that readers of the table's head do not see.

        The same build again finds its snapshot.

        Args:
            version: of the view; files of one version lie together.
            epoch: erasures that the rows reflect; stands in the snapshot's summary.
            purposes: that the rows of single people are derived from; None for an aggregate.

        Raises:
            DefinitionError: a column of a type that cannot be stored.
            StorageFailed, CommitConflict: see `lake.IcebergTable.put`.
        """
        wanted = _SEALED_SCHEMA if purposes is not None else _schema_of(rows)
        table = self._warehouse.create(name, wanted, _PROPERTIES)
        stored = rows if purposes is None else self._sealed(table, name, rows, purposes)
        found = _landed(table.metadata(), build_id)
        if found is None:
            summary = {KIND: PUBLICATION, BATCH: build_id, EPOCH: str(epoch)}
            random = () if purposes is None else ("sealed",)
            found = _staged(table, f"{version[:8]}/", summary, stored, wanted, random)
        return Written(found, digest_of(stored))

    def landed(self, name: str, build_id: str) -> int | None:
        """The snapshot that a build made, if it did; of a table that is not there None."""
        try:
            return _landed(self._warehouse.table(name).metadata(), build_id)
        except NoSuchTableError:
            return None

    def has(self, name: str, snapshot_id: int) -> bool:
        """Whether a table has this snapshot. Raises `CatalogUnavailable`, `CatalogRefused`."""
        try:
            return self._warehouse.table(name).metadata().snapshot_by_id(snapshot_id) is not None
        except NoSuchTableError:
            return False

    def in_own_table(self, publication: Publication) -> int:
        """The snapshot of the view's own table with a publication's rows.

        An earlier release of this software kept a table per version; rows that lie there are copied, since
        no data file belongs to two tables. Rows that cannot be opened today are left out of the copy.
        """
        name = self.table_name(publication.view)
        if publication.table == name:
            return publication.snapshot_id
        if publication.grain == AGGREGATE:
            rows, purposes = self.read_aggregate(publication.table, publication.snapshot_id), None
        else:
            found = self.read_subjects(publication.table, publication.snapshot_id, publication.columns)
            rows, purposes = found.frame, self._purposes_in(publication)
        one = publication
        return self.write(name, one.version, one.build_id, rows, purposes, one.epoch).snapshot_id

    def table(self, name: str) -> IcebergTable:
        """A table by its name."""
        return self._warehouse.table(name)

    def own_names(self) -> list[str]:
        """Names of the tables of views that lie in this warehouse."""
        return [one.identifier for one in self._warehouse.tables(VIEWS_NAMESPACE)]

    def _purposes_in(self, publication: Publication) -> list[str]:
        """What rows of a view with a row per person are sealed under."""
        table = self._warehouse.table(publication.table)
        rows = collected(table.scan(table.files(publication.snapshot_id)).select("sealed"))
        return sorted({one for row in rows["sealed"].to_list() for one in parse_row(row)[0]})

    def read_aggregate(self, name: str, snapshot_id: int) -> pl.DataFrame:
        """Rows of an aggregate view's snapshot."""
        table = self._warehouse.table(name)
        return collected(table.scan(table.files(snapshot_id)))

    def read_subjects(
        self, name: str, snapshot_id: int, columns: Mapping[str, str], refs: list[bytes] | None = None
    ) -> SubjectRows:
        """Rows of a subject-grain view's snapshot, opened.

        Args:
            columns: name → type as in the publication record.
            refs: only these people.
        """
        table = self._warehouse.table(name)
        scan = table.scan(table.files(snapshot_id))
        if refs is not None:
            scan = scan.filter(pl.col(SUBJECT).is_in(refs))
        rows = collected(scan)
        handles = rows[SUBJECT].to_list()
        opened = open_rows(
            self._keyring,
            self._context(table, name),
            handles,
            rows["row_id"].to_list(),
            rows["sealed"].to_list(),
        )
        alive = [at for at, body in enumerate(opened) if isinstance(body, bytes)]
        bodies = [body for body in opened if isinstance(body, bytes)]
        types = {n: _polars(t) for n, t in columns.items() if n != SUBJECT}
        stored = row_schema(columns)
        frame = unpack(bodies, np.ones(len(bodies), dtype=np.int64), stored, list(stored)).with_columns(
            pl.Series(SUBJECT, [handles[at] for at in alive], dtype=pl.Binary)
        )
        dead = {
            handle: body for handle, body in zip(handles, opened, strict=True) if isinstance(body, Shredded)
        }
        held = frozenset(ref for ref, body in zip(handles, opened, strict=True) if isinstance(body, Held))
        return SubjectRows(frame.select(SUBJECT, *(_restored(n, t) for n, t in types.items())), dead, held)

    def drop(self, name: str, snapshot_ids: Collection[int], effects: Effects) -> int:
        """Deletes snapshots of a table with the rows that they alone hold; returns how many files went.

        Raises:
            StorageFailed, CommitConflict: see `lake.drop_snapshots`.
        """
        if name not in self._warehouse.names(VIEWS_NAMESPACE):
            return 0
        table, objects = self._warehouse.table(name), self._warehouse.objects
        return len(drop_snapshots(table, objects, snapshot_ids, effects))

    def drop_publication(self, publication: Publication, effects: Effects) -> None:
        """Deletes a publication's rows, and what `in_own_table` made of them; errors as `drop`."""
        self.drop(publication.table, [publication.snapshot_id], effects)
        own = self.table_name(publication.view)
        copy = None if own == publication.table else self.landed(own, publication.build_id)
        if copy is not None:
            self.drop(own, [copy], effects)

    def unpublished(self, view: str, builds: Collection[str], epoch: int) -> dict[str, list[int]]:
        """Table → snapshots of a view that belong to no published build and reflect fewer erasures.

        Args:
            builds: that were published.
        """
        found: dict[str, list[int]] = {}
        for name in self._warehouse.names(VIEWS_NAMESPACE):
            if self.table_name(view) not in (name, name.rpartition("__")[0]):  # and those of single versions
                continue
            for snapshot in self._warehouse.table(name).history():
                summary = summary_of(snapshot)
                is_build = summary.get(KIND) == PUBLICATION and summary.get(BATCH) not in builds
                if is_build and int(summary.get(EPOCH, "-1")) < epoch:
                    found.setdefault(name, []).append(snapshot.snapshot_id)
        return found

    def _sealed(
        self, table: IcebergTable, name: str, rows: pl.DataFrame, purposes: Sequence[str]
    ) -> pl.DataFrame:
        ordered = rows.sort(SUBJECT)
        values = ordered.select(_stored(n, t) for n, t in ordered.schema.items() if n != SUBJECT)
        refs = ordered[SUBJECT].to_list()
        row_ids = [hashlib.sha256(b"row" + ref).digest()[:16] for ref in refs]
        bodies = pack(values, np.arange(values.height + 1)).to_list()
        sealed = seal_rows(self._keyring, self._context(table, name), refs, row_ids, bodies, purposes)
        return pl.DataFrame(
            {
                SUBJECT: pl.Series(refs, dtype=pl.Binary),
                "row_id": pl.Series(row_ids, dtype=pl.Binary),
                "sealed": pl.Series(sealed, dtype=pl.Binary),
            }
        ).drop_nulls("sealed")

    def _context(self, table: IcebergTable, name: str) -> ContextOf:
        uuid = table.metadata().table_uuid.bytes
        return lambda purpose: FieldContext(uuid, _SEALED_ID, "view", purpose, name, 1)


def column_types(rows: pl.DataFrame) -> dict[str, str]:
    """Name → Iceberg type of a result's columns.

    Raises:
        DefinitionError: a column of a type that cannot be stored.
    """
    return {f.name: str(f.field_type) for f in _schema_of(rows).fields}


def row_schema(columns: Mapping[str, str]) -> dict[str, pl.DataType]:
    """What the body of a sealed row holds, by the columns of a publication's record."""
    return {n: _stored_type(_polars(t)) for n, t in columns.items() if n != SUBJECT}


def digest_of(rows: pl.DataFrame) -> str:
    """SHA-256 of the rows as CSV text, binary columns as hex."""
    shown = rows.with_columns(pl.col(pl.Binary).bin.encode("hex"))
    return hashlib.sha256(shown.write_csv().encode()).hexdigest()


def _staged(
    table: IcebergTable,
    folder: str,
    summary: Mapping[str, str],
    stored: pl.DataFrame,
    wanted: Schema,
    random: Sequence[str],
) -> int:
    """Puts the rows on the branch of builds; returns their snapshot, or that of the same build."""
    for _ in range(MAX_ATTEMPTS):
        schema = evolved(table.metadata(), wanted)
        fresh = table.write_file(stored, folder=folder, random=random, schema=schema)

        def choose(metadata: TableMetadata, schema: Schema = schema, fresh: DataFile = fresh) -> Branched:
            if (landed := _landed(metadata, summary[BATCH])) is not None:
                raise _Landed(landed)
            if not same_columns(now := evolved(metadata, wanted), schema):
                raise _ColumnsMoved
            return Branched([fresh], summary, now)

        try:
            return table.put(BUILDS, choose).snapshot_id
        except _Landed as error:
            return error.snapshot_id
        except _ColumnsMoved:
            continue
    raise CommitConflict(f"{table.identifier}: other builders won {MAX_ATTEMPTS} attempts")


class _Landed(Exception):
    """Somebody else has put the same build there."""

    def __init__(self, snapshot_id: int) -> None:
        super().__init__()
        self.snapshot_id = snapshot_id


class _ColumnsMoved(Exception):
    """Another version of the view has taken the ids of new columns."""


def _landed(metadata: TableMetadata, build_id: str) -> int | None:
    for snapshot in metadata.snapshots:
        if summary_of(snapshot).get(BATCH) == build_id:
            return snapshot.snapshot_id
    return None


def _schema_of(rows: pl.DataFrame) -> Schema:
    return Schema(
        *(
            NestedField(at, name, _iceberg(name, dtype), required=False)
            for at, (name, dtype) in enumerate(rows.schema.items(), start=1)
        )
    )


def _iceberg(name: str, dtype: pl.DataType) -> IcebergType:
    if isinstance(dtype, pl.Decimal):
        return DecimalType(dtype.precision, dtype.scale)
    if dtype == pl.Datetime("us", "UTC"):
        return TimestamptzType()
    if dtype == pl.Datetime("us"):
        return TimestampType()
    if type(dtype) not in _ICEBERG:
        raise DefinitionError(f"column `{name}` has type {dtype}, which a view cannot publish")
    return _ICEBERG[type(dtype)]


def _polars(name: str) -> pl.DataType:
    decimal = _DECIMAL.fullmatch(name)
    return pl.Decimal(int(decimal[1]), int(decimal[2])) if decimal else _POLARS[name]


def _stored_type(dtype: pl.DataType) -> pl.DataType:
    """As which type a body holds a value."""
    if isinstance(dtype, pl.Datetime | pl.Time):
        return pl.Int64()
    return pl.String() if isinstance(dtype, pl.Decimal) else dtype


def _stored(name: str, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.Datetime):
        return pl.col(name).dt.timestamp("us").alias(name)
    return pl.col(name).cast(_stored_type(dtype))


def _restored(name: str, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.Datetime):
        moment = pl.from_epoch(name, "us")
        return (moment.dt.replace_time_zone("UTC") if dtype.time_zone else moment).alias(name)
    return pl.col(name).cast(dtype)
