"""Views across a change of an event type's version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
