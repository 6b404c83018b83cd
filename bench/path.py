"""Suite `path`: the whole path, beside what the same rows cost without sealing.

SHREDLAKE-free yardsticks run in the same process: pyiceberg's own append, Polars on plaintext Parquet.
The number of marketplace events is BENCH_EVENTS (default 2,000,000).
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import orjson
import polars as pl
from pyiceberg.catalog.sql import SqlCatalog

from bench import erasures
from bench.measure import Figure, at_least, at_most, median_seconds, seconds
from keys import FieldContext, SubjectId
from lake import (
    DEFAULT_BATCH_EVENTS,
    Housekeeping,
    HttpBatch,
    JsonLinesFile,
    MappedFile,
    Source,
    TypeRegistry,
    Upkeep,
    load_mapping,
    with_read_ahead,
)
from lake.mapping import Mapping, parse_mapping
from service.runtime import Runtime, initialise, open_runtime

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
EVENTS = int(os.environ.get("BENCH_EVENTS", "2000000"))


def run() -> list[Figure]:
    """Every figure of the suite."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        figures += _codec(Path(folder) / "codec")
        figures += _known_people(Path(folder) / "known")
        figures += _commits(Path(folder) / "commits")
        figures += _stream(Path(folder) / "stream")
        figures += _cdnow(Path(folder) / "cdnow")
        figures += _marketplace(Path(folder) / "market")
        figures += erasures_alone(Path(folder) / "erasures")
    return figures


def erasures_alone(folder: Path) -> list[Figure]:
    """The n-th erasure beside the 2nd; see `bench.erasures`."""
    folder.mkdir()
    raw = folder / "purchases.csv"
    _purchases(raw, erasures.EVENTS, erasures.EVENTS // 10, "2026-01-01")

    def ingest(runtime: Runtime) -> None:
        runtime.lake.ingestor().run(MappedFile(raw, _purchase_mapping(runtime.lake.types)))

    with contextlib.ExitStack() as lakes:
        four = [
            erasures.prepared(lakes.enter_context(_open(folder / name, "cdnow")), ingest)
            for name in ("late", "early", "alone", "together")
        ]
        return erasures.figures(*four)


def _open(home: Path, example: str) -> Runtime:
    initialise(home, [EXAMPLES / example / "views.py"])
    runtime = open_runtime(home)
    for schema in sorted((EXAMPLES / example).glob("*.json")):
        runtime.lake.types.register(json.loads(schema.read_text()))
    return runtime


def _codec(home: Path) -> list[Figure]:
    """Seal and open alone: blocks of 20 events of 200 B, and of one."""
    figures = []
    with _open(home, "cdnow") as runtime:
        context = FieldContext(b"\0" * 16, 16, "personal", "service", "Bench", 1)
        for per_block in (20, 1):
            blocks = 10_000
            people = [SubjectId(f"{per_block}-{n}") for n in range(blocks)]
            refs = [p.ref for p in runtime.keyring.provision(people)]  # type: ignore[union-attr]
            ids = [os.urandom(16) for _ in refs]
            bodies = [os.urandom(40) * 5 * per_block for _ in refs]
            session, opener = runtime.keyring.session(), runtime.keyring.opener()
            sealed = session.seal(context, refs, ids, bodies)
            seal = median_seconds(lambda: session.seal(context, refs, ids, bodies))
            opened = median_seconds(lambda: opener.open(context, refs, ids, sealed))  # type: ignore[arg-type]
            label = f"{per_block}-event blocks of 200 B events"
            figures.append(Figure(f"seal, {label}", blocks * per_block / seal, "events/s"))
            figures.append(Figure(f"open, {label}", blocks * per_block / opened, "events/s"))
    return figures


def _commits(home: Path) -> list[Figure]:
    """Latency of one small commit, early and late."""
    took: list[float] = []
    with _open(home, "cdnow") as runtime:
        ingestor = runtime.lake.ingestor()
        for n in range(510):
            event = {
                "id": str(n), "source": "b", "type": "Purchased", "subject": f"p{n % 7}",
                "time": "2026-01-01T00:00:00Z", "data": {"cds": 1, "amount_cents": 1, "customer": "c"},
            }  # fmt: skip
            batch = HttpBatch([orjson.dumps(event)], f"k{n}", runtime.lake.types)
            took.append(seconds(lambda batch=batch: ingestor.run(batch)))  # type: ignore[misc]
            if n % 50 == 49:
                Housekeeping(runtime.lake).expire(keep=50)
    early, late = statistics.median(took[5:25]) * 1000, statistics.median(took[490:510]) * 1000
    return [
        Figure("commit latency around commit 10", early, "ms"),
        Figure("commit latency around commit 500", late, "ms"),
        at_most("commit latency at 500 / at 10", late / early, "×", 1.5, "the same run"),
    ]


def _cdnow(home: Path) -> list[Figure]:
    raw = home.parent / "CDNOW_master.txt"
    raw.write_bytes(gzip.decompress((EXAMPLES / "cdnow" / "CDNOW_master.txt.gz").read_bytes()))
    with _open(home, "cdnow") as runtime:
        mapping = load_mapping(EXAMPLES / "cdnow" / "mapping.toml", runtime.lake.types)
        source = MappedFile(raw, mapping)
        figures, plain = _ingest(runtime, source, "CDNOW", home.parent / "plain_cdnow")
        figures += _rebuild(runtime, "CDNOW", plain, _cdnow_yardstick)
        start = time.perf_counter()
        request = runtime.purge.submit(SubjectId("customer-14048")).request
        runtime.purge.run(request.request_id)
        figures.append(at_most("CDNOW: erase end to end", time.perf_counter() - start, "s", 3))
        figures += _bytes(runtime, "CDNOW", plain)
    return figures


def _purchases(to: Path, count: int, people: int, day: str) -> None:
    lines = [f"c{n % people},{day},{n % 7},{n % 90}.{n % 100:02}\n" for n in range(count)]
    to.write_text("customer,date,cds,amount\n" + "".join(lines))


def _purchase_mapping(types: TypeRegistry) -> Mapping:
    document = tomllib.loads((EXAMPLES / "cdnow" / "mapping.toml").read_text())
    document["format"] = {"kind": "csv"}
    document["event"]["time_format"] = "%Y-%m-%d"
    return parse_mapping(document, types)


def _known_people(home: Path) -> list[Figure]:
    """What blocks are made for: 20 events a person in a batch, of people who are known already."""
    for name, day in (("first", "2026-01-01"), ("second", "2026-01-02")):
        _purchases(home.parent / f"{name}.csv", 100_000, 5000, day)
    with _open(home, "cdnow") as runtime:
        mapping = _purchase_mapping(runtime.lake.types)
        runtime.lake.ingestor().run(MappedFile(home.parent / "first.csv", mapping))
        source = MappedFile(home.parent / "second.csv", mapping)
        figures, _ = _ingest(runtime, source, "20 events a person, known people", home.parent / "plain_known")
    return figures


def _generate(to: Path, count: int) -> None:
    spec = importlib.util.spec_from_file_location("generate", EXAMPLES / "marketplace" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    with to.open("wb") as file:
        for event in generate.events(count, count // 20, 7):
            file.write(orjson.dumps(event) + b"\n")


def _stream(home: Path) -> list[Figure]:
    """Many small commits of one type, as a stream makes them."""
    raw = home.parent / "stream.csv"
    _purchases(raw, 300_000, 15_000, "2026-01-01")
    with _open(home, "cdnow") as runtime:
        source = MappedFile(raw, _purchase_mapping(runtime.lake.types))
        label = "300 commits of 1,000 events"
        return _ingest(runtime, source, label, home.parent / "plain_stream", batch=1000)[0]


def _marketplace(home: Path) -> list[Figure]:
    raw = home.parent / "market.jsonl"
    _generate(raw, EVENTS)
    label = f"marketplace {EVENTS / 1e6:g} M"
    with _open(home, "marketplace") as runtime:
        source = JsonLinesFile(raw, runtime.lake.types)
        figures, plain = _ingest(runtime, source, label, home.parent / "plain_market")
        figures += _rebuild(runtime, label, plain, _market_yardstick)
        start = time.perf_counter()
        request = runtime.purge.submit(SubjectId("person-7")).request
        runtime.purge.run(request.request_id)
        figures.append(Figure(f"{label}: erase end to end", time.perf_counter() - start, "s"))
        figures += _bytes(runtime, label, plain)
    return figures


def _ingest(
    runtime: Runtime, source: Source, label: str, plain: Path, batch: int = DEFAULT_BATCH_EVENTS
) -> tuple[list[Figure], Path]:
    """Sealed ingest, then the same parsed rows through pyiceberg's own append; returns their files."""
    done = None

    def sealed() -> None:
        nonlocal done
        done = runtime.lake.ingestor().run(with_read_ahead(source), batch_events=batch)

    ours = seconds(sealed)
    assert done is not None
    count = done.events  # type: ignore[unreachable]
    plain.mkdir()
    catalog = SqlCatalog("plain", uri=f"sqlite:///{plain}/c.db", warehouse=plain.as_uri())
    catalog.create_namespace("p")
    tables: dict[str, object] = {}

    def append() -> None:
        for parsed in source.read(0, batch):
            for event_type, frame in parsed.accepted:
                arrow = frame.to_arrow()
                table = tables.get(event_type.name)
                if table is None:
                    table = tables[event_type.name] = catalog.create_table(
                        f"p.{event_type.name}", arrow.schema
                    )
                table.append(arrow)  # type: ignore[attr-defined]

    theirs = seconds(append)
    return [
        Figure(f"{label}: files → sealed → committed", count / ours, "events/s"),
        at_least(
            f"{label}: sealed / plain append speed", theirs / ours, "×", 1.0, "pyiceberg append, same parser"
        ),
    ], plain


def _rebuild(runtime: Runtime, label: str, plain: Path, yardstick: object) -> list[Figure]:
    """Rebuild of all views from L1, beside Polars on the plaintext Parquet files."""
    upkeep = Upkeep(runtime.lake)
    compacted = seconds(lambda: [upkeep.compact(day) for day in upkeep.days()])
    names = runtime.views.registry.names()
    built = []

    def build() -> None:
        built[:] = runtime.views.build(names, rebuild=True)

    ours = median_seconds(build, 3)
    runtime.views.publish(built, who="bench", why="bench")
    theirs = median_seconds(lambda: yardstick(plain), 3)  # type: ignore[operator]
    events = max(one.publication.events_counted for one in built)
    return [
        Figure(f"{label}: compaction L0 → L1", compacted, "s"),
        Figure(f"{label}: rebuild of three views", events / ours, "events/s"),
        Figure(
            f"{label}: rebuild / Polars on plaintext", ours / theirs, "×", "", None, "Polars, same group-bys"
        ),
    ]


def _bytes(runtime: Runtime, label: str, plain: Path) -> list[Figure]:
    sealed = sum(file.file_size_in_bytes for file in runtime.lake.events.files())
    clear = sum(path.stat().st_size for path in plain.rglob("*.parquet"))
    return [
        Figure(f"{label}: bytes after L1", sealed, "B"),
        Figure(
            f"{label}: bytes after L1 / plaintext zstd Parquet", sealed / clear, "×", "", None, "zstd Parquet"
        ),
    ]


def _scan(plain: Path, name: str) -> pl.LazyFrame:
    return pl.scan_parquet([str(p) for p in plain.rglob("*.parquet") if f"/{name}/" in str(p)])


def _cdnow_yardstick(plain: Path) -> None:
    frame = _scan(plain, "Purchased")
    day = pl.col("occurred_at").dt.date()
    frame.group_by(day).agg(pl.len(), pl.col("cds").sum(), pl.col("amount_cents").sum()).collect()
    month = frame.group_by("subject", day.dt.month_start()).agg(pl.col("amount_cents").sum())
    month.group_by("occurred_at", pl.col("amount_cents") // 10_000).agg(pl.len()).collect()
    at = pl.col("occurred_at")
    frame.group_by("subject").agg(
        pl.len(), pl.col("amount_cents").sum(), at.min().alias("a"), at.max().alias("b")
    ).collect()


def _market_yardstick(plain: Path) -> None:
    day = pl.col("occurred_at").dt.date()
    parts = [_scan(plain, n).select(day, "city", "amount_cents") for n in ("Ordered", "Settled", "RideEnded")]
    pl.concat(parts).group_by("occurred_at", "city").agg(pl.len(), pl.col("amount_cents").sum()).collect()
    ordered = _scan(plain, "Ordered")
    ordered.group_by(day).agg(pl.col("subject").n_unique(), pl.col("amount_cents").sum()).collect()
    ordered.group_by("subject").agg(
        pl.len(), pl.col("amount_cents").sum(), pl.col("occurred_at").max()
    ).collect()


if __name__ == "__main__":
    sys.exit("run `python -m bench path`")
