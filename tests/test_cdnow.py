"""The demo's figures against figures computed from the file alone."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from lake import EventRead, MappedFile, load_mapping
from service.runtime import Runtime, initialise, open_runtime

ROOT = Path(__file__).parent.parent
CDNOW = ROOT / "examples" / "cdnow"


def facts() -> dict[str, object]:
    """Ten lines that know nothing of Shredlake."""
    raw = gzip.decompress((CDNOW / "CDNOW_master.txt.gz").read_bytes()).decode()
    rows = [line.split() for line in raw.splitlines()]
    cents = [round(float(amount) * 100) for *_, amount in rows]
    months: Counter[str] = Counter()
    for (_, day, _, _), c in zip(rows, cents, strict=True):
        months[day[:6]] += c
    return {
        "events": len(rows),
        "people": len({r[0] for r in rows}),
        "cds": sum(int(r[2]) for r in rows),
        "cents": sum(cents),
        "days": len({(r[0], r[1]) for r in rows}),
        "twice": len(rows) - len(set(map(tuple, rows))),
        "2021-02": months["202102"],
        "2022-06": months["202206"],
    }


def test_the_file_is_the_one_we_mean() -> None:
    """The facts that the documents state."""
    assert facts() == {
        "events": 69_659,
        "people": 23_544,
        "cds": 167_881,
        "cents": 250_031_563,
        "days": 67_586,
        "twice": 255,
        "2021-02": 37_959_003,
        "2022-06": 7_610_930,
    }


@pytest.fixture(scope="module")
def cdnow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """The whole file, ingested and published."""
    folder = tmp_path_factory.mktemp("cdnow")
    (folder / "CDNOW_master.txt").write_bytes(gzip.decompress((CDNOW / "CDNOW_master.txt.gz").read_bytes()))
    initialise(folder / "lake", [CDNOW / "views.py"])
    with open_runtime(folder / "lake") as runtime:
        runtime.lake.types.register(json.loads((CDNOW / "purchased.json").read_text()))
        mapping = load_mapping(CDNOW / "mapping.toml", runtime.lake.types)
        done = runtime.lake.ingestor().run(MappedFile(folder / "CDNOW_master.txt", mapping))
        assert (done.events, done.dead) == (69_659, 0)
        built = runtime.views.build(runtime.views.registry.names())
        runtime.views.publish(built, who="test", why="test")
        yield runtime


def test_views_agree_with_the_file_to_the_cent(cdnow: Runtime) -> None:
    """Totals, months, people; and equal lines are not merged."""
    expected = facts()
    days = cdnow.views.as_reported("revenue_per_day").rows
    assert (days["orders"].sum(), days["cds"].sum(), days["cents"].sum()) == (
        expected["events"],
        expected["cds"],
        expected["cents"],
    )
    for month in ("2021-02", "2022-06"):
        year, number = map(int, month.split("-"))
        of_month = days.filter((pl.col("day").dt.year() == year) & (pl.col("day").dt.month() == number))
        assert of_month["cents"].sum() == expected[month]
    profiles = cdnow.views.as_reported("customer_profile").rows
    assert (profiles.height, profiles["cents"].sum()) == (expected["people"], expected["cents"])
    busiest = profiles.sort("orders").row(-1, named=True)
    assert (busiest["customer"], busiest["orders"], busiest["cents"]) == ("14048", 217, 897_633)
    bands = cdnow.views.as_reported("spend_bands").rows
    assert bands["cents"].sum() == expected["cents"]


def test_people_days_agree_with_the_file(cdnow: Runtime) -> None:
    """A group-by of sealed fields over the replay reader."""
    replay = cdnow.lake.replay()
    head = replay.resolve(None)
    assert head is not None
    events = replay.events(
        replay.files(head.snapshot_id), EventRead("Purchased", ("customer", "occurred_on"))
    )
    assert events.frame.select("customer", "occurred_on").n_unique() == facts()["days"]


def test_the_demo_tells_the_story(tmp_path: Path) -> None:
    """Twice into the same folder, because it is safe to repeat; its figures are the file's."""
    command = [
        sys.executable,
        "-c",
        "from service.cli import main; main()",
        "demo",
        "--into",
        str(tmp_path / "d"),
    ]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    told = re.sub(r"\s+", " ", done.stdout)
    for sentence in (
        "69,659 purchases of 23,544 people",
        "0 new events, 69,659 lines already ingested",
        "217 purchases, 8,976.33 in all",
        "completed after",
        "410 “shredded, receipt",
        "revenue as reported before the erasure: 2,500,315.63",
        "unexplained: 0",
        "217 of them Shredded",
        "VERIFIED: receipt",
        "one bit of it flipped: REFUSED",
        "after the erasure: found nowhere",
        "a copy from before: found in",
    ):
        assert sentence in told, sentence
    assert (tmp_path / "d" / "plots" / "revenue_per_month.png").read_bytes().startswith(b"\x89PNG")
