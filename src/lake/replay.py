"""The replay reader: a pinned snapshot, or what came between two, as Polars frames."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import polars as pl
from attrs import evolve, frozen
from pyiceberg.manifest import DataFile
from pyiceberg.table.snapshots import Snapshot

from keys import Opener, OpeningKeys
from lake.blocks import BLOCK_COLUMNS, PERSONAL_HEAD, Opened, bucket_of, open_blocks
from lake.dedup import settle
from lake.errors import SnapshotGone, UnknownEventType
from lake.eventtypes import OPEN_HEAD, PRIMARY, EventType, Facet
from lake.levels import added_after
from lake.objects import collected
from lake.offsets import INGEST, KIND
from lake.table import IcebergTable, summary_of
from lake.typeregistry import TypeRegistry
from lake.upcast import bring_forward, needed_fields

_REF_FIELD_ID = 2
CLEAR_FIELDS = frozenset({"occurred_on", "subject_ref", "ingest_day"})


@frozen
class EventRead:
    """Which part of an event type to read.

    Attributes:
        facet: whose part; the primary counts each event once.
        fields: of the type, or of the head (`occurred_on`, `occurred_at`, `event_id`, `subject`, …).
    """

    event_type: str
    fields: tuple[str, ...]
    facet: Facet = PRIMARY

    def is_personal(self, registered: EventType) -> bool:
        """Whether any field asked for is sealed."""
        sealed = {f.name for f in registered.fields if not f.anonymous}
        return not sealed.union(PERSONAL_HEAD).isdisjoint(self.fields)


@frozen
class Events:
    """Settled events of one type: duplicates and corrections are decided, in ingest order.

    Attributes:
        frame: `subject_ref`, `_tag`, `_rev`, `ingest_day`, `shredded`, and the fields asked for.
        stored: events in the blocks read; `superseded` of them lost to the duplicate rule.
        shredded, held: events without a personal part, and why.
    """

    frame: pl.DataFrame
    stored: int
    superseded: int
    shredded: int
    held: int
    shredded_refs: frozenset[bytes]


class Replay:
    """Reads `lake.events`.

    Args:
        table: the events table.
        keyring: opens; asked for one opener per reader.
        types: registered event types; older versions are brought forward to the newest by its upcasts.
    """

    def __init__(self, table: IcebergTable, keyring: OpeningKeys, types: TypeRegistry) -> None:
        self._table = table
        self._types = types
        self._opener: Opener = keyring.opener()
        self._table_uuid = table.metadata().table_uuid.bytes

    def resolve(self, as_of: datetime | None) -> Snapshot | None:
        """The snapshot that was the head at a moment; the head now for None.

        Raises:
            SnapshotGone: nothing that old exists (any more); says what does.
        """
        metadata = self._table.metadata()
        if as_of is None:
            return metadata.current_snapshot()
        limit_ms = int(as_of.astimezone(UTC).timestamp() * 1000)
        kept = self._table.history(metadata)
        for snapshot in kept:
            if snapshot.timestamp_ms <= limit_ms:
                return snapshot
        if not kept:
            raise SnapshotGone("the lake holds no event yet", next_step="Ingest some first.")
        oldest = datetime.fromtimestamp(kept[-1].timestamp_ms / 1000, UTC).isoformat(timespec="seconds")
        raise SnapshotGone(f"nothing was in the lake then; its oldest snapshot is of {oldest}")

    def files_between(self, after: int, until: int) -> list[DataFile]:
        """Data files with what ingest added after one snapshot and up to another.

        Told from the live files of the latter; where upkeep has mixed old and new in one, from the files
        that each snapshot in between added.

        Raises:
            SnapshotGone: the way from one to the other is not kept any more; rebuild instead.
        """
        metadata = self._table.metadata()
        by_id = {s.snapshot_id: s for s in metadata.snapshots}
        if after in by_id and until in by_id:
            found = added_after(self._table.sequenced_files(until), by_id[after].sequence_number or 0)
            if found is not None:
                return found
        found = []
        at: int | None = until
        while at != after:
            if at is None or at not in by_id:
                raise SnapshotGone(f"the snapshots between {after} and {until} were expired")
            if summary_of(by_id[at]).get(KIND) == INGEST:
                found.extend(self._table.added_files(by_id[at]))
            at = by_id[at].parent_snapshot_id
        return found

    def files(self, snapshot_id: int) -> list[DataFile]:
        """Live data files of a snapshot."""
        return self._table.files(snapshot_id)

    def events(
        self,
        files: Sequence[DataFile],
        read: EventRead,
        *,
        refs: Sequence[bytes] | None = None,
        ref_range: tuple[bytes, bytes | None] | None = None,
        settled: bool = True,
    ) -> Events:
        """Events of one type out of data files.

        Args:
            refs: only these subjects.
            ref_range: only handles in [from, to); `to` None is open-ended. One bucket is one range.
            settled: whether to apply the duplicate rule.

        Raises:
            UnknownEventType: not registered.
            EnvelopeError, KeysError: see `keys.Opener.open`; never where a person was erased.
        """
        chain = self._types.chain(read.event_type)
        if not chain:
            raise UnknownEventType(f"event type `{read.event_type}` is not registered")
        newest = chain[-1]
        personal = read.is_personal(newest)
        if personal:
            self._opener.catch_up()
        rows = block_rows(self._table, files, read, refs, ref_range)
        parts: list[Opened] = []
        for (version,), group in rows.group_by("schema_version", maintain_order=True):
            path = [one for one in chain if one.version >= int(str(version))]
            opened = open_blocks(
                group,
                path[0],
                read.facet,
                fields=sorted(needed_fields(path, read.fields)[0]),
                personal=personal,
                opener=self._opener if personal else None,
                table_uuid=self._table_uuid,
            )
            parts.append(evolve(opened, frame=bring_forward(opened.frame, path, read.fields, read.facet)))
        frames = [conform(part.frame, newest, read) for part in parts]
        frame = pl.concat(frames) if frames else conform(pl.DataFrame(), newest, read)
        if len(frames) > 1:
            frame = frame.sort("_order", maintain_order=True)
        kept = settle(frame, newest.dedup_window_days) if settled else frame
        return Events(
            kept.drop("_order"),
            frame.height,
            frame.height - kept.height,
            sum(part.shredded_events for part in parts),
            sum(part.held_events for part in parts),
            frozenset().union(*(part.shredded_refs for part in parts)),
        )

    def stored(
        self,
        files: Sequence[DataFile],
        read: EventRead,
        bits: int,
        ref_range: tuple[bytes, bytes | None] | None = None,
    ) -> pl.DataFrame:
        """`bucket`, `stored`: events per bucket, counted from block columns without opening anything."""
        columns = ("subject_ref", "event_count")
        rows = block_rows(self._table, files, read, ref_range=ref_range, columns=columns)
        return rows.group_by(bucket_of(pl.col("subject_ref"), bits).alias("bucket")).agg(
            pl.col("event_count").cast(pl.Int64).sum().alias("stored")
        )


def conform(frame: pl.DataFrame, newest: EventType, read: EventRead) -> pl.DataFrame:
    """The frame with exactly the columns of a read: what nothing was derived for is null."""
    types: dict[str, pl.DataType] = {
        "subject_ref": pl.Binary(),
        "_tag": OPEN_HEAD["_tag"],
        "_rev": OPEN_HEAD["_rev"],
        "occurred_on": pl.Date(),
        "ingest_day": pl.Date(),
        "_order": pl.Int64(),
        "shredded": pl.Boolean(),
    }
    types |= {name: dtype for name, dtype in _HEAD_TYPES.items() if name in read.fields}
    types |= {f.name: f.dtype for f in newest.fields if f.name in read.fields}
    return (
        frame.select(
            pl.col(name) if name in frame.columns else pl.lit(None, dtype).alias(name)
            for name, dtype in types.items()
        )
        if frame.width
        else pl.DataFrame(schema=types)
    )


def block_rows(
    table: IcebergTable,
    files: Sequence[DataFile],
    read: EventRead | None,
    refs: Sequence[bytes] | None = None,
    ref_range: tuple[bytes, bytes | None] | None = None,
    columns: Sequence[str] = BLOCK_COLUMNS,
) -> pl.DataFrame:
    """Block rows in ingest order with their place `_n`; files that cannot hold them are not opened.

    Raises:
        StorageFailed: the store cannot be read.
    """
    low = min(refs) if refs else ref_range[0] if ref_range else None
    high = max(refs) if refs else ref_range[1] if ref_range else None
    wanted = [f for f in files if _may_hold(f, low, high)]
    if not wanted:
        return pl.DataFrame(schema=_BLOCK_TYPES)
    scan = table.scan(wanted).select(BLOCK_COLUMNS)
    if read is not None:
        scan = scan.filter(pl.col("event_type") == read.event_type, pl.col("facet") == str(read.facet))
    if refs is not None:
        scan = scan.filter(pl.col("subject_ref").is_in(list(refs)))
    if ref_range is not None:
        scan = scan.filter(pl.col("subject_ref") >= pl.lit(ref_range[0], pl.Binary))
        if ref_range[1] is not None:
            scan = scan.filter(pl.col("subject_ref") < pl.lit(ref_range[1], pl.Binary))
    if set(columns) != set(BLOCK_COLUMNS):
        return collected(scan.select(columns))
    rows = collected(scan).sort("ingested_at", "source", "source_from", "block_id")
    return rows.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias("_n"))


def _may_hold(file: DataFile, low: bytes | None, high: bytes | None) -> bool:
    lower = (file.lower_bounds or {}).get(_REF_FIELD_ID)
    upper = (file.upper_bounds or {}).get(_REF_FIELD_ID)
    if low is not None and upper is not None and upper < low:
        return False
    return not (high is not None and lower is not None and lower > high)


_HEAD_TYPES: dict[str, pl.DataType] = {
    "subject": pl.String(),
    "source": pl.String(),
    "event_id": pl.String(),
    "occurred_at": pl.Datetime("us", "UTC"),
    "position": pl.Int64(),
}
_BLOCK_TYPES: dict[str, pl.DataType] = {
    "block_id": pl.Binary(),
    "subject_ref": pl.Binary(),
    "generation": pl.Int32(),
    "event_type": pl.String(),
    "schema_version": pl.Int32(),
    "facet": pl.String(),
    "primary": pl.Boolean(),
    "event_count": pl.Int32(),
    "ingested_at": pl.Datetime("us", "UTC"),
    "occurred_from": pl.Date(),
    "occurred_to": pl.Date(),
    "source": pl.Int32(),
    "source_from": pl.Int64(),
    "source_to": pl.Int64(),
    "open": pl.Binary(),
    "sealed": pl.Binary(),
    "_n": pl.Int64(),
}
