"""The definition of `lake.events`: one row is one sealed block. Columns as in docs/architecture.md."""

from __future__ import annotations

from datetime import date
from typing import Final

from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import DayTransform
from pyiceberg.typedef import Record
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
    TimestamptzType,
)

from keys import FieldContext
from lake.eventtypes import EventType, Facet

EVENTS_TABLE: Final = "lake.events"
SUBJECT_REF_FIELD_ID: Final = 2
SEALED_FIELD_ID: Final = 16
_COLUMNS: Final = (
    ("block_id", BinaryType(), True),
    ("subject_ref", BinaryType(), False),
    ("generation", IntegerType(), True),
    ("event_type", StringType(), True),
    ("schema_version", IntegerType(), True),
    ("facet", StringType(), True),
    ("primary", BooleanType(), True),
    ("event_count", IntegerType(), True),
    ("ingested_at", TimestamptzType(), True),
    ("occurred_from", DateType(), True),
    ("occurred_to", DateType(), True),
    ("source", IntegerType(), True),
    ("source_from", LongType(), True),
    ("source_to", LongType(), True),
    ("open", BinaryType(), False),
    ("sealed", BinaryType(), False),
    ("tags", BinaryType(), False),
    ("run", LongType(), False),
    ("run_from", IntegerType(), False),
    ("run_to", IntegerType(), False),
    ("run_at", IntegerType(), False),
)
EVENTS_SCHEMA: Final = Schema(
    *(NestedField(at, name, kind, required) for at, (name, kind, required) in enumerate(_COLUMNS, start=1))
)
EVENTS_SPEC: Final = PartitionSpec(
    PartitionField(source_id=9, field_id=1000, transform=DayTransform(), name="ingested_at_day")
)
RANDOM_COLUMNS: Final = ("block_id", "sealed", "tags")
BODY_COLUMNS: Final = ("open",)
FOOTER_COLUMNS: Final = ("run_from", "run_to")
"""Whose bounds stand in the footers of files and not in manifests: they tell row groups apart."""
METRIC_COLUMNS: Final = (
    "subject_ref",
    "ingested_at",
    "occurred_from",
    "occurred_to",
    "source",
    "source_from",
    "source_to",
)
EVENTS_PROPERTIES: Final = {
    "format-version": "2",
    "write.metadata.metrics.default": "none",
    **{f"write.metadata.metrics.column.{name}": "full" for name in METRIC_COLUMNS},
    "write.summary.partition-limit": "0",
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "50",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
    "write.delete.isolation-level": "snapshot",
    "write.update.isolation-level": "snapshot",
    "commit.retry.num-retries": "10",
}
_EPOCH: Final = date(1970, 1, 1)


def sealing_context(table_uuid: bytes, event_type: EventType, facet: Facet) -> FieldContext:
    """What the sealed part of a block is bound to."""
    return FieldContext(
        table_uuid, SEALED_FIELD_ID, "personal", facet.purpose, event_type.name, event_type.version
    )


def day_partition(day: date) -> tuple[Record, str]:
    """(partition value, folder) of an ingest day."""
    return Record((day - _EPOCH).days), f"ingested_at_day={day.isoformat()}/"
