"""`shredlake lake read`: what comes out, what does not without being asked for, and what is never left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from keys import SubjectId
from lake import EpochMoved, EventRead
from service.reading import Wanted, copy_events
from service.runtime import Runtime
from tests.command import command as shredlake
from tests.world import START, paid, send, shred


@pytest.fixture
def filled(world: Runtime) -> Runtime:
    """Forty people with five events each, one of them erased."""
    for number in range(5):
        send(world, [paid(f"p{n}", n, event_id=f"{number}-{n}", note=f"note {n}") for n in range(40)])
    shred(world, "p7")
    return world


def lines(text: str) -> list[dict[str, Any]]:
    """JSON Lines."""
    return [json.loads(line) for line in text.splitlines()]


def test_anonymous_fields_come_without_being_asked_and_personal_ones_do_not(filled: Runtime) -> None:
    """Data is on stdout alone; a personal field needs the flag, and the flag says what it means."""
    done = shredlake(filled.home, "lake", "read", "--type", "Paid", "--to", "-")
    assert done.returncode == 0, done.stderr
    rows = lines(done.stdout)
    assert len(rows) == 200
    assert set(rows[0]) == {"occurred_on", "cents", "shop"}
    assert "no later erasure reaches it" not in done.stderr
    refused = shredlake(filled.home, "lake", "read", "--type", "Paid", "--to", "-", "--fields", "cents,note")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "`note` is personal" in refused.stderr
    asked = shredlake(
        filled.home, "lake", "read", "--type", "Paid", "--to", "-", "--fields", "cents,note", "--personal"
    )
    assert "no later erasure reaches it" in asked.stderr
    assert sum(row["shredded"] for row in lines(asked.stdout)) == 5
    assert {row["note"] for row in lines(asked.stdout)} == {None, *(f"note {n}" for n in range(40) if n != 7)}


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_several_processes_write_what_one_writes(filled: Runtime, tmp_path: Path, suffix: str) -> None:
    """Into one file of mode 0600, with nothing beside it."""
    folder = tmp_path / "out"
    folder.mkdir()
    found = []
    for workers in ("1", "2"):
        path = folder / f"{workers}.{suffix}"
        done = shredlake(
            filled.home, "--output", "json", "lake", "read", "--type", "Paid", "--personal",
            "--to", str(path), "--workers", workers,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["events"] == 200
        assert path.stat().st_mode & 0o777 == 0o600
        frame = pl.read_parquet(path) if suffix == "parquet" else pl.read_ndjson(path)
        found.append(frame.sort("cents", "event_id"))
    assert found[0].equals(found[1])
    assert sorted(path.name for path in folder.iterdir()) == [f"1.{suffix}", f"2.{suffix}"]
    assert not [name for name in filled.lake.events.metadata().refs if name != "main"]


def test_one_person_s_events_of_some_days_or_since_a_snapshot(filled: Runtime) -> None:
    """The id comes from standard input; who was erased is answered by the receipt."""
    before = str(filled.lake.events.history()[0].snapshot_id)
    send(filled, [paid("p3", 999, event_id="later", at=START.replace(year=2027))])
    ask = ("lake", "read", "--type", "Paid", "--to", "-", "--subject", "-")
    assert len(lines(shredlake(filled.home, *ask, stdin="p3\n").stdout)) == 6
    late = shredlake(filled.home, *ask, "--day-from", "2027-01-01", stdin="p3\n")
    assert [row["cents"] for row in lines(late.stdout)] == [999]
    since = shredlake(filled.home, *ask, "--from-snapshot", before, stdin="p3\n")
    assert [row["cents"] for row in lines(since.stdout)] == [999]
    then = shredlake(filled.home, *ask, "--to-snapshot", before, stdin="p3\n")
    assert len(lines(then.stdout)) == 5
    gone = shredlake(filled.home, *ask, stdin="p7\n")
    assert (gone.returncode, gone.stdout, "shredded, receipt" in gone.stderr) == (1, "", True)
    assert "p7" not in gone.stderr


def test_a_person_erased_meanwhile_is_in_no_file(filled: Runtime, tmp_path: Path) -> None:
    """What was copied of them before is not kept."""
    head = filled.lake.replay().resolve(None)
    assert head is not None
    wanted = Wanted(EventRead("Paid", ("note", "cents")), head.snapshot_id, None, None, is_personal=True)
    told: Iterator[int] = iter(range(100))

    def erase_once(done: int, total: int) -> None:
        if next(told) == 0:
            shred(filled, "p9")

    with pytest.raises(EpochMoved):
        copy_events(filled, wanted, tmp_path / "out.parquet", 1, erase_once)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    assert copy_events(filled, wanted, tmp_path / "out.parquet", 1, lambda *_: None) == 200
    frame = pl.read_parquet(tmp_path / "out.parquet")
    assert frame.filter("shredded")["cents"].unique().sort().to_list() == [7, 9]
    assert filled.keyring.ref_of(SubjectId("p9")) is None


def test_what_does_not_fit_is_said_before_anything_is_read(filled: Runtime, tmp_path: Path) -> None:
    """A file of an unknown kind, a field that there is not, days the wrong way round."""
    for more, what in (
        (("--to", str(tmp_path / "out.csv")), "ends in .parquet or .jsonl"),
        (("--to", "-", "--fields", "nope"), "has not every field"),
        (("--to", "-", "--facet", "driver/service"), "no such facet"),
        (("--to", "-", "--day-from", "2026-03-02", "--day-to", "2026-03-01"), "before the first"),
        (("--to", "-", "--workers", "2"), "one process"),
    ):
        done = shredlake(filled.home, "lake", "read", "--type", "Paid", *more)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert what in done.stderr.replace("\n", " ")
