"""lake: the log that replays.

Events sealed per person in blocks, appended exactly once to an Apache Iceberg table, read back from
pinned snapshots.
"""

from lake.acceptance import accepted_event_type
from lake.asides import AsideBook, Trouble
from lake.batches import Batch, Note, Outcome, Queue
from lake.blocks import PERSONAL_HEAD, bucket_of
from lake.clearfields import ClearField, clear_fields
from lake.compaction import Compacted
from lake.compatibility import Problem, notes, problems
from lake.consumerbook import ConsumerBook, ConsumerState, SaysHowItStands, open_consumer_book
from lake.deadletters import DeadLetter, dead_letters, redrive
from lake.errors import (
    CatalogRefused,
    CatalogUnavailable,
    CommitConflict,
    ConservationBroken,
    CorruptBlock,
    DataDamaged,
    EpochMoved,
    Fenced,
    GraceTooShort,
    IntakeFull,
    IntakeUnreadable,
    KeyReused,
    LakeError,
    MappingError,
    MomentRefused,
    SchemaError,
    SnapshotExpired,
    SnapshotGone,
    StorageFailed,
    StorageRefused,
    StorageUnavailable,
    StorageUnsuitable,
    TagLost,
    UnknownBatch,
    UnknownEventType,
    UnreadableInput,
)
from lake.eventtypes import DEAD_LETTER, PRIMARY, EventType, Facet, parse_event_type
from lake.explain import Explained, explain
from lake.housekeeping import Housekeeping
from lake.ingest import Ingestor, IngestSummary
from lake.intake import Drained, Intake, IntakeRule
from lake.kafkaprogress import Progress, StuckPartition
from lake.lakehouse import Lake, open_events, open_lake
from lake.letterretention import LetterRetention
from lake.maintenance import Maintenance
from lake.mapping import Mapping, load_mapping
from lake.moments import Found, Nearest, checked_moment
from lake.needles import NOT_SEARCHED, Hit, Needles
from lake.objects import ObjectStore, StoredObject, collected, get_bytes, put_bytes, stamp_of
from lake.parsed import Parsed, Rejected
from lake.pieces import Pace
from lake.privacylint import privacy_lint
from lake.processes import sharing_cores
from lake.readahead import ReadAhead, ReadAheadProcess, with_read_ahead
from lake.redaction import LetterRedaction
from lake.replay import CLEAR_FIELDS, DEFAULT_MEMORY_BYTES, Events, Replay
from lake.retention import build_tag
from lake.selection import EventRead, block_rows
from lake.sources import DEFAULT_BATCH_EVENTS, HttpBatch, JsonLinesFile, MappedFile, Source, file_source
from lake.table import Committed, IcebergTable, summary_of
from lake.topicbook import FeedingTopic, TopicBook
from lake.typeregistry import TypeRegistry, refused
from lake.upcast import needed_fields
from lake.upkeep import Merged, Upkeep
from lake.upkeeprules import LEAST_GRACE_SECONDS, WARNED_DAYS, Step, UpkeepPolicy, check_grace, first_kept
from lake.verify import Verified, verify
from lake.warehouse import EMBEDDED, Warehouse, WarehousePlace
from lake.whereabouts import Place, places_of, whereabouts

__all__ = [
    "CLEAR_FIELDS",
    "DEAD_LETTER",
    "DEFAULT_BATCH_EVENTS",
    "DEFAULT_MEMORY_BYTES",
    "EMBEDDED",
    "LEAST_GRACE_SECONDS",
    "NOT_SEARCHED",
    "PERSONAL_HEAD",
    "PRIMARY",
    "WARNED_DAYS",
    "AsideBook",
    "Batch",
    "CatalogRefused",
    "CatalogUnavailable",
    "ClearField",
    "CommitConflict",
    "Committed",
    "Compacted",
    "ConservationBroken",
    "ConsumerBook",
    "ConsumerState",
    "CorruptBlock",
    "DataDamaged",
    "DeadLetter",
    "Drained",
    "EpochMoved",
    "EventRead",
    "EventType",
    "Events",
    "Explained",
    "Facet",
    "FeedingTopic",
    "Fenced",
    "Found",
    "GraceTooShort",
    "Hit",
    "Housekeeping",
    "HttpBatch",
    "IcebergTable",
    "IngestSummary",
    "Ingestor",
    "Intake",
    "IntakeFull",
    "IntakeRule",
    "IntakeUnreadable",
    "JsonLinesFile",
    "KeyReused",
    "Lake",
    "LakeError",
    "LetterRedaction",
    "LetterRetention",
    "Maintenance",
    "MappedFile",
    "Mapping",
    "MappingError",
    "Merged",
    "MomentRefused",
    "Nearest",
    "Needles",
    "Note",
    "ObjectStore",
    "Outcome",
    "Pace",
    "Parsed",
    "Place",
    "Problem",
    "Progress",
    "Queue",
    "ReadAhead",
    "ReadAheadProcess",
    "Rejected",
    "Replay",
    "SaysHowItStands",
    "SchemaError",
    "SnapshotExpired",
    "SnapshotGone",
    "Source",
    "Step",
    "StorageFailed",
    "StorageRefused",
    "StorageUnavailable",
    "StorageUnsuitable",
    "StoredObject",
    "StuckPartition",
    "TagLost",
    "TopicBook",
    "Trouble",
    "TypeRegistry",
    "UnknownBatch",
    "UnknownEventType",
    "UnreadableInput",
    "Upkeep",
    "UpkeepPolicy",
    "Verified",
    "Warehouse",
    "WarehousePlace",
    "accepted_event_type",
    "block_rows",
    "bucket_of",
    "build_tag",
    "check_grace",
    "checked_moment",
    "clear_fields",
    "collected",
    "dead_letters",
    "explain",
    "file_source",
    "first_kept",
    "get_bytes",
    "load_mapping",
    "needed_fields",
    "notes",
    "open_consumer_book",
    "open_events",
    "open_lake",
    "parse_event_type",
    "places_of",
    "privacy_lint",
    "problems",
    "put_bytes",
    "redrive",
    "refused",
    "sharing_cores",
    "stamp_of",
    "summary_of",
    "verify",
    "whereabouts",
    "with_read_ahead",
]
