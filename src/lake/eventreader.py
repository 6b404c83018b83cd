"""From block rows to events of the newest version of their type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl
from attrs import evolve, field, frozen

from keys import Opener
from lake.blocks import Opened, open_blocks
from lake.errors import UnknownEventType
from lake.eventtypes import TAG_FIELDS, EventType
from lake.runs import Runs
from lake.selection import OPEN_COLUMNS, SEALED_COLUMNS, TAG_COLUMNS, EventRead
from lake.typeregistry import TypeRegistry
from lake.upcast import bring_forward, needed_fields

_ROW_COPIES: Final = 10
"""Of block rows while they are opened, measured: read, sorted, envelopes, bodies (decompressed), joined."""
_FRAME_COPIES: Final = 6
"""Of the events while parts of them are put together, and of the piece before that a caller still holds."""


@frozen
class Read:
    """A read with what the registry knows of it.

    Attributes:
        chain: every version of the type, ascending.
        personal: whether sealed parts are opened.
    """

    wanted: EventRead
    chain: tuple[EventType, ...]
    personal: bool

    @property
    def newest(self) -> EventType:
        """The version that events come as."""
        return self.chain[-1]

    @property
    def columns(self) -> tuple[str, ...]:
        """The block columns that it takes."""
        return self._with_sealed(*OPEN_COLUMNS, *TAG_COLUMNS)

    @property
    def settled_columns(self) -> tuple[str, ...]:
        """Those that it takes where nothing is left to settle, and that tell whether it is so."""
        return self._with_sealed(*OPEN_COLUMNS, "generation", "source")

    def _with_sealed(self, *columns: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*columns, *(SEALED_COLUMNS if self.personal else ()))))

    def tags_alone(self) -> Read:
        """The same events without any field: what the duplicate rule looks at."""
        return Read(evolve(self.wanted, fields=()), self.chain, personal=False)


@frozen
class OpenedEvents:
    """Events of one type, duplicates among them, in the order of their rows.

    Attributes:
        frame: as `Events.frame`, with `_order`, the rows' `_n`.
        peak_bytes: about what it took at the peak.
    """

    frame: pl.DataFrame = field(repr=False)
    shredded: int
    held: int
    shredded_refs: frozenset[bytes] = field(repr=False)
    peak_bytes: int


class EventReader:
    """Opens block rows.

    Args:
        opener: asked where personal fields are.
    """

    def __init__(self, types: TypeRegistry, opener: Opener, table_uuid: bytes) -> None:
        self._types = types
        self._opener = opener
        self._table_uuid = table_uuid

    def read(self, wanted: EventRead) -> Read:
        """Looks a read up; before personal fields are read, asks for the newest erasures.

        Raises:
            UnknownEventType: not registered.
        """
        chain = tuple(self._types.chain(wanted.event_type))
        if not chain:
            raise UnknownEventType("no event type of this name is registered")
        personal = wanted.is_personal(chain[-1])
        if personal:
            self._opener.catch_up()
        return Read(wanted, chain, personal)

    def open(self, rows: pl.DataFrame, runs: Runs, read: Read, tagged: bool = True) -> OpenedEvents:
        """The events of rows (`Read.columns` and `_n`) in ingest order; `tagged` as for `open_blocks`.

        Raises:
            EnvelopeError, KeysError: see `keys.Opener.open`; never where a person was erased.
            CorruptBlock: a body does not hold what its columns promise.
        """
        wanted = read.wanted
        parts: list[Opened] = []
        for (version,), group in rows.group_by("schema_version", maintain_order=True):
            path = [one for one in read.chain if one.version >= int(str(version))]
            opened = open_blocks(
                group,
                path[0],
                wanted.facet,
                fields=sorted(needed_fields(path, wanted.fields)[0]),
                personal=read.personal,
                opener=self._opener if read.personal else None,
                table_uuid=self._table_uuid,
                tagged=tagged,
                runs=runs,
            )
            parts.append(evolve(opened, frame=bring_forward(opened.frame, path, wanted.fields, wanted.facet)))
        frames = [conform(part.frame, read.newest, wanted.fields, tagged) for part in parts]
        frame = pl.concat(frames) if frames else conform(pl.DataFrame(), read.newest, wanted.fields, tagged)
        if len(frames) > 1:
            frame = frame.sort("_order", maintain_order=True)
        return OpenedEvents(
            frame,
            sum(part.shredded_events for part in parts),
            sum(part.held_events for part in parts),
            frozenset().union(*(part.shredded_refs for part in parts)),
            round(_ROW_COPIES * _own_bytes(rows) + _FRAME_COPIES * frame.estimated_size()),
        )


def _own_bytes(rows: pl.DataFrame) -> int:
    """Of rows without the bodies of runs, which are read whole, however little of them is asked for."""
    bodies = rows.filter(pl.col("run").is_null()).get_column("open")
    return round(rows.drop("open").estimated_size()) + int(bodies.bin.size().sum())


def conform(frame: pl.DataFrame, newest: EventType, fields: Sequence[str], tagged: bool) -> pl.DataFrame:
    """The frame with exactly the columns of a read: what nothing was derived for is null."""
    types: dict[str, pl.DataType] = {
        "subject_ref": pl.Binary(),
        **(TAG_FIELDS if tagged else {}),
        "occurred_on": pl.Date(),
        "ingest_day": pl.Date(),
        "_order": pl.Int64(),
        "shredded": pl.Boolean(),
    }
    types |= {name: dtype for name, dtype in _HEAD_TYPES.items() if name in fields}
    types |= {f.name: f.dtype for f in newest.fields if f.name in fields}
    if not frame.width:
        return pl.DataFrame(schema=types)
    absent = {name: pl.lit(None, dtype) for name, dtype in types.items() if name not in frame.columns}
    return frame.with_columns(**absent)[list(types)] if absent else frame[list(types)]


_HEAD_TYPES: dict[str, pl.DataType] = {
    "subject": pl.String(),
    "source": pl.String(),
    "event_id": pl.String(),
    "occurred_at": pl.Datetime("us", "UTC"),
    "position": pl.Int64(),
}
