"""A views file that changes while its views are built: one reading makes each publication, never two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from projections import Deriver, SourceFile
from projections.build import Builder
from projections.registry import ViewRegistry
from service.runtime import Runtime, initialise, open_runtime
from tests.world import PAID, paid, send

VIEW = """
import polars as pl
from projections import Count, Projection, Sum

FACTOR = {factor}


class Cents(Projection):
    name = "cents"
    reads = {{"Paid": ["cents"]}}
    keys = {{"one": pl.lit(1)}}
    state = {{"events": Count(), "cents": Sum(pl.col("cents") * FACTOR)}}
    subjects = "events"

    def final(self, rows):
        return rows.with_columns(factor=pl.lit(FACTOR))
"""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """One lake; `factor` of its view grows with every change."""
    folder = tmp_path_factory.mktemp("reading")
    (folder / "views.py").write_text(VIEW.format(factor=1))
    initialise(folder / "lake", [folder / "views.py"])
    config = folder / "lake" / "shredlake.toml"
    config.write_text(config.read_text().replace("[projections]", "[projections]\nbucket_bits = 1"))
    with open_runtime(folder / "lake") as runtime:
        runtime.lake.types.register(PAID)
        send(runtime, [paid(f"p{n}", 1, event_id=str(n)) for n in range(8)])
        yield runtime


def changing(owner: Any, name: str, before: bool, change: Callable[[], None]) -> Callable[..., Any]:
    """The method `name` of a class, with the change of the file before or after it."""
    inner = getattr(owner, name)

    def changed(*args: Any, **kwargs: Any) -> Any:
        if before:
            change()
        found = inner(*args, **kwargs)
        if not before:
            change()
        return found

    return changed


POINTS = [
    (owner, name, before)
    for owner, name in (
        (ViewRegistry, "refresh"),
        (ViewRegistry, "get"),
        (Builder, "build"),
        (Builder, "version_of"),
        (Builder, "_plan"),
        (Builder, "_merge_news"),
        (Builder, "_tasks"),
        (Deriver, "run"),
        (Builder, "_derive"),
        (Builder, "_finish"),
    )
    for before in (True, False)
]


@pytest.mark.parametrize(("owner", "name", "before"), POINTS)
def test_a_file_that_changes_at_any_point_of_a_build_makes_publications_of_one_reading_each(
    lake: Runtime, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, before: bool
) -> None:
    """What every bucket, `final` and the fingerprint say is of one factor; the next build has the newest."""
    file = lake.views.registry.sources()[0].path
    factor = [int(file.read_text().partition("FACTOR = ")[2].partition("\n")[0])]

    def change() -> None:
        """Another thread of a server does the same: it changes the file and looks at it."""
        if changes:
            changes.pop()
            factor[0] += 1
            file.write_text(VIEW.format(factor=factor[0]))
            refresh(lake.views.registry)

    refresh, changes = ViewRegistry.refresh, [1, 1]
    monkeypatch.setattr(owner, name, changing(owner, name, before, change))
    versions = {}
    for _ in range(2):
        (built,), _ = lake.views.bring_up_to_date(["cents"], who="test", why="")
        (row,) = lake.views.as_reported("cents").rows.to_dicts()
        assert row["cents"] == row["events"] * row["factor"]
        versions[row["factor"]] = built.publication.version
    monkeypatch.undo()
    lake.views.bring_up_to_date(["cents"], who="test", why="")
    (row,) = lake.views.as_reported("cents").rows.to_dicts()
    assert (row["factor"], row["cents"]) == (factor[0], factor[0] * row["events"])
    for was, version in versions.items():  # a version is of the factor that it computed with
        (view,) = ViewRegistry.of([_source(file, was)]).all()
        assert lake.views.builder.version_of(view) == version


def _source(file: Path, factor: int) -> SourceFile:
    """The file as it was with a factor."""
    now = file.read_text()
    file.write_text(VIEW.format(factor=factor))
    found = SourceFile.read(file)
    file.write_text(now)
    return found
