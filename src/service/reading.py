"""Copies events of a lake into a file: one piece after the other here, or ranges of people by processes.

A worker writes its part beside the target, so that no process holds more than a piece. The target appears
when all is in it; what fails or is stopped leaves nothing.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import polars as pl
import pyarrow.parquet as pq
from attrs import frozen
from pyiceberg.manifest import DataFile

from keys import mask_process
from lake import EpochMoved, EventRead, Pace, Replay, build_tag, sharing_cores
from lake.replay import EVERYBODY, Progress
from lake.selection import HandleRange
from service.agent import build_lease
from service.errors import BadInput, WorkerFailed
from service.runtime import Runtime, open_agent_replay, open_replay

STDOUT: Final = Path("-")
_PARQUET: Final = ".parquet"
_LINES: Final = (".jsonl", ".ndjson")
_worker: Replay | None = None


@frozen
class Wanted:
    """What is copied.

    Attributes:
        until: the snapshot; with `after` only what was ingested since that one.
        ref: one person's handle.
        is_personal: whether sealed fields are among it.
    """

    read: EventRead
    until: int
    after: int | None
    ref: bytes | None
    is_personal: bool

    def files(self, replay: Replay) -> list[DataFile]:
        """Where it is. Raises `SnapshotGone`."""
        if self.after is None:
            return replay.files(self.until)
        return replay.files_between(self.after, self.until)


class _Out(Protocol):
    def add(self, frame: pl.DataFrame) -> None: ...
    def append(self, part: Path) -> None: ...
    def close(self) -> None: ...


class _ParquetOut:
    def __init__(self, path: Path, like: pl.DataFrame) -> None:
        self._schema = like.to_arrow(compat_level=pl.CompatLevel.oldest()).schema
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def add(self, frame: pl.DataFrame) -> None:
        self._writer.write_table(frame.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(self._schema))

    def append(self, part: Path) -> None:
        with pq.ParquetFile(part) as file:
            for number in range(file.num_row_groups):
                self._writer.write_table(file.read_row_group(number).cast(self._schema))

    def close(self) -> None:
        self._writer.close()


class _LinesOut:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def add(self, frame: pl.DataFrame) -> None:
        frame.write_ndjson(self._file)

    def append(self, part: Path) -> None:
        with part.open("rb") as file:
            shutil.copyfileobj(file, self._file)

    def close(self) -> None:
        self._file.close() if self._file is not sys.stdout.buffer else self._file.flush()


def copy_events(runtime: Runtime, wanted: Wanted, to: Path, workers: int, progress: Progress) -> int:
    """Writes the events; returns how many.

    Args:
        to: `….parquet` or `….jsonl`; `-` is standard output, as JSON Lines.
        workers: processes; `replay.memory_mb` is shared among them.

    Raises:
        BadInput: no such kind of file.
        EpochMoved: somebody was erased meanwhile; a file is not kept.
        SnapshotGone, WorkerFailed, EnvelopeError, KeysError: see there.
    """
    if to == STDOUT:
        if workers > 1:
            raise BadInput("standard output is written by one process", next_step="Name a file with --to.")
    elif to.suffix not in (_PARQUET, *_LINES):
        raise BadInput("events are written to a file that ends in .parquet or .jsonl, or to -")
    epoch = runtime.keyring.catch_up()
    with ExitStack() as stack:
        stack.enter_context(_pinned(runtime, wanted.until))
        if to == STDOUT:
            count = _copy_here(runtime, wanted, _LinesOut(sys.stdout.buffer), progress)
        else:
            folder = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.absolute().parent))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            whole = folder / f"whole{to.suffix}"
            out = _out(whole, runtime.lake.replay(), wanted)
            if workers > 1 and wanted.ref is None:
                count = _copy_by_workers(runtime, wanted, out, folder, workers, progress)
            else:
                count = _copy_here(runtime, wanted, out, progress)
        if wanted.is_personal and runtime.keyring.catch_up() != epoch:
            raise EpochMoved(
                "somebody was erased while their events may have been copied",
                next_step="Delete what was written to standard output, and read again.",
            )
        if to != STDOUT:
            whole.chmod(0o600)
            os.replace(whole, to)  # noqa: PTH105  (says that it is one step)
    return count


def _copy_here(runtime: Runtime, wanted: Wanted, out: _Out, progress: Progress) -> int:
    replay = runtime.lake.replay()
    memory_bytes = runtime.settings.replay.memory_bytes
    try:
        return _copy(replay, wanted, wanted.files(replay), out, memory_bytes, None, progress)
    finally:
        out.close()


def _copy(
    replay: Replay,
    wanted: Wanted,
    files: Sequence[DataFile],
    out: _Out,
    memory_bytes: int,
    span: HandleRange | None,
    progress: Progress = lambda done, total: None,
) -> int:
    count = 0
    refs = None if wanted.ref is None else [wanted.ref]
    for piece in replay.frames(
        files, wanted.read, memory_bytes=memory_bytes, refs=refs, ref_range=span, progress=progress
    ):
        out.add(shown(piece.frame, wanted))
        count += piece.frame.height
    return count


def shown(frame: pl.DataFrame, wanted: Wanted) -> pl.DataFrame:
    """The fields asked for, handles as text; where some are personal, also whether that part is gone."""
    read = wanted.read
    hexed = [
        pl.col(name).bin.encode("hex") if name == "subject_ref" else pl.col(name) for name in read.fields
    ]
    return frame.select(*hexed, *(["shredded"] if wanted.is_personal else []))


# -- by processes ----------------------------------------------------------------------------------


def _copy_by_workers(
    runtime: Runtime, wanted: Wanted, out: _Out, folder: Path, workers: int, progress: Progress
) -> int:
    replay = runtime.lake.replay()
    memory_bytes = runtime.settings.replay.memory_bytes // workers
    # Never told what a range took, the pace stays at its cautious first guess: many small tasks.
    spans = list(replay.ranges(wanted.files(replay), [wanted.read], EVERYBODY, Pace(memory_bytes)))
    parts = [folder / f"{number}{_suffix(out)}" for number in range(len(spans))]
    context = multiprocessing.get_context("spawn")  # not forked: Polars keeps threads
    write = functools.partial(_write_part, wanted, memory_bytes)
    count = 0
    try:
        with (
            _opener(runtime) as opener,
            sharing_cores(workers),
            ProcessPoolExecutor(workers, context, _start, (opener,)) as pool,
        ):
            for number, events in enumerate(pool.map(write, spans, parts)):
                out.append(parts[number])
                parts[number].unlink()
                count += events
                progress(number + 1, len(spans))
    except BrokenProcessPool:
        raise WorkerFailed("a process that read events ended early") from None
    finally:
        out.close()
    return count


@contextmanager
def _opener(runtime: Runtime) -> Iterator[Callable[[], Replay]]:
    """What a process opens; where the agent keeps the keys, under a lease that ends with the block."""
    if not runtime.settings.keys.agent:
        yield functools.partial(open_replay, runtime.home)
        return
    with build_lease(runtime.home) as lease:
        yield functools.partial(open_agent_replay, runtime.home, lease)


def _start(open_reader: Callable[[], Replay]) -> None:
    global _worker
    mask_process()
    _worker = open_reader()


def _write_part(wanted: Wanted, memory_bytes: int, span: HandleRange, part: Path) -> int:
    assert _worker is not None
    out = _out(part, _worker, wanted)
    try:
        return _copy(_worker, wanted, wanted.files(_worker), out, memory_bytes, span)
    finally:
        out.close()


def _suffix(out: _Out) -> str:
    return _PARQUET if isinstance(out, _ParquetOut) else _LINES[0]


def _out(path: Path, replay: Replay, wanted: Wanted) -> _Out:
    if path.suffix == _PARQUET:
        return _ParquetOut(path, shown(replay.events([], wanted.read).frame, wanted))
    return _LinesOut(path.open("wb"))


@contextmanager
def _pinned(runtime: Runtime, snapshot_id: int) -> Iterator[None]:
    """Keeps the snapshot from expiring while it is read."""
    tag = build_tag(secrets.randbits(48), runtime.lake.clock())
    runtime.lake.events.set_tags({tag: snapshot_id})
    try:
        yield
    finally:
        runtime.lake.events.set_tags({}, [tag])
