"""Sends a range of the lake back to a topic, for consumers that need more than the broker keeps.

The order is fixed by a pinned snapshot, and every message carries its place in it. So the topic itself
says how far an interrupted run came: the next one reads the last message of each partition and goes on
behind it, without a cursor of its own.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, Final, Protocol

import orjson
import polars as pl
from attrs import frozen
from pyiceberg.manifest import DataFile

from lake.errors import SnapshotGone
from lake.events import EVENTS_TABLE
from lake.eventtypes import DEAD_LETTER, EventType
from lake.lakehouse import Lake
from lake.levels import added_after
from lake.merging import day_of
from lake.objects import collected
from lake.openedevents import OpenedEvents
from lake.replay import DEFAULT_MEMORY_BYTES
from lake.sealedmessages import encode_blocks
from lake.selection import WHOLE_COLUMNS, Arrival, Selection, stored_blocks, whole_rows

PLACE: Final = "shredlake-place"
_SECOND: Final = 1.0


class Outlet(Protocol):
    """A topic that takes messages and tells what it has; see `lake.kafkaoutlet`."""

    def partitions(self) -> int:
        """How many. Raises `TopicUnavailable`."""
        ...

    def last_places(self) -> list[str | None]:
        """The header `PLACE` of each partition's newest message. Raises `TopicUnavailable`."""
        ...

    def put(self, value: bytes, key: bytes, headers: dict[str, bytes], partition: int) -> None: ...
    def flush(self) -> None: ...


@frozen
class Wanted:
    """Which part of the lake.

    Attributes:
        first, last: ingest days, both included; None is open.
        types: event types; empty means all.
        opened: as CloudEvents in clear instead of sealed blocks.
        after: a snapshot of `lake.events`; only what was ingested after it. None is from the beginning.
        arrival: only what came so. Still sealed, a block goes whole that has one such event.
    """

    first: date | None = None
    last: date | None = None
    types: tuple[str, ...] = ()
    opened: bool = False
    after: int | None = None
    arrival: Arrival | None = None


@frozen
class Republished:
    """What a run sent.

    Attributes:
        messages, events: sent now; `already` messages were there from an earlier run.
        withheld: events, or sealed blocks, of erased people; they are not sent.
    """

    snapshot_id: int
    messages: int
    events: int
    already: int
    withheld: int


@frozen
class _Item:
    key: bytes
    value: bytes
    events: int


_NOT_ASKED_FOR: Final = _Item(b"", b"", 0)


class Republisher:
    """Sends ranges of one lake.

    Args:
        messages_per_second: at the most; None for as fast as the broker takes them.
        memory_bytes: see `OpenedEvents`.
    """

    def __init__(
        self,
        lake: Lake,
        outlet: Outlet,
        messages_per_second: float | None = None,
        clock_seconds: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        self._lake = lake
        self._outlet = outlet
        self._rate = messages_per_second
        self._clock = clock_seconds
        self._sleep = sleep
        self._memory_bytes = memory_bytes
        self._withheld = 0

    def run(
        self,
        wanted: Wanted,
        snapshot_id: int | None = None,
        progress: Callable[[int, int], None] = lambda messages, events: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Republished:
        """Sends what is not in the topic yet; run it again with the same snapshot to go on.

        Args:
            snapshot_id: of `lake.events`; default: the one that the topic's messages name, else the head.

        Raises:
            SnapshotGone: there is no event, a snapshot has expired, or no file tells what came after one,
                or in this way.
            TopicUnavailable: the broker is away; run it again.
        """
        count = self._outlet.partitions()
        places = [_read_place(text) for text in self._outlet.last_places()]
        ask = _digest(wanted)
        if snapshot_id is None:
            ours = [place for place in places if place is not None and place[0] == ask]
            snapshot_id = ours[0][1] if ours else None
        snapshot = self._lake.events.snapshot(snapshot_id)
        if snapshot is None:
            raise SnapshotGone("the lake holds no event yet", next_step="Ingest some first.")
        tags = {f"republish-{ask}": snapshot.snapshot_id}
        if wanted.after is not None:
            tags[f"republish-{ask}-after"] = wanted.after
        self._lake.events.set_tags(tags)
        job = (ask, snapshot.snapshot_id)
        done = [place[2] if place is not None and place[:2] == job else -1 for place in places]
        messages = events = already = 0
        began, self._withheld = self._clock(), 0
        for at, item in enumerate(self._items(wanted, snapshot.snapshot_id)):
            if should_stop():
                break
            if item is None:
                self._withheld += 1
                continue
            if item is _NOT_ASKED_FOR:
                continue
            partition = zlib.crc32(item.key) % count
            if at <= done[partition]:
                already += 1
                continue
            header = f"{ask} {snapshot.snapshot_id} {at}".encode()
            self._outlet.put(item.value, item.key, {PLACE: header}, partition)
            messages, events = messages + 1, events + item.events
            if messages % 500 == 0:
                progress(messages, events)
            if self._rate is not None:
                ahead = messages / self._rate - (self._clock() - began)
                if ahead > 0:
                    self._sleep(min(ahead, _SECOND))
        else:
            self._outlet.flush()
            self._lake.events.set_tags({}, list(tags))
        self._outlet.flush()
        progress(messages, events)
        return Republished(snapshot.snapshot_id, messages, events, already, self._withheld)

    def _items(self, wanted: Wanted, snapshot_id: int) -> Iterator[_Item | None]:
        """In an order that no erasure changes: None stands where somebody's event was."""
        days: dict[date, list[Any]] = {}
        for file in self._files(wanted, snapshot_id):
            day = day_of(file)
            if (wanted.first is None or day >= wanted.first) and (wanted.last is None or day <= wanted.last):
                days.setdefault(day, []).append(file)
        if wanted.arrival is not None:
            self._check_told(wanted.arrival, days)
        names = sorted(wanted.types) or self._lake.types.names()
        for day in sorted(days):
            files = sorted(days[day], key=lambda file: str(file.file_path))
            for name in names:
                if name != DEAD_LETTER:
                    make = self._opened if wanted.opened else self._sealed
                    yield from make(files, self._lake.types.get(name), wanted.arrival)

    def _check_told(self, arrival: Arrival, days: Mapping[date, Sequence[Any]]) -> None:
        """Sorting puts events of several commits and sources into one block; nothing is guessed then."""
        for day in sorted(days):
            if not arrival.is_told_by(day):
                sources = self._lake.events.scan(days[day]).select((pl.col("source") == 0).any())
                if collected(sources).item():
                    raise SnapshotGone(
                        f"upkeep has sorted {day}: how its events came is not told any more",
                        next_step="Send whole ingest days (--from, --to), or what came between snapshots.",
                    )

    def _files(self, wanted: Wanted, snapshot_id: int) -> Sequence[DataFile]:
        """The same in every run, whatever upkeep does: told from the pinned snapshot alone."""
        if wanted.after is None:
            return self._lake.events.files(snapshot_id)
        after = self._lake.events.snapshot(wanted.after)
        found = added_after(
            self._lake.events.sequenced_files(snapshot_id), (after and after.sequence_number) or 0
        )
        if found is None:
            raise SnapshotGone(
                f"upkeep put rows from before and after snapshot {wanted.after} into the same files",
                next_step="Begin at a snapshot that has a tag: merging stops there.",
            )
        return found

    def _sealed(
        self, files: Sequence[Any], event_type: EventType, arrival: Arrival | None
    ) -> Iterator[_Item | None]:
        """Stored blocks as they are; those of erased people have no sealed part any more, or a dead one."""
        uuid = self._lake.events.metadata().table_uuid.bytes
        for facet in event_type.facets:
            wanted = Selection(event_type.name, facet, arrival=arrival)
            found = stored_blocks(self._lake.events, files, wanted, WHOLE_COLUMNS)
            rows = whole_rows(found, self._lake.types.open_schema)
            for block in rows.iter_rows(named=True):
                if block["sealed"] is None:
                    yield None
                    continue
                events = int(block["event_count"]) if block["primary"] else 0
                yield _Item(block["subject_ref"], encode_blocks(uuid, [block]), events)

    def _opened(
        self, files: Sequence[Any], event_type: EventType, arrival: Arrival | None
    ) -> Iterator[_Item | None]:
        """Every event that can be opened as a CloudEvent."""
        events = OpenedEvents(self._lake.replay(), event_type, files, self._memory_bytes, arrival)
        for event in events.each():
            if event:
                yield _Item(event["subject"].encode(), orjson.dumps(event), 1)
            else:
                yield None if event is None else _NOT_ASKED_FOR


def _digest(wanted: Wanted) -> str:
    types = ",".join(sorted(wanted.types))
    text = f"{EVENTS_TABLE}|{wanted.first}|{wanted.last}|{types}|{wanted.opened}|{wanted.after}"
    if wanted.arrival is not None:
        text += f"|{wanted.arrival}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_place(text: str | None) -> tuple[str, int, int] | None:
    try:
        ask, snapshot_id, at = (text or "").split(" ")
        return ask, int(snapshot_id), int(at)
    except ValueError:
        return None
