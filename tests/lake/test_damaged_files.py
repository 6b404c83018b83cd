"""A data file that a snapshot refers to and that cannot be read is named, by whoever needs it; nothing is lost."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from keys import SubjectId
from lake import EventRead, verify
from lake.damage import damage_of
from lake.errors import DataDamaged, DataFileGone
from lake.objects import collected, local_path, scan_parquet
from purge import Status
from service.doctor import examine
from service.runtime import Runtime
from tests.command import command
from tests.world import compact_all, paid, publish, send

ANN = SubjectId("ann")
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut in half": lambda whole: whole[: len(whole) // 2],
    "of noise between header and footer": lambda whole: (
        whole[:4] + os.urandom(len(whole) - 3004) + whole[-3000:]
    ),
    "of zeros, as after a power cut": lambda whole: bytes(len(whole)),
    "gone": lambda whole: b"gone",
}


def damaged(runtime: Runtime, how: str) -> tuple[Path, bytes]:
    """Harms the newest data file; the file and what it held."""
    path = Path(local_path(runtime.lake.events.files()[-1].file_path))
    whole = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(DAMAGES[how](whole))
    return path, whole


@pytest.mark.parametrize("how", DAMAGES)
def test_whoever_needs_a_damaged_file_names_table_day_and_file_and_goes_on_once_it_is_back(
    world: Runtime, how: str
) -> None:
    """Reads, builds, compaction, the plan and the run of an erasure, verify and doctor."""
    send(world, [paid("ann", event_id="1"), paid("bob", event_id="2")])
    publish(world, "cents_per_day")
    send(world, [paid("ann", event_id="3")])
    path, whole = damaged(world, how)
    kind = DataFileGone if how == "gone" else DataDamaged
    day = world.lake.clock().date().isoformat()
    replay = world.lake.replay()
    request = world.purge.submit(ANN).request.request_id
    for need in (
        lambda: replay.events(world.lake.events.files(), EventRead("Paid", ("cents", "note"))),
        lambda: publish(world, "cents_per_day"),
        lambda: compact_all(world),
        lambda: world.purge.plan(ANN),
        lambda: world.purge.run(request),
    ):
        with pytest.raises(kind) as told:
            need()
        assert f"the data file {path.name} of {day} of lake.events is" in told.value.message
        assert "backup of the warehouse" in told.value.next_step
        assert str(path.parent) not in told.value.message
    assert any(path.name in one for one in verify(world.lake, deep=True).problems)
    if how != "of noise between header and footer":  # the footer is all that doctor reads
        (finding,) = [one for one in examine(world) if one.check == "metadata privacy"]
        assert (finding.level, path.name in finding.text) == ("error", True)
    done = command(world.home, "lake", "verify", "--deep")
    assert done.returncode == 1
    assert path.name in done.stdout + done.stderr
    assert "unexpected" not in done.stderr
    path.write_bytes(whole)
    assert world.purge.run(request).status is Status.COMPLETED
    assert verify(world.lake, deep=True).problems == ()


def test_of_many_files_the_damaged_one_is_named_and_a_defect_of_a_scan_is_not_called_damage(
    tmp_path: Path,
) -> None:
    """Only a file that cannot be read to its end by itself is."""
    folder = tmp_path / "lake" / "events" / "data" / "ingested_at_day=2026-01-02"
    folder.mkdir(parents=True)
    paths = [str(folder / f"{n}.parquet") for n in range(4)]
    for path in paths:
        pl.DataFrame({"a": ["x"] * 100}).write_parquet(path)
    assert [damage_of(path) for path in paths] == [None] * 4
    with pytest.raises(pl.exceptions.ColumnNotFoundError):
        collected(scan_parquet(paths, {}).select("nothing"))
    with pytest.raises(pl.exceptions.InvalidOperationError):
        collected(scan_parquet(paths, {}).select(pl.col("a").cast(pl.Int64)))
    whole = Path(paths[2]).read_bytes()
    for harm in (lambda _: b"", lambda one: one[:-1], lambda one: os.urandom(len(one))):
        Path(paths[2]).write_bytes(harm(whole))
        assert isinstance(damage_of(paths[2]), DataDamaged)
    with pytest.raises(DataDamaged, match=re.escape("2.parquet of 2026-01-02 of lake.events")):
        collected(scan_parquet(paths, {}).filter(pl.col("a") == "x"), engine="streaming")
