"""Views across a change of an event type's version."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lake import parse_event_type
from projections import ViewRegistry, fingerprint
from service.runtime import Runtime, initialise, open_runtime
from tests.projections.test_equality import answers
from tests.world import compact_all, paid, publish, send, shred

VIEWS = """
import polars as pl
from projections import Count, Distinct, Projection, Sum

c = pl.col


class CentsPerChannel(Projection):
    name = "cents_per_channel"
    reads = {"Sold": ["cents", "channel"]}
    keys = {"channel": c("channel")}
    state = {"events": Count(), "cents": Sum(c("cents"))}


class Buyers(Projection):
    name = "buyers"
    reads = {"Sold": ["cents", "buyer", "occurred_at"]}
    keys = {"day": c("occurred_at").dt.date()}
    state = {"buyers": Distinct(c("buyer")), "cents": Sum(c("cents"))}


class Other(Projection):
    name = "other"
    reads = {"Other": ["n"]}
    keys = {"n": c("n")}
    state = {"events": Count()}
"""
CLEAR = {"anonymous": True}
ONE: dict[str, Any] = {
    "name": "Sold",
    "version": 1,
    "type": "object",
    "properties": {
        "cents": {"type": "integer"} | CLEAR,
        "channel": {"type": "string"} | CLEAR,
        "buyer": {"type": "string"},
    },
    "required": ["cents"],
}
TWO = ONE | {
    "version": 2,
    "properties": {
        "mills": {"type": "integer"} | CLEAR,
        "cents": {"type": "integer"} | CLEAR,
        "channel": {"type": "string"} | CLEAR,
        "buyer": {"type": "string"},
    },
    "required": ["cents", "channel"],
    "upcast": {"channel": {"map": {"shop": "store"}, "default": "store"}, "buyer": {"default": "somebody"}},
}
OTHER = ONE | {"name": "Other", "properties": {"n": {"type": "integer"} | CLEAR}, "required": []}


@pytest.fixture
def shop(tmp_path: Path) -> Runtime:
    """A lake with events of version 1 and published views."""
    (tmp_path / "views.py").write_text(VIEWS)
    initialise(tmp_path / "lake", [tmp_path / "views.py"])
    runtime = open_runtime(tmp_path / "lake")
    for document in (ONE, OTHER):
        runtime.lake.types.register(document)
    send(runtime, [sold("ann", "1", cents=5, channel="shop", buyer="a"), sold("bob", "2", cents=7)])
    send(runtime, [paid("ann", event_id="o") | {"type": "Other", "data": {"n": 1}}])
    publish(runtime)
    return runtime


def sold(person: str, event_id: str, version: int = 1, **data: Any) -> dict[str, Any]:
    """An event of a version."""
    return paid(person, event_id=event_id) | {"type": "Sold", "data": data, "schemaversion": version}


def versions(runtime: Runtime) -> dict[str, str]:
    """The fingerprint of every view."""
    registry = runtime.views.registry
    return {name: runtime.views.builder.version_of(registry.get(name)) for name in registry.names()}


def test_a_new_version_derives_what_was_counted_before_anew(shop: Runtime) -> None:
    """Its upcast changes what old events say; views of other types stay as they are."""
    before = versions(shop)
    assert answers(shop)["cents_per_channel"].rows() == [(None, 1, 7), ("shop", 1, 5)]
    shop.lake.types.register(TWO)
    after = versions(shop)
    assert {name for name in after if after[name] != before[name]} == {"cents_per_channel", "buyers"}
    publish(shop)
    assert answers(shop)["cents_per_channel"].rows() == [("store", 2, 12)]


def test_incremental_is_rebuild_across_versions(shop: Runtime) -> None:
    """Events of both versions, late ones of the old, a compaction and an erasure between."""
    shop.lake.types.register(TWO)
    publish(shop)
    send(shop, [sold("cid", "3", 2, cents=11, channel="web"), sold("ann", "4", 1, cents=13, channel="shop")])
    publish(shop)
    compact_all(shop)
    send(shop, [sold("bob", "5", 1, cents=17), sold("bob", "2", 2, cents=7, channel="web")])
    publish(shop)
    shred(shop, "ann")
    publish(shop)
    incremental = answers(shop)
    publish(shop, rebuild=True)
    rebuilt = answers(shop)
    assert incremental["cents_per_channel"].rows() == [("store", 4, 42), ("web", 1, 11)]
    assert incremental["buyers"]["buyers"].to_list() == [1]
    for name, rows in incremental.items():
        assert rows.equals(rebuilt[name]), name


def test_an_optional_field_keeps_views_that_do_not_read_it_and_what_was_published_recomputable(
    shop: Runtime,
) -> None:
    """After an upcast as well: of a type counts what a view reads of it, in every version."""
    before, at = versions(shop), datetime.now(UTC)
    more = ONE | {"version": 2, "properties": ONE["properties"] | {"tip": {"type": "integer"} | CLEAR}}
    shop.lake.types.register(more)
    assert versions(shop) == before
    send(shop, [sold("cid", "3", 2, cents=11, channel="web", tip=3)])
    assert shop.views.as_recomputed("cents_per_channel", at).rows.rows() == [(None, 1, 7), ("shop", 1, 5)]
    assert shop.views.reconcile("buyers", at).residual == 0
    publish(shop)
    incremental = answers(shop)
    publish(shop, rebuild=True)
    assert all(rows.equals(answers(shop)[name]) for name, rows in incremental.items())
    three = TWO | {"version": 3, "properties": TWO["properties"] | {"tip": {"type": "integer"} | CLEAR}}
    shop.lake.types.register(three)
    changed = versions(shop)
    assert {name for name in changed if changed[name] != before[name]} == {"cents_per_channel", "buyers"}
    publish(shop)
    later = {"note": {"type": "string"}}
    shop.lake.types.register(three | {"version": 4, "upcast": {}, "properties": three["properties"] | later})
    assert versions(shop) == changed
    publish(shop, rebuild=True)
    assert answers(shop)["cents_per_channel"].rows() == [("store", 2, 12), ("web", 1, 11)]


@pytest.mark.parametrize(
    "change",
    [
        {"properties": ONE["properties"] | {"cents": {"type": "number"} | CLEAR}},
        {"properties": ONE["properties"], "upcast": {"cents": {"scale": 10}}},
        {"properties": ONE["properties"], "upcast": {"cents": {"from": "price"}}},
        {"properties": ONE["properties"], "dedup_window_days": 3},
    ],
)
def test_a_change_of_what_a_view_reads_makes_a_version(tmp_path: Path, change: dict[str, Any]) -> None:
    """Its type, what an older version's value becomes, and what decides which events count."""
    (tmp_path / "views.py").write_text(VIEWS)
    (buyers,) = [v for v in ViewRegistry.load([tmp_path / "views.py"]).all() if v.name == "buyers"]
    first = parse_event_type(ONE | {"properties": ONE["properties"] | {"price": {"type": "integer"} | CLEAR}})
    newer = parse_event_type(ONE | {"version": 2, "compatibility": "none"} | change)
    chains = {"Sold": [first, newer]}
    same = {"Sold": [first, parse_event_type(ONE | {"version": 2, "compatibility": "none"})]}
    assert fingerprint(buyers, {"Sold": newer}, chains) != fingerprint(
        buyers, {"Sold": same["Sold"][1]}, same
    )
