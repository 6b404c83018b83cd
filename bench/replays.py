"""Figures of L1: its size, replays beside the codec alone and beside Polars on plaintext, one person's events.

The yardstick is one zstd Parquet file of the same events, sorted by type and person, written and read by Polars
in this process with a thread for every core; groups of replayed events are made by as many processes, which are
started beforehand. BENCH_REPLAY_EVENTS says how many events (default 10,000,000), twenty of each person on ten
days. What is measured on one core reads the people of one fifth.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import polars as pl
from attrs import frozen
from pyiceberg.manifest import DataFile

from bench.clicks import CLICKED, clicked
from bench.measure import Figure, at_least, at_most, median_seconds, seconds
from keys import Opener, SubjectId
from lake import EventRead, HttpBatch, Replay, Upkeep
from lake.bodyreader import unpack
from lake.events import sealing_context
from lake.eventtypes import PRIMARY
from lake.processes import sharing_cores
from lake.runs import open_events
from lake.selection import OPEN_COLUMNS, SEALED_COLUMNS, HandleRange, Selection, stored_blocks
from service.runtime import Runtime, initialise, open_replay, open_runtime

EVENTS: Final = int(os.environ.get("BENCH_REPLAY_EVENTS", "10000000"))
PER_PERSON: Final = 20
PEOPLE: Final = EVENTS // PER_PERSON
RUNS: Final = 5
_BATCH: Final = 100_000
_PIECE_BYTES: Final = 128 * 1024 * 1024
_CORES: Final = len(os.sched_getaffinity(0))
_FIFTH: Final = (b"", b"\x33\x33")
_RANGES: Final = [(bytes([at]), bytes([at + 8]) if at < 248 else None) for at in range(0, 256, 8)]
_WIDE_RANGES: Final = [(low, high) for (low, _), (_, high) in zip(_RANGES[::4], _RANGES[3::4], strict=True)]
_PERSONAL: Final = EventRead("Clicked", ("page", "query", "occurred_at", "milliseconds"))
_BY_PERSON: Final = EventRead("Clicked", ("query", "milliseconds", "occurred_on"))
_CLEAR: Final = EventRead("Clicked", ("page", "milliseconds", "occurred_on"))
_ALL: Final = EventRead(
    "Clicked", ("subject", "source", "event_id", "occurred_at", "page", "milliseconds", "query", "address")
)
_DAY: Final = pl.col("occurred_at").dt.date().alias("day")
_CLEAR_MEASURES: Final = (pl.len(), pl.col("milliseconds").sum())
_MEASURES: Final = (pl.len(), pl.col("milliseconds").sum(), pl.col("query").str.len_bytes().sum())


_Work = Callable[[HandleRange, Path], Path]


def replays(folder: Path) -> list[Figure]:
    """All figures of this module."""
    with _filled(folder / "replay") as runtime:
        upkeep = Upkeep(runtime.lake)
        compaction = seconds(lambda: [upkeep.compact(day, piece_bytes=_PIECE_BYTES) for day in upkeep.days()])
        plain = folder / "plain.parquet"
        _write_plain(runtime, plain)
        label = f"{EVENTS / 1e6:g} M"
        return [
            Figure(f"L1 of {label} events of {PEOPLE:,} people", compaction, "s"),
            _size(runtime, plain),
            at_most(f"one person's events out of {label}", _one_person(runtime), "s", 0.5),
            *_personal(runtime),
            *_groups(runtime, plain),
        ]


def _filled(home: Path) -> Runtime:
    initialise(home)
    runtime = open_runtime(home)
    runtime.lake.types.register(CLICKED)
    ingestor = runtime.lake.ingestor()
    for start in range(0, EVENTS, _BATCH):
        lines = [clicked(number, PEOPLE) for number in range(start, min(start + _BATCH, EVENTS))]
        ingestor.run(HttpBatch(lines, f"b{start}", runtime.lake.types))
    return runtime


def _write_plain(runtime: Runtime, to: Path) -> None:
    """The same events in the clear, as the replay gives them back: none is missing, none twice."""
    found = runtime.lake.replay().events(runtime.lake.events.files(), _ALL)
    assert found.frame.height == EVENTS == found.frame["event_id"].n_unique()
    rows = found.frame.select(pl.lit("Clicked").alias("type"), *_ALL.fields)
    rows.sort("type", "subject", maintain_order=True).write_parquet(to, compression="zstd")


def _size(runtime: Runtime, plain: Path) -> Figure:
    sealed = sum(file.file_size_in_bytes for file in runtime.lake.events.files())
    clear = plain.stat().st_size
    name = f"bytes after L1 / plaintext, {PER_PERSON} events a person"
    return at_most(name, sealed / clear, "×", 2.0, "zstd Parquet by Polars, sorted by type and person")


def _one_person(runtime: Runtime) -> float:
    """An access request: seconds from the name to the events, the handle and the snapshot's files included."""
    reader, person = runtime.lake.replay(), SubjectId("person-7")

    def access() -> pl.DataFrame:
        ref = runtime.keyring.ref_of(person)
        assert ref is not None
        return reader.events(runtime.lake.events.files(), _ALL, refs=[ref]).frame

    assert access().height == PER_PERSON
    return median_seconds(access, 7)


def _personal(runtime: Runtime) -> list[Figure]:
    reader, files = runtime.lake.replay(), runtime.lake.events.files()
    events = reader.events(files, _PERSONAL, ref_range=_FIFTH).stored
    took = _together(
        replay=lambda: reader.events(files, _PERSONAL, ref_range=_FIFTH, tagged=False),
        codec=_codec_alone(runtime),
    )
    return [
        at_least(
            "replay from L1, personal fields, one core", events / took["replay"].cpu, "events/s", 1_000_000
        ),
        Figure("replay from L1, personal fields, wall", events / took["replay"].wall, "events/s"),
        at_most(
            "replay from L1 / the codec alone",
            took["replay"].wall / took["codec"].wall,
            "×",
            1.5,
            "open + unzstd + unpack of the same blocks in memory",
        ),
    ]


def _groups(runtime: Runtime, plain: Path) -> list[Figure]:
    """Group-bys over everything: ours by processes, each of a few ranges of people; Polars' by its threads."""

    def personal() -> pl.DataFrame:
        return pl.scan_parquet(plain).group_by("subject", _DAY).agg(_MEASURES).collect()

    def anonymous() -> pl.DataFrame:
        page_day = pl.col("occurred_at").dt.date().alias("occurred_on")
        return pl.scan_parquet(plain).group_by("page", page_day).agg(_CLEAR_MEASURES).collect()

    folder = plain.parent / "groups"
    folder.mkdir()

    def ours(pool: ProcessPoolExecutor, work: _Work, ranges: Sequence[HandleRange]) -> pl.LazyFrame:
        places = [folder / f"{at}.arrow" for at in range(len(ranges))]
        return pl.scan_ipc(list(pool.map(work, ranges, places)))

    # Each in processes of its own: what the one keeps in memory is not in the other's way.
    with _readers(runtime.home, folder) as pool:
        people = ours(pool, _by_person, _RANGES).collect()
        assert _totals(people) == _totals(personal())
        took = _together(ours=lambda: ours(pool, _by_person, _RANGES), theirs=personal)
    with _readers(runtime.home, folder) as pool:

        def pages() -> pl.DataFrame:
            found = ours(pool, _by_page, _WIDE_RANGES).group_by("page", "occurred_on")
            return found.agg(pl.selectors.numeric().sum()).collect()

        assert _totals(pages()) == _totals(anonymous())
        took |= _together(our_pages=pages, their_pages=anonymous)
    return [
        Figure(f"{people.height:,} people-days out of L1, by processes", took["ours"].wall, "s"),
        at_most(
            "personal fields by person and day: replay / plaintext",
            took["ours"].wall / took["theirs"].wall,
            "×",
            4,
            "Polars on zstd Parquet",
        ),
        Figure("replay from L1, anonymous fields only, grouped", EVENTS / took["our_pages"].wall, "events/s"),
        at_most(
            "anonymous fields by page and day: replay / plaintext",
            took["our_pages"].wall / took["their_pages"].wall,
            "×",
            2,
            "Polars on zstd Parquet",
        ),
    ]


@contextmanager
def _readers(home: Path, folder: Path) -> Iterator[ProcessPoolExecutor]:
    """Processes that read this lake, a core each, started and warm; they leave what they find as Arrow files."""
    context = multiprocessing.get_context("spawn")
    with sharing_cores(_CORES), ProcessPoolExecutor(_CORES, context, _start, (home,)) as pool:
        list(pool.map(_by_page, _RANGES[:_CORES], [folder / f"{at}.arrow" for at in range(_CORES)]))
        yield pool


_reader: Replay | None = None
_files: list[DataFile] = []


def _start(home: Path) -> None:
    global _reader, _files
    _reader = open_replay(home)
    head = _reader.resolve(None)
    assert head is not None
    _files = _reader.files(head.snapshot_id)


def _by_person(people: HandleRange, to: Path) -> Path:
    assert _reader is not None
    found = _reader.events(_files, _BY_PERSON, ref_range=people, tagged=False).frame
    found.group_by("subject_ref", "occurred_on").agg(_MEASURES).write_ipc(to)
    return to


def _by_page(people: HandleRange, to: Path) -> Path:
    assert _reader is not None
    found = _reader.events(_files, _CLEAR, ref_range=people, tagged=False).frame
    found.lazy().group_by("page", "occurred_on").agg(_CLEAR_MEASURES).collect().write_ipc(to)
    return to


def _codec_alone(runtime: Runtime) -> Callable[[], object]:
    """Opens, decompresses and unpacks what the replay does (Parquet has decompressed the open parts), from lists in memory, and nothing else.

    The opener knows the people's keys already, as the replay's does after its first run.
    """
    table = runtime.lake.events
    event_type = runtime.lake.types.get("Clicked")
    wanted = Selection("Clicked", PRIMARY, ref_range=_FIFTH)
    blocks = stored_blocks(table, table.files(), wanted, (*OPEN_COLUMNS, *SEALED_COLUMNS))
    rows = blocks.rows
    context = sealing_context(table.metadata().table_uuid.bytes, event_type, PRIMARY)
    refs, ids, sealed = (rows[c].to_list() for c in ("subject_ref", "block_id", "sealed"))
    counts = rows["event_count"].to_numpy()
    opener: Opener = runtime.keyring.opener()
    clear_names = ["_day", "page", "milliseconds"]

    def run() -> None:
        bodies: Any = opener.open(context, refs, ids, sealed)
        unpack(bodies, counts, event_type.sealed_schema(PRIMARY), ["_time", "query"])
        open_events(rows, blocks.runs, event_type.open_schema, clear_names)

    return run


@frozen
class _Took:
    wall: float
    cpu: float


def _together(**works: Callable[[], object]) -> dict[str, _Took]:
    """Medians of works that are run in turns, so that what else the machine does meets all of them."""
    took: dict[str, list[_Took]] = {name: [] for name in works}
    for _ in range(RUNS):
        for name, work in works.items():
            cpu, wall = time.process_time(), time.perf_counter()
            work()
            took[name].append(_Took(time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: _Took(statistics.median(o.wall for o in ones), statistics.median(o.cpu for o in ones))
        for name, ones in took.items()
    }


def _totals(frame: pl.DataFrame) -> tuple[Any, ...]:
    """Of every measure, and how many groups there are."""
    return (frame.height, *frame.select(pl.selectors.numeric().sum()).row(0))
