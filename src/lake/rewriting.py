"""What every rewrite of data files does: open, seal again, write, and replace in one guarded commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Final

import polars as pl
from pyiceberg.manifest import DataFile
from pyiceberg.table.metadata import TableMetadata

from keys import Keyring
from lake.blocks import L1_SOURCE, PERSONAL_HEAD, Opened, in_block_order, open_blocks, seal_events
from lake.errors import EpochMoved
from lake.events import BODY_COLUMNS, FOOTER_COLUMNS, RANDOM_COLUMNS, day_partition
from lake.eventtypes import EventType, Facet
from lake.lakehouse import Lake
from lake.letterkeys import LetterKeys, letter_keys_of
from lake.levels import Origin, Sequenced
from lake.merging import day_of
from lake.offsets import UPKEEP, upkeep_summary
from lake.runs import alone, in_runs
from lake.selection import WHOLE_COLUMNS, Selection, block_rows, stored_blocks, whole_rows
from lake.table import Committed, IcebergTable, summary_of
from lake.typeregistry import TypeRegistry

L1_ROW_GROUP: Final = 4_096
"""Blocks. Whoever reads a range of people reads whole row groups, and throws away what is not of them."""


_SORTED_CODEC: Final = "LZ4"
"""Of open parts in runs: a third larger than by zstd, and read in a third of the time."""


class Rewriter:
    """Base of what rewrites files of `lake.events`."""

    def __init__(self, lake: Lake) -> None:
        self._table: IcebergTable = lake.events
        self._keyring: Keyring = lake.keyring
        self._types: TypeRegistry = lake.types
        self._uuid = lake.events.metadata().table_uuid.bytes

    def _live(self, day: date) -> list[Sequenced]:
        return [one for one in self._table.sequenced_files() if day_of(one[0]) == day]

    def _holding(self, live: Sequence[Sequenced], refs: Sequence[bytes]) -> list[Sequenced]:
        """The files with blocks of these handles."""
        return [
            one
            for one in live
            if block_rows(self._table, [one[0]], None, refs, columns=("subject_ref",)).height
        ]

    def _rows(self, files: Sequence[DataFile], wanted: Selection = Selection()) -> pl.DataFrame:
        """Whole rows of these files. Raises as `stored_blocks` and `whole_rows`."""
        blocks = stored_blocks(self._table, files, wanted, WHOLE_COLUMNS)
        return whole_rows(blocks, self._types.open_schema)

    def _write(self, day: date, rows: pl.DataFrame, what: Origin, arrange: bool = True) -> DataFile:
        """A file of these blocks; `arrange` sorts them, and lays their open parts together in runs."""
        partition, folder = day_partition(day)
        if arrange:
            ordered = rows.sort("event_type", "facet", "subject_ref", "block_id")
            rows = in_runs(ordered, self._types.open_schema)
        else:
            rows = alone(rows)
        return self._table.write_file(
            rows,
            partition=partition,
            folder=folder,
            prefix=what.prefix,
            random=RANDOM_COLUMNS,
            bodies=BODY_COLUMNS,
            footers=FOOTER_COLUMNS,
            body_codec=_SORTED_CODEC if arrange else "ZSTD",
            row_group_rows=L1_ROW_GROUP,
        )

    def _commit(
        self,
        fresh: Sequence[DataFile],
        gone: Sequence[DataFile],
        epoch: int,
        *,
        superseded: int = 0,
        redacted: int = 0,
        expired: int = 0,
        dropped: int = 0,
        letters: Callable[[LetterKeys], LetterKeys] = lambda known: known,
        kind: str = UPKEEP,
    ) -> Committed:
        """Replaces files by others.

        Args:
            superseded, redacted, expired: events and letters that are not in the new files any more.
            dropped: the fence up to which sorted days hold no dead bytes, where somebody has looked.
            letters: what holds of letters of nobody's from here on; may raise `EpochMoved`.
            kind: see `upkeep_summary`.
        """

        def guard(metadata: TableMetadata) -> dict[str, str]:
            if self._keyring.epoch() != epoch:
                raise EpochMoved("somebody was erased while the day was rewritten")
            head = metadata.current_snapshot()
            was = summary_of(head) if head is not None else {}
            return upkeep_summary(
                was,
                epoch=epoch,
                superseded=superseded,
                redacted=redacted,
                expired=expired,
                dropped=dropped,
                letters=letters(letter_keys_of(was)),
                kind=kind,
            )

        return self._table.commit(fresh, guard, removes=gone)

    def _open_group(self, rows: pl.DataFrame, event_type: EventType, facet: Facet) -> Opened:
        return open_blocks(
            rows,
            event_type,
            facet,
            fields=[*PERSONAL_HEAD, *(f.name for f in event_type.fields)],
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
            in_block_order(events),
            event_type,
            facet,
            session=self._keyring.session(),
            table_uuid=self._uuid,
            ingested_at=earliest,
            source=L1_SOURCE,
        )
