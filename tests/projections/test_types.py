"""Every Polars type as a key, in state and in what is published: read back equal, or refused by name."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from keys import SubjectId
from projections import ViewFailed
from projections.columntypes import TABLE, Refusal, published
from service.runtime import Runtime, initialise, open_runtime
from tests.projections.test_views import registry
from tests.world import PAID, paid, publish, send

MOMENT = datetime(2026, 3, 1, 12, 30, 15, 123456)
VALUES: dict[str, tuple[pl.DataType, Any]] = {
    "Int8": (pl.Int8(), -128),
    "Int16": (pl.Int16(), -(2**15)),
    "Int32": (pl.Int32(), 2**31 - 1),
    "Int64": (pl.Int64(), -(2**63)),
    "Int128": (pl.Int128(), 2**63 - 1),
    "UInt8": (pl.UInt8(), 255),
    "UInt16": (pl.UInt16(), 2**16 - 1),
    "UInt32": (pl.UInt32(), 2**32 - 1),
    "UInt64": (pl.UInt64(), 2**63 - 1),
    "UInt128": (pl.UInt128(), 2**63 - 1),
    "Float16": (pl.Float16(), 1.5),
    "Float32": (pl.Float32(), 1.5),
    "Float64": (pl.Float64(), 0.1),
    "Decimal": (pl.Decimal(38, 2), Decimal("9" * 36 + ".99")),
    "Decimal 10": (pl.Decimal(10, 4), Decimal("-123.4567")),
    "Boolean": (pl.Boolean(), True),
    "String": (pl.String(), "ä\x00 "),
    "Binary": (pl.Binary(), b"\x00\xff"),
    "Date": (pl.Date(), date(1, 1, 1)),
    "Datetime": (pl.Datetime("us", "UTC"), MOMENT.replace(tzinfo=UTC)),
    "Datetime ms": (pl.Datetime("ms", "UTC"), MOMENT.replace(microsecond=123000, tzinfo=UTC)),
    "Datetime ns": (pl.Datetime("ns", "UTC"), MOMENT.replace(tzinfo=UTC)),
    "Datetime zone": (pl.Datetime("us", "Europe/Berlin"), MOMENT.replace(tzinfo=ZoneInfo("Europe/Berlin"))),
    "Datetime naive": (pl.Datetime("us"), MOMENT),
    "Datetime naive ms": (pl.Datetime("ms"), MOMENT.replace(microsecond=0)),
    "Time": (pl.Time(), time(23, 59, 59, 999999)),
    "Duration": (pl.Duration("us"), timedelta(days=-1, microseconds=1)),
    "Duration ns": (pl.Duration("ns"), timedelta(days=1)),
    "Categorical": (pl.Categorical(), "a"),
    "Enum": (pl.Enum(["a"]), "a"),
    "List": (pl.List(pl.Int64()), [1]),
    "Array": (pl.Array(pl.Int64(), 1), [1]),
    "Struct": (pl.Struct({"a": pl.List(pl.Int8())}), {"a": [1]}),
    "Null": (pl.Null(), None),
    "Object": (pl.Object(), {"a"}),
}
UNMADE = {"Map", "Unknown"}
"""Types of the table that no plain value makes."""
FOLD = """
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo
from projections import First, Last, Max, Min
{values}
class V(Fold):
    name = "v"
    shows_personal = "because it is a test"
    reads = {{"Paid": ["cents"]}}
    shows_personal = "because the values are the test's own"
    keys = {keys}
    state = {state}
    def fold(self, events):
        kind, value = VALUES[{case!r}]
        x = pl.Series("x", [value] * events.height, dtype=kind)
        return events.select("subject_ref", "occurred_at", "event_id", x)
    def final(self, rows):
        return {final}
"""


@functools.cache
def values_source() -> str:
    """The lines that say `MOMENT` and `VALUES` here: a view's file may use no other file but packages."""
    text = Path(__file__).read_text()
    return text[text.index("MOMENT = ") : text.index("UNMADE = ")]


def built(world: Runtime, tmp_path: Path, case: str, keys: str, state: str, final: str = "rows") -> None:
    """Publishes the view with the value of a case."""
    body = FOLD.format(case=case, keys=keys, state=state, final=final, values=values_source())
    world.views.registry._views = registry(tmp_path, body)._views
    publish(world, "v")


def expected(case: str) -> Any:
    """The value as readers get it: the same instant, number or text."""
    dtype, value = VALUES[case]
    return value.astimezone(UTC) if getattr(dtype, "time_zone", None) else value


@pytest.fixture(scope="module")
def two_builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Two people in buckets of their own, whose states are put together; one lake for the whole walk."""
    home = tmp_path_factory.mktemp("types") / "lake"
    initialise(home)
    config = home / "shredlake.toml"
    config.write_text(config.read_text().replace("files = []", "files = []\nbucket_bits = 2"))
    with open_runtime(home) as runtime:
        runtime.lake.types.register(PAID)
        send(runtime, [paid(f"p{n}", event_id=str(n)) for n in range(6)])
        yield runtime


def test_the_walk_covers_the_whole_table_and_the_table_covers_polars() -> None:
    """A type that Polars gains is seen here."""
    assert {case.split()[0] for case in VALUES} | UNMADE == set(TABLE)
    kinds = {
        name
        for name in dir(pl)
        if isinstance(getattr(pl, name), type) and issubclass(getattr(pl, name), pl.DataType)
    }
    assert kinds - {"DataType", "Utf8", "BaseExtension", "Extension"} == set(TABLE)


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize(
    ("place", "keys", "state"),
    [
        ("key", '{"x": c("x")}', '{"n": Count()}'),
        ("measure", '{"day": c("occurred_at").dt.date()}', '{"x": Max(c("x"))}'),
        ("measure", '{"day": c("occurred_at").dt.date()}', '{"x": Last(c("x"))}'),
        ("person's measure", '{"subject_ref": c("subject_ref")}', '{"x": Min(c("x"))}'),
        ("person's column", "{}", "{}"),
    ],
)
def test_a_value_of_any_type_in_any_place_is_read_back_equal_or_the_type_is_refused_by_name(
    two_builds: Runtime, tmp_path: Path, case: str, place: str, keys: str, state: str
) -> None:
    """Through state, merging, the table and the rows that are sealed per person."""
    known = TABLE[case.split()[0]]
    fits = known.published and (known.kept or place == "person's column")
    if not fits:
        with pytest.raises(ViewFailed) as caught:
            built(two_builds, tmp_path, case, keys, state)
        assert str(VALUES[case][0]).split("(")[0] in caught.value.message
        assert known.instead in caught.value.next_step
        return
    built(two_builds, tmp_path, case, keys, state)
    rows = two_builds.views.as_reported("v").rows
    assert set(rows["x"].to_list()) == {expected(case)}
    if place.startswith("person"):
        found = two_builds.views.person("v", SubjectId("p0")).row or {}
        assert found["x"] == expected(case)
    recomputed = two_builds.views.as_recomputed("v").rows
    assert recomputed.select(rows.columns).sort(rows.columns).equals(rows.sort(rows.columns))


def test_a_span_is_kept_and_published_as_a_number(two_builds: Runtime, tmp_path: Path) -> None:
    """What the refusal says works."""
    final = 'rows.with_columns(c("x").dt.total_microseconds())'
    built(
        two_builds, tmp_path, "Duration", '{"day": c("occurred_at").dt.date()}', '{"x": Max(c("x"))}', final
    )
    assert two_builds.views.as_reported("v").rows["x"].to_list() == [-86_400_000_000 + 1]


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("x", [1.0, float("nan")]),
        pl.Series("x", [1.0, float("inf"), None]),
        pl.Series("x", [-float("inf"), 1.0], dtype=pl.Float32),
        pl.Series("x", [0, 2**63], dtype=pl.UInt64),
        pl.Series("x", [0, -(2**63) - 1], dtype=pl.Int128),
        pl.Series("x", [1000, 1001], dtype=pl.Int64).cast(pl.Datetime("ns")),
        pl.Series("x", [1000, 1], dtype=pl.Int64).cast(pl.Time),
    ],
)
def test_a_value_that_readers_could_not_get_as_it_is_is_refused_with_a_count(column: pl.Series) -> None:
    """Never cut, never wrapped, never a NaN; the count is no value."""
    with pytest.raises(Refusal, match=f"^1 of {len(column)} values"):
        published(column)


def test_a_division_by_zero_in_final_is_named_and_nothing_is_published(
    two_builds: Runtime, tmp_path: Path
) -> None:
    """0 / 0 is NaN in Polars."""
    final = 'rows.with_columns(c("x").fill_null(0) * 0 / 0)'
    with pytest.raises(ViewFailed, match=r"column `x` failed with Refusal.*1 of 1 values are NaN") as caught:
        built(
            two_builds, tmp_path, "Int64", '{"day": c("occurred_at").dt.date()}', '{"x": Max(c("x"))}', final
        )
    assert "pl.when" in caught.value.next_step
