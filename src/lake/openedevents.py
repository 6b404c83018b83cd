"""Stored events as the CloudEvents they were, all facets of one together, in pieces that fit into memory.

The order does not depend on how much memory there is: by handle, and of one handle as it was ingested. So
a run that was interrupted is continued under any setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson
import polars as pl
from pyiceberg.manifest import DataFile

from lake.eventtypes import EventType, Facet
from lake.pieces import Pace
from lake.replay import EVERYBODY, Events, Replay
from lake.selection import Arrival, EventRead, HandleRange

_HEAD: Final = ("event_id", "occurred_at", "subject", "source")
_Key = tuple[str, str, int]


class OpenedEvents:
    """Events of one type out of some data files.

    Args:
        memory_bytes: that a piece may take, at the peak of reading it. A person is never cut: who has more
            in these files takes more.
        arrival: only events that came so.
    """

    def __init__(
        self,
        replay: Replay,
        event_type: EventType,
        files: Sequence[DataFile],
        memory_bytes: int,
        arrival: Arrival | None = None,
    ) -> None:
        self._replay = replay
        self._type = event_type
        self._files = files
        self._memory_bytes = memory_bytes
        self._arrival = arrival
        self._is_json = {one.name for one in event_type.fields if one.is_json}

    def each(self) -> Iterator[dict[str, Any] | None]:
        """Every stored event, duplicates included; None stands where an erased person's was.

        Objects and arrays are fragments: written into JSON as the bytes that were taken, never read and
        written anew.

        What is in the blocks of an arrival and not asked for is `{}`, so that everything keeps its number.

        Raises:
            see `Replay.events`.
        """
        primary, *others = self._type.facets
        names = tuple(one.name for one in self._type.fields)
        place = () if self._arrival is None else ("position",)
        mine = EventRead(self._type.name, (*names, *_HEAD, *place), primary, arrival=self._arrival)
        same = [self._read_of(one) for one in others if one.role == primary.role]
        elsewhere = [self._read_of(one) for one in others if one.role != primary.role]
        pace = Pace(self._memory_bytes)
        for span in self._replay.ranges(self._files, [mine, *same], EVERYBODY, pace):
            found = self._read(mine, span)
            rest: dict[_Key, dict[str, Any]] = {}
            for read in same:
                _add(rest, self._read(read, span).frame, read)
            pace.note(found.stored, found.peak_bytes * (1 + len(same)))
            wanted = found.frame.select("source", "event_id", "_rev")
            for read in elsewhere:  # of other people, whose handles lie anywhere
                self._add_others(rest, read, wanted)
            for row in found.frame.sort("subject_ref", maintain_order=True).iter_rows(named=True):
                if self._arrival is not None and not self._arrival.has_line(row["position"]):
                    yield {}
                else:
                    yield None if row["shredded"] else self._event(row, names, rest)

    def _read_of(self, facet: Facet) -> EventRead:
        own = (one.name for one in self._type.fields if not one.anonymous and one.facet == facet)
        return EventRead(self._type.name, (*own, *_HEAD), facet, arrival=self._arrival)

    def _read(self, read: EventRead, span: HandleRange) -> Events:
        return self._replay.events(self._files, read, ref_range=span, settled=False)

    def _add_others(self, rest: dict[_Key, dict[str, Any]], read: EventRead, wanted: pl.DataFrame) -> None:
        pace = Pace(self._memory_bytes)
        for span in self._replay.ranges(self._files, [read], EVERYBODY, pace):
            found = self._read(read, span)
            pace.note(found.stored, found.peak_bytes)
            _add(rest, found.frame.join(wanted, on=["source", "event_id", "_rev"], how="semi"), read)

    def _event(
        self, row: dict[str, Any], names: Sequence[str], rest: dict[_Key, dict[str, Any]]
    ) -> dict[str, Any]:
        values = {name: row[name] for name in names} | rest.get(_key(row), {})
        return {
            "specversion": "1.0",
            "id": row["event_id"],
            "source": row["source"],
            "type": self._type.name,
            "subject": row["subject"],
            "time": row["occurred_at"],
            "schemaversion": self._type.version,
            "revision": row["_rev"],
            "data": {
                name: orjson.Fragment(value) if name in self._is_json else value
                for name, value in values.items()
                if value is not None
            },
        }


def _add(rest: dict[_Key, dict[str, Any]], frame: pl.DataFrame, read: EventRead) -> None:
    own = [name for name in read.fields if name not in _HEAD]
    for row in frame.filter(~pl.col("shredded")).iter_rows(named=True):
        rest.setdefault(_key(row), {}).update({name: row[name] for name in own})


def _key(row: dict[str, Any]) -> _Key:
    return row["source"], row["event_id"], row["_rev"]
