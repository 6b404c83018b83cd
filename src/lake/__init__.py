"""lake: the log that replays.

Events sealed per person in blocks, appended exactly once to an Apache Iceberg table, read back from
pinned snapshots.
"""

from lake.blocks import bucket_of
from lake.cloudevents import Parsed, Rejected
from lake.deadletters import DeadLetter, dead_letters, redrive
from lake.errors import (
    CommitConflict,
    ConservationBroken,
    CorruptBlock,
    EpochMoved,
    Fenced,
    LakeError,
    MappingError,
    SchemaError,
    SnapshotGone,
    StorageFailed,
    UnknownEventType,
    UnreadableInput,
)
from lake.eventtypes import DEAD_LETTER, PRIMARY, EventType, Facet, TypeRegistry, parse_event_type
from lake.ingest import Ingestor, IngestSummary
from lake.lakehouse import Lake, open_local_events, open_local_lake
from lake.mapping import Mapping, load_mapping
from lake.readahead import ReadAhead, with_read_ahead
from lake.replay import (
    CLEAR_FIELDS,
    PERSONAL_HEAD,
    EventRead,
    Events,
    Replay,
    block_rows,
    local_path,
    stored_events,
)
from lake.sources import DEFAULT_BATCH_EVENTS, HttpBatch, JsonLinesFile, MappedFile, Source
from lake.table import Committed, IcebergTable, summary_of
from lake.topicbook import FeedingTopic, TopicBook
from lake.upkeep import Compacted, Upkeep
from lake.verify import Verified, privacy_lint, verify

__all__ = [
    "CLEAR_FIELDS",
    "DEAD_LETTER",
    "DEFAULT_BATCH_EVENTS",
    "PERSONAL_HEAD",
    "PRIMARY",
    "CommitConflict",
    "Committed",
    "Compacted",
    "ConservationBroken",
    "CorruptBlock",
    "DeadLetter",
    "EpochMoved",
    "EventRead",
    "EventType",
    "Events",
    "Facet",
    "FeedingTopic",
    "Fenced",
    "HttpBatch",
    "IcebergTable",
    "IngestSummary",
    "Ingestor",
    "JsonLinesFile",
    "Lake",
    "LakeError",
    "MappedFile",
    "Mapping",
    "MappingError",
    "Parsed",
    "ReadAhead",
    "Rejected",
    "Replay",
    "SchemaError",
    "SnapshotGone",
    "Source",
    "StorageFailed",
    "TopicBook",
    "TypeRegistry",
    "UnknownEventType",
    "UnreadableInput",
    "Upkeep",
    "Verified",
    "block_rows",
    "bucket_of",
    "dead_letters",
    "load_mapping",
    "local_path",
    "open_local_events",
    "open_local_lake",
    "parse_event_type",
    "privacy_lint",
    "redrive",
    "stored_events",
    "summary_of",
    "verify",
    "with_read_ahead",
]
