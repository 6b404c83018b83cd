"""Data files written in one pass, with the metrics that Iceberg wants of them."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Iterator

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import (
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
    schema_to_pyarrow,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.typedef import Record

from keys import Effects
from lake.objects import storage_errors


def write_data_file(
    table: Table,
    frame: pl.DataFrame,
    effects: Effects,
    *,
    partition: Record,
    folder: str,
    prefix: str,
    random: Collection[str],
    bodies: Collection[str],
    footers: Collection[str],
    body_codec: str,
    row_group_rows: int,
    schema: Schema | None = None,
) -> DataFile:
    """See `IcebergTable.write_file`."""
    schema = schema or table.schema()
    arrow_schema = schema_to_pyarrow(schema)
    arrow = frame.select(arrow_schema.names).to_arrow().cast(arrow_schema)
    stats_plan = compute_statistics_plan(schema, table.metadata.properties)
    names = {f.field_id: f.name for f in schema.fields}
    kept = [names[i] for i, plan in stats_plan.items() if plan.mode.type.value != "none"]
    path = f"{table.location()}/data/{folder}{prefix}{uuid.uuid4().hex}.parquet"
    coded = [n for n in arrow_schema.names if n not in random and n not in bodies]
    codecs = dict.fromkeys(bodies, body_codec) | dict.fromkeys(random, "NONE")
    with storage_errors(), _whole_or_gone(table, path), effects("write-file"):
        with table.io.new_output(path).create() as sink:
            writer = pq.ParquetWriter(
                pa.PythonFile(sink, mode="w"),
                arrow_schema,
                compression={n: codecs.get(n, "ZSTD") for n in arrow_schema.names},
                use_dictionary=coded,
                write_statistics=[*kept, *footers],
                store_schema=False,
            )
            writer.write_table(arrow, row_group_size=row_group_rows)
            writer.close()
        size_bytes = len(table.io.new_input(path))
        statistics = data_file_statistics_from_parquet_metadata(
            writer.writer.metadata, stats_plan, parquet_path_to_id_mapping(schema)
        ).to_serialized_dict()
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=partition,
        file_size_in_bytes=size_bytes,
        sort_order_id=None,
        spec_id=table.metadata.default_spec_id,
        equality_ids=None,
        key_metadata=None,
        **statistics,
    )


@contextlib.contextmanager
def _whole_or_gone(table: Table, path: str) -> Iterator[None]:
    """Deletes what there is of a file that could not be written: on a full disk it is in the way."""
    try:
        yield
    except Exception:
        with contextlib.suppress(OSError):
            table.io.delete(path)
        raise
