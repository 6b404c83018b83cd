"""Upkeep: L0 → L1 compaction, expiry, and the sweep of files that nothing refers to.

Compaction merges the blocks of one subject and type, drops what the duplicate rule drops, and severs
dead blocks: their sealed bytes and their handle go, the anonymous remainder stays under a fresh random
handle of the same bucket, so that totals do not move (docs/adr/0004).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final

import polars as pl
from attrs import frozen
from pyiceberg.exceptions import ValidationException
from pyiceberg.manifest import DataFile
from pyiceberg.table.metadata import TableMetadata

from keys import Keyring
from lake.blocks import BLOCK_COLUMNS, Opened, open_blocks, seal_events, severed_refs, uuid7s
from lake.dedup import settle
from lake.errors import ConservationBroken, EpochMoved
from lake.events import PLAIN_COLUMNS, day_partition
from lake.eventtypes import DEAD_LETTER, PRIMARY, EventType, Facet
from lake.ingest import letter_bytes
from lake.lakehouse import Lake
from lake.objects import ObjectStore, StoredObject, local_path, storage_errors
from lake.offsets import EPOCH, KIND, UPKEEP, carried
from lake.replay import EventRead, block_rows
from lake.table import Committed, IcebergTable, summary_of
from lake.typeregistry import TypeRegistry

L1_ROW_GROUP: Final = 16_384
KEEP_SNAPSHOTS: Final = 100
SWEEP_GRACE_SECONDS: Final = 3600
_SWEPT_AT_ONCE: Final = 256
_LETTERS: Final = EventRead(DEAD_LETTER, ())
_UNIX: Final = date(1970, 1, 1)


@frozen
class Compacted:
    """What one compaction of a day did.

    Attributes:
        severed_blocks: blocks of erased people whose sealed bytes are gone from the new files.
        superseded: events that the duplicate rule dropped.
    """

    day: date
    snapshot_id: int | None
    files_before: int
    files_after: int
    blocks_before: int
    blocks_after: int
    bytes_before: int
    bytes_after: int
    severed_blocks: int
    superseded: int


@frozen
class Severed:
    """Dead blocks taken out of a day's live files, and the bytes written for it."""

    blocks: int
    bytes_written: int


@frozen
class _Rewritten:
    rows: pl.DataFrame
    severed: int
    superseded: int


class Upkeep:
    """Maintenance of the events table; every step is one guarded commit and safe beside ingest."""

    def __init__(self, lake: Lake) -> None:
        self._table: IcebergTable = lake.events
        self._keyring: Keyring = lake.keyring
        self._types: TypeRegistry = lake.types
        self._effects = lake.effects
        self._objects: ObjectStore = lake.warehouse.objects
        self._uuid = lake.events.metadata().table_uuid.bytes

    def days(self) -> dict[date, list[DataFile]]:
        """Live data files per ingest day."""
        found: dict[date, list[DataFile]] = {}
        for file in self._table.files():
            value = file.partition[0]
            day = value if isinstance(value, date) else _UNIX + timedelta(days=int(value))
            found.setdefault(day, []).append(file)
        return found

    def compact(self, day: date, progress: Callable[[str], None] = lambda text: None) -> Compacted:
        """Rewrites a day into one L1 file sorted by type and subject.

        Raises:
            ConservationBroken: counts would change; nothing was committed.
            KeysError: a block could not be opened for a reason that is no erasure.
        """
        while True:
            files = self.days().get(day, [])
            if not files:
                return Compacted(day, None, 0, 0, 0, 0, 0, 0, 0, 0)
            before = block_rows(self._table, files, None)
            rewritten = self._rewrite(before, progress)
            after = rewritten.rows
            _check_conservation(before, after, rewritten.superseded)
            try:
                fresh, landed = self._replace(day, files, after)
            except (EpochMoved, ValidationException):
                continue  # somebody was erased, or another compaction was first: look again
            return Compacted(
                day,
                landed.snapshot_id,
                len(files),
                1,
                before.height,
                after.height,
                sum(f.file_size_in_bytes for f in files),
                fresh.file_size_in_bytes,
                rewritten.severed,
                rewritten.superseded,
            )

    def sever(self, day: date, refs: Sequence[bytes]) -> Severed:
        """Takes sealed bytes and handles of these people's dead blocks out of a day's live files.

        Opens nothing of anybody else: the other rows are copied as they are.

        Raises:
            ConservationBroken: counts would change; nothing was committed.
        """
        while True:
            files = [f for f in self.days().get(day, []) if block_rows(self._table, [f], None, refs).height]
            rows = block_rows(self._table, files, None)
            mine = rows.filter(pl.col("subject_ref").is_in(list(refs)) & pl.col("sealed").is_not_null())
            dead: list[bytes] = []
            for (name, version, facet), group in mine.group_by("event_type", "schema_version", "facet"):
                role, _, purpose = str(facet).partition("/")
                event_type = self._types.get(str(name), int(str(version)))
                gone = self._open_group(group, event_type, Facet(role, purpose)).shredded_refs
                dead += group.filter(pl.col("subject_ref").is_in(list(gone)))["block_id"].to_list()
            if not dead:
                return Severed(0, 0)
            is_dead = pl.col("block_id").is_in(dead)
            after = pl.concat([rows.filter(~is_dead).select(BLOCK_COLUMNS), _sever(rows.filter(is_dead))])
            _check_conservation(rows, after, 0)
            try:
                fresh, _ = self._replace(day, files, after)
            except (EpochMoved, ValidationException):
                continue
            return Severed(len(dead), fresh.file_size_in_bytes)

    def days_of(self, refs: Sequence[bytes]) -> list[date]:
        """Ingest days whose live files hold blocks of these handles."""
        return [
            day for day, files in self.days().items() if block_rows(self._table, files, None, refs).height
        ]

    def redact_letters(self, holds: Callable[[bytes], bool]) -> int:
        """Removes dead letters of nobody's that `holds` recognises, and destroys what sealed them.

        A line without a readable subject is sealed under a key that belongs to no person. Those that
        name an erased person are taken out, the others sealed anew, and the old key is destroyed, so
        that they are unreadable in every old snapshot too. Returns how many were removed.
        """
        removed = 0
        for day, files in self.days().items():
            letters = block_rows(self._table, files, _LETTERS)
            if letters.height == 0:
                continue
            found = self._open_group(letters, self._types.get(DEAD_LETTER), PRIMARY).frame
            nobody = found.filter((pl.col("subject") == "") & ~pl.col("shredded"))
            hit = [holds(letter_bytes(raw)) for raw in nobody["raw"]]
            doomed = nobody.filter(pl.Series(hit, dtype=pl.Boolean))
            if doomed.height == 0:
                continue
            old = doomed["subject_ref"].unique().to_list()
            with_them = nobody.filter(pl.col("subject_ref").is_in(old))
            rows = block_rows(self._table, files, None)
            rest = with_them.join(doomed.select("_tag"), on="_tag", how="anti")
            kept = rows.filter(~pl.col("subject_ref").is_in(old))
            parts = [kept.select(BLOCK_COLUMNS)]
            if rest.height:
                fresh = self._keyring.mint(1, PRIMARY.purpose)[0].ref
                again = rest.with_columns(
                    pl.lit(fresh, pl.Binary).alias("ref"), pl.col("occurred_on").alias("_day")
                )
                parts.append(self._sealed(again, self._types.get(DEAD_LETTER), PRIMARY, rows))
            self._replace(day, files, pl.concat(parts))
            removed += doomed.height
        self._keyring.drop(self._replaced_letter_keys())
        return removed

    def _replaced_letter_keys(self) -> list[bytes]:
        """Handles of nobody's letters that kept snapshots hold and the head does not.

        Found from the table itself, so that a killed redaction is finished by its repetition.
        """
        live = set(block_rows(self._table, self._table.files(), _LETTERS)["subject_ref"].to_list())
        kept = {
            file.file_path: file
            for snapshot in self._table.history()
            for file in self._table.files(snapshot.snapshot_id)
        }
        rows = block_rows(self._table, list(kept.values()), _LETTERS)
        rows = rows.filter(~pl.col("subject_ref").is_in(list(live)))
        alive = [ref for ref in rows["subject_ref"].unique() if self._keyring.purposes_of(ref)]
        left = rows.filter(pl.col("subject_ref").is_in(alive) & pl.col("sealed").is_not_null())
        if left.height == 0:
            return []
        found = self._open_group(left, self._types.get(DEAD_LETTER), PRIMARY).frame
        return found.filter(pl.col("subject") == "")["subject_ref"].unique().to_list()

    def expire(self, keep: int = KEEP_SNAPSHOTS) -> list[int]:
        """Forgets snapshots that no tag names and that are not among the newest `keep`."""

        def choose(metadata: TableMetadata) -> list[int]:
            tagged = {ref.snapshot_id for ref in metadata.refs.values()}
            newest = {s.snapshot_id for s in self._table.history(metadata)[:keep]}
            return [s.snapshot_id for s in metadata.snapshots if s.snapshot_id not in tagged | newest]

        return self._table.expire(choose)

    def sweep(self, grace_seconds: float = SWEEP_GRACE_SECONDS, dry_run: bool = False) -> list[StoredObject]:
        """Deletes files of the table's folder that no kept snapshot refers to and that are old enough.

        What is gone already is no error.

        Raises:
            StorageFailed: the store cannot be listed, or keeps something.
        """
        # Listed before the metadata is read: what is committed in between is referred to.
        limit = datetime.now(UTC) - timedelta(seconds=grace_seconds)
        found = [one for one in self._objects.objects(self._table.load().location()) if one.is_data]
        referenced = {local_path(location) for location in self._referenced()}
        orphans = [
            one for one in found if one.modified_at <= limit and local_path(one.location) not in referenced
        ]
        if not dry_run:
            for start in range(0, len(orphans), _SWEPT_AT_ONCE):
                with self._effects("sweep"):
                    self._objects.delete(orphans[start : start + _SWEPT_AT_ONCE])
        return orphans

    def _replace(
        self, day: date, files: Sequence[DataFile], rows: pl.DataFrame
    ) -> tuple[DataFile, Committed]:
        """One file in place of a day's files, in one commit."""
        epoch = self._keyring.epoch()
        partition, folder = day_partition(day)
        ordered = rows.sort("event_type", "facet", "subject_ref", "block_id")
        fresh = self._table.write_file(
            ordered, partition=partition, folder=folder, plain=PLAIN_COLUMNS, row_group_rows=L1_ROW_GROUP
        )

        def guard(metadata: TableMetadata) -> dict[str, str]:
            if self._keyring.epoch() != epoch:
                raise EpochMoved("somebody was erased while the day was rewritten")
            head = metadata.current_snapshot()
            kept = carried(summary_of(head)) if head is not None else {}
            return {KIND: UPKEEP, EPOCH: str(epoch), **kept}

        return fresh, self._table.commit([fresh], guard, removes=files)

    def _open_group(self, rows: pl.DataFrame, event_type: EventType, facet: Facet) -> Opened:
        return open_blocks(
            rows,
            event_type,
            facet,
            fields=[f.name for f in event_type.fields],
            personal=True,
            opener=self._keyring.opener(),
            table_uuid=self._uuid,
        )

    def _sealed(
        self, events: pl.DataFrame, event_type: EventType, facet: Facet, rows: pl.DataFrame
    ) -> pl.DataFrame:
        """Events sealed again as blocks of the day that `rows` come from."""
        earliest = rows.get_column("ingested_at").min()
        assert isinstance(earliest, datetime)
        return seal_events(
            events,
            event_type,
            facet,
            session=self._keyring.session(),
            table_uuid=self._uuid,
            ingested_at=earliest,
            source=0,
        )

    def _referenced(self) -> set[str]:
        table = self._table.load()
        found: set[str] = set()
        with storage_errors():
            for snapshot in table.metadata.snapshots:
                found.add(snapshot.manifest_list)
                for manifest in snapshot.manifests(table.io):
                    if manifest.manifest_path not in found:
                        found.add(manifest.manifest_path)
                        entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
                        found.update(entry.data_file.file_path for entry in entries)
        return found

    def _rewrite(self, before: pl.DataFrame, progress: Callable[[str], None]) -> _Rewritten:
        parts: list[_Rewritten] = []
        keys = ("event_type", "schema_version", "facet")
        for (name, version, facet), rows in before.group_by(*keys, maintain_order=True):
            progress(str(name))
            role, _, purpose = str(facet).partition("/")
            event_type = self._types.get(str(name), int(str(version)))
            parts.append(self._rewrite_group(rows, event_type, Facet(role, purpose)))
        return _Rewritten(
            pl.concat([part.rows for part in parts]),
            sum(part.severed for part in parts),
            sum(part.superseded for part in parts),
        )

    def _rewrite_group(self, rows: pl.DataFrame, event_type: EventType, facet: Facet) -> _Rewritten:
        opened = self._open_group(rows, event_type, facet)
        living = opened.frame.filter(~pl.col("shredded"))
        alive_blocks = set(living.get_column("_order").unique().to_list())
        rest = rows.filter(~pl.col("_n").is_in(list(alive_blocks)))
        dead = rest.filter(
            pl.col("subject_ref").is_in(list(opened.shredded_refs)) & pl.col("sealed").is_not_null()
        )
        kept = rest.filter(~pl.col("block_id").is_in(dead.get_column("block_id").to_list()))
        winners = settle(living, event_type.dedup_window_days)
        renamed = winners.rename({"subject_ref": "ref", "occurred_on": "_day"})
        sealed = self._sealed(renamed, event_type, facet, rows)
        parts = [sealed, _sever(dead), kept.select(BLOCK_COLUMNS)]
        return _Rewritten(
            pl.concat([part for part in parts if part.height] or parts[:1]),
            dead.height,
            living.height - winners.height,
        )


def _sever(dead: pl.DataFrame) -> pl.DataFrame:
    """Dead blocks without sealed bytes, under new ids and handles; their counts and dates stay."""
    refs = severed_refs(dead.get_column("subject_ref").to_list())
    return dead.with_columns(
        pl.Series("block_id", uuid7s(dead.height, time.time_ns() // 1_000_000), dtype=pl.Binary),
        pl.Series("subject_ref", refs, dtype=pl.Binary),
        pl.lit(0, pl.Int32).alias("generation"),
        pl.lit(None, pl.Binary).alias("sealed"),
    ).select(BLOCK_COLUMNS)


def _check_conservation(before: pl.DataFrame, after: pl.DataFrame, superseded: int) -> None:
    was, now = int(before["event_count"].sum()), int(after["event_count"].sum())
    if was != now + superseded:
        raise ConservationBroken(f"{was} events before, {now} after, {superseded} superseded")
