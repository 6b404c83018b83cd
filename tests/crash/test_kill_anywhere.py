"""kill -9 before and after every durable effect, then the same command again: one terminal state."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path

import polars as pl
import pytest

from lake import EventRead, Housekeeping, dead_letters, verify
from purge import Status, scan
from service.runtime import Runtime, open_runtime
from tests.crash import crashing
from tests.world import make_world, paid, publish, send

LANES = min(len(os.sched_getaffinity(0)), 4)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(crashing.PRELOAD)
STARTING = threading.Lock()


def attempt(home: Path, job: str, kill_at: int | None, when: str) -> int | None:
    """Runs a job in a process of its own; the number of its effects, or None where it was killed."""
    said = CONTEXT.SimpleQueue()
    process = CONTEXT.Process(target=crashing.run, args=(str(home), job, kill_at, when, said))
    with STARTING:  # a start looks after all other children, too
        process.start()
    wait([process.sentinel], 120)
    with STARTING:
        process.join(0)
    if process.exitcode == -signal.SIGKILL:
        return None
    assert process.exitcode == 0
    count: int = said.get()
    return count


def _restore(base: Path) -> None:
    shutil.rmtree(base)
    shutil.copytree(base.with_name("pristine"), base)


def _base(folder: Path, *, ingested: bool, publications: int) -> Path:
    """A lake before the job, and a copy of it beside; tables know their place, so each lane has its own."""
    base = folder / "base"
    base.mkdir(parents=True)
    crashing.events_file(base)
    runtime = make_world(base / "lake")
    runtime.close()
    config = base / "lake" / "shredlake.toml"  # few buckets: the effects are the same, only faster
    config.write_text(config.read_text().replace("files = ", "bucket_bits = 3\nfiles = "))
    if ingested:
        assert attempt(base / "lake", "ingest", None, "") is not None
    with open_runtime(base / "lake") as again:
        for n in range(publications):
            send(again, [paid("p0", n, event_id=f"more {n}")] if n else [])
            publish(again)
    shutil.copytree(base, folder / "pristine")
    return base


def ids(runtime: Runtime) -> list[int]:
    """Every event id of the head that can be opened."""
    replay = runtime.lake.replay()
    head = replay.resolve(None)
    assert head is not None
    frame = replay.events(replay.files(head.snapshot_id), EventRead("Paid", ("event_id",))).frame
    return sorted(int(i) for i in frame.filter(~pl.col("shredded"))["event_id"])


def everything_once(runtime: Runtime) -> None:
    """29 events and one dead letter, each exactly once."""
    assert ids(runtime) == [n for n in range(30) if n != 13]
    assert [letter.line for letter in dead_letters(runtime.lake)] == [13]
    assert verify(runtime.lake, deep=True).problems == ()


def one_sorted_file(runtime: Runtime) -> None:
    """The day is one L1 file, and below the table lies nothing that no kept snapshot names."""
    everything_once(runtime)
    assert len(runtime.lake.events.files()) == 1
    upkeep = Housekeeping(runtime.lake)
    assert upkeep.orphans() == []
    assert upkeep.expendable(1) == []


def one_release(runtime: Runtime) -> None:
    """Readers see every view, recorded once."""
    release = runtime.views.ledger.current()
    assert release is not None
    assert set(release.entries) == set(runtime.views.registry.names())
    assert all(len(runtime.views.ledger.history(name)) == 1 for name in release.entries)
    assert runtime.views.as_reported("cents_per_day").rows["events"].sum() == 29
    assert runtime.views.as_reported("balance").rows["events"].sum() == 29
    heads_as_published(runtime)


def heads_as_published(runtime: Runtime) -> None:
    """What other engines read of every view's table is the release's, and behind no fence."""
    for head in runtime.views.heads.look():
        assert head.state == "published"
        assert head.publication_id is not None
        publication = runtime.views.ledger.publication(head.publication_id)
        assert not publication.personal or head.epoch == runtime.keyring.epoch()
        shown = runtime.lake.warehouse.table(head.table)
        assert shown.files() == shown.files(publication.snapshot_id)


def one_receipt(runtime: Runtime) -> None:
    """One completed request, one receipt, nobody brought back, nobody else lost."""
    (request,) = runtime.purge.journal.all()
    assert request.status is Status.COMPLETED
    assert request.receipt is not None
    leaves = [runtime.purge.log.data(n) for n in range(runtime.purge.log.size())]
    assert sum(b"urn:shredlake:erasure-receipt" in leaf for leaf in leaves) == 1
    assert len(runtime.keyring.fences.all()) == 1
    assert runtime.keyring.gate().is_open
    assert ids(runtime) == [n for n in range(30) if n != 13 and n % 6]
    assert runtime.views.as_reported("cents_per_day").rows["events"].sum() == 29
    assert runtime.views.as_reported("people_per_day").rows["people"].sum() == 5
    heads_as_published(runtime)
    assert verify(runtime.lake, deep=True).problems == ()
    assert scan(runtime.home, crashing.SECRET).findings == ()


def nothing_waits(runtime: Runtime) -> None:
    """The spool is empty and no key of it is left."""
    everything_once(runtime)
    queue = runtime.lake.intake.queue()
    assert (queue.batches, queue.events, queue.size_bytes, queue.settled) == (0, 0, 0, 30)
    assert not runtime.lake.intake.holds_before(2**31)
    assert len(runtime.lake.ingestor().offsets()) == 1


def one_receipt_of_who_waited(runtime: Runtime) -> None:
    """What waited is in the lake without the person, and nowhere else."""
    (request,) = runtime.purge.journal.all()
    assert request.status is Status.COMPLETED
    assert ids(runtime) == sorted([99, *(n for n in range(30) if n != 13 and n % 6)])
    assert [letter.line for letter in dead_letters(runtime.lake)] == [13], "the one that quotes is redacted"
    assert not runtime.lake.intake.holds_before(runtime.keyring.epoch())
    assert verify(runtime.lake, deep=True).problems == ()
    assert scan(runtime.home, crashing.SECRET).findings == ()


def still_readable(runtime: Runtime) -> None:
    """Closing an epoch loses nobody."""
    everything_once(runtime)
    assert runtime.keyring.stats()["oldest_root_version"] == runtime.keyring.stats()["root_version"]


def one_publication_is_gone(runtime: Runtime) -> None:
    """Noted once, a leaf once, no row of it in any file; what readers see is as it was."""
    (dropped,) = runtime.views.ledger.dropped().values()
    assert dropped.is_gone
    assert len(runtime.purge.log.named("dropped/")) == 1
    rows = runtime.views.as_reported(crashing.DROPPED).rows
    folder = runtime.home / "lake" / "warehouse" / "views" / crashing.DROPPED / "data"
    stored = pl.concat([pl.read_parquet(path, hive_partitioning=False) for path in folder.rglob("*.parquet")])
    assert sorted(stored["cents"].to_list()) == sorted(rows["cents"].to_list())
    heads_as_published(runtime)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("job", "ingested", "publications", "check"),
    [
        pytest.param("ingest", False, 0, everything_once, id="ingest"),
        pytest.param("intake", False, 0, nothing_waits, id="intake"),
        pytest.param("erase_waiting", True, 0, one_receipt_of_who_waited, id="erase_waiting"),
        pytest.param("compact", True, 0, everything_once, id="compact"),
        pytest.param("upkeep", True, 0, one_sorted_file, id="upkeep"),
        pytest.param("publish", True, 0, one_release, id="publish"),
        pytest.param("close", True, 0, still_readable, id="close"),
        pytest.param("erase", True, 1, one_receipt, id="erase"),
        pytest.param("drop", True, 2, one_publication_is_gone, id="drop"),
    ],
)
def test_a_kill_at_any_effect_changes_nothing_in_the_end(
    tmp_path: Path, job: str, ingested: bool, publications: int, check: Callable[[Runtime], None]
) -> None:
    """Killed before the n-th effect, for all n, and after the last, and resumed.

    What is durable after one effect is what is durable before the next.
    """
    homes = [
        _base(tmp_path / str(lane), ingested=ingested, publications=publications) for lane in range(LANES)
    ]
    effects = attempt(homes[0] / "lake", job, None, "")
    assert effects, "the job has durable effects"
    with open_runtime(homes[0] / "lake") as runtime:
        check(runtime)
    moments = [*((n, "before") for n in range(1, effects + 1)), (effects, "after")]

    def kill_at_each(base: Path, mine: list[tuple[int, str]]) -> None:
        for at, when in mine:
            _restore(base)
            assert attempt(base / "lake", job, at, when) is None, f"effect {at} was not reached"
            assert attempt(base / "lake", job, None, "") is not None
            with open_runtime(base / "lake") as runtime:
                check(runtime)

    with ThreadPoolExecutor(LANES) as pool:
        lanes = [pool.submit(kill_at_each, home, moments[n::LANES]) for n, home in enumerate(homes)]
        for lane in lanes:
            lane.result()
