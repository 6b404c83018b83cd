"""Events of every version are read as events of the newest."""

from __future__ import annotations

import random
from datetime import date
from typing import Any

import polars as pl
from hypothesis import event, given, settings
from hypothesis import strategies as st

from lake import EventRead, EventType, Facet, parse_event_type, problems
from lake.eventtypes import PRIMARY
from lake.upcast import bring_forward, needed_fields
from lake.validate import rule_flaws, typed_columns
from service.runtime import Runtime
from tests.lake.evolution import brought_forward, first, next_version, record_of
from tests.world import compact_all, paid, send, shred


def plain(value: Any) -> Any:
    """As JSON has it."""
    return value.isoformat() if isinstance(value, date) else value


def read_as_newest(records: list[dict[str, Any]], path: list[EventType]) -> pl.DataFrame:
    """What the reader makes of records, without a lake around it."""
    frame, flaws = typed_columns(path[0], records)
    assert flaws == {}
    names = [f.name for f in path[-1].fields]
    needed = needed_fields(path, names)[0]
    stored = frame.select(name for name in frame.columns if name in needed)
    rows = pl.DataFrame({"shredded": [False] * len(records)}).hstack(stored)
    found = bring_forward(rows, path, names, PRIMARY)
    return found.with_columns(
        pl.col(f.name) if f.name in found.columns else pl.lit(None, f.dtype).alias(f.name)
        for f in path[-1].fields
    ).select(names)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**63))
def test_whatever_the_rules_accept_is_read_as_plain_python_says(seed: int) -> None:
    """And, but for numbers that outgrow 64 bits, valid in the newest version: that is what was promised."""
    rng = random.Random(seed)
    chain = [first(rng)]
    for _ in range(6):
        newer = next_version(chain[-1], rng)
        try:
            found = problems([parse_event_type(d) for d in chain], parse_event_type(newer))
        except ValueError:  # not even a schema
            continue
        if not found:
            chain.append(newer)
    types = [parse_event_type(d) for d in chain]
    event(f"{len(chain)} versions")
    for at in range(len(chain)):
        records = [record_of(chain[at], rng, wild=n > 3) for n in range(6)]
        read = read_as_newest(records, types[at:])
        expected = [brought_forward(record, chain[at:]) for record in records]
        assert [{k: plain(v) for k, v in row.items()} for row in read.to_dicts()] == expected
        assert rule_flaws(types[-1], read.head(4)) == {}


def test_a_field_that_rests_for_a_version_comes_back() -> None:
    """And one that was renamed away does not, though its name is used again."""
    one = {"name": "T", "version": 1, "type": "object", "properties": {"a": {"type": "string"}}}
    rests = [one, one | {"version": 2, "properties": {}}, one | {"version": 3}]
    assert read_as_newest([{"a": "x"}], [parse_event_type(d) for d in rests])["a"].to_list() == ["x"]
    b = {"b": {"type": "string"}}
    moved = [
        one,
        one | {"version": 2, "properties": b, "upcast": {"b": {"from": "a"}}},
        one | {"version": 3, "properties": b | {"a": {"type": "string"}}},
    ]
    rows = read_as_newest([{"a": "x"}], [parse_event_type(d) for d in moved])
    assert rows.to_dicts() == [{"b": "x", "a": None}]


def test_two_fields_can_change_places() -> None:
    """Every rule reads the version before, none the other's outcome."""
    text = {"type": "string"}
    one = {"name": "T", "version": 1, "type": "object", "properties": {"a": text, "b": text}}
    two = one | {"version": 2, "upcast": {"a": {"from": "b"}, "b": {"from": "a"}}}
    rows = read_as_newest([{"a": "x", "b": "y"}], [parse_event_type(d) for d in (one, two)])
    assert rows.to_dicts() == [{"a": "y", "b": "x"}]


TWELVE: list[dict[str, Any]] = [
    {"p": {"eur": "number", "shop": "string", "who": "string?"}, "r": ["eur"]},
    {"p": {"eur": "number", "shop": "string", "who": "string?", "channel": "string"}, "r": ["eur", "channel"], "u": {"channel": {"default": "shop"}}},
    {"p": {"cents": "integer", "shop": "string", "who": "string?", "channel": "string"}, "r": ["cents", "channel"], "u": {"cents": {"from": "eur", "scale": 100, "cast": True}}},
    {"p": {"cents": "integer", "shop": "string", "buyer": "string?", "channel": "string"}, "r": ["cents", "channel"], "u": {"buyer": {"from": "who"}}},
    {"p": {"cents": "integer", "shop": "string", "buyer": "string?", "channel": "string", "items": "integer"}, "r": ["cents", "channel"]},
    {"p": {"cents": "integer", "buyer": "string?", "channel": "string", "items": "integer"}, "r": ["cents", "channel", "items"], "u": {"items": {"default": 1}}},
    {"p": {"cents": "integer", "buyer": "string?", "channel": "string", "items": "number"}, "r": ["cents", "channel", "items"]},
    {"p": {"cents": "integer", "buyer": "string?", "way": "integer", "items": "number"}, "r": ["cents", "items"], "u": {"way": {"from": "channel", "map": {"shop": 1, "web": 2}}}},
    {"p": {"cents": "integer", "buyer": "string?", "way": "integer", "items": "number", "note": "string?"}, "r": ["cents", "items", "note"], "u": {"note": {"default": "none"}}},
    {"p": {"mills": "integer", "buyer": "string?", "way": "integer", "items": "number", "note": "string?"}, "r": ["mills", "items", "note"], "u": {"mills": {"from": "cents", "scale": 10}}},
    {"p": {"mills": "integer", "buyer": "string?", "way": "string", "items": "number", "note": "string?"}, "r": ["mills", "items", "note"], "u": {"way": {"cast": True, "default": "?"}}},
    {"p": {"mills": "integer", "buyer": "string?", "way": "string", "items": "integer", "note": "string?", "shop": "string"}, "r": ["mills", "items", "note"], "u": {"items": {"cast": True}}},
]  # fmt: skip


def twelve() -> list[dict[str, Any]]:
    """The twelve documents; `?` marks what is personal."""
    return [
        {
            "name": "Sold",
            "version": number,
            "type": "object",
            "properties": {
                name: {"type": kind.rstrip("?")} | ({} if kind.endswith("?") else {"anonymous": True})
                for name, kind in one["p"].items()
            },
            "required": one["r"],
        }
        | ({"upcast": one["u"]} if "u" in one else {})
        for number, one in enumerate(TWELVE, 1)
    ]


def replayed(runtime: Runtime, name: str, fields: tuple[str, ...], facet: Facet = PRIMARY) -> pl.DataFrame:
    """Every event of the head."""
    replay = runtime.lake.replay()
    head = replay.resolve(None)
    assert head is not None
    return replay.events(replay.files(head.snapshot_id), EventRead(name, fields, facet)).frame


def test_a_year_of_mixed_versions_is_read_by_the_newest(world: Runtime) -> None:
    """Twelve versions, registered as time goes by; events of all of them; compacted; somebody erased."""
    rng = random.Random(12)
    documents = twelve()
    expected: dict[str, dict[str, Any]] = {}
    for month, newest in enumerate(documents):
        world.lake.types.register(newest)
        batch = []
        for number in range(40):
            at = month if number < 20 else rng.randrange(month + 1)  # producers lag behind
            record = record_of(documents[at], rng)
            if record.get("channel"):
                record["channel"] = rng.choice(("shop", "web", "post"))
            key, person = f"{month}-{number}", f"p{rng.randrange(9)}"
            named = {"type": "Sold", "data": record, "schemaversion": documents[at]["version"]}
            batch.append(paid(person, event_id=key) | named)
            expected[key] = brought_forward(record, documents[at:]) | {"subject": person}
        assert send(world, batch).dead == 0
    fields = tuple(documents[-1]["properties"])

    def check() -> None:
        rows = replayed(world, "Sold", (*fields, "event_id", "subject"))
        found = {r["event_id"]: {n: r[n] for n in (*fields, "subject")} for r in rows.to_dicts()}
        assert found == {k: {n: v[n] for n in (*fields, "subject")} for k, v in expected.items()}
        for name in (
            "mills",
            "items",
            "way",
            "shop",
        ):  # a read of one field alone opens nothing and says the same
            alone = replayed(world, "Sold", (name,))[name]
            assert sorted(map(str, alone)) == sorted(str(v[name]) for v in expected.values())

    check()
    compact_all(world)
    check()
    shred(world, "p3")
    rows = replayed(world, "Sold", (*fields, "event_id"))
    dead = rows.filter(pl.col("shredded"))
    assert dead.height == sum(v["subject"] == "p3" for v in expected.values())
    assert dead.select(pl.col("buyer", "note").is_null().all()).row(0) == (True, True)
    assert dead["mills"].null_count() == 0


def test_a_default_is_not_given_to_the_erased_nor_to_other_peoples_parts(world: Runtime) -> None:
    """An invented value would look like one that survived."""
    ride = {
        "name": "Ride",
        "version": 1,
        "type": "object",
        "properties": {
            "driver": {"type": "string", "subject_of": "driver"},
            "mood": {"type": "string"},
        },
    }
    grown = ride["properties"] | {  # type: ignore[operator]
        "tip": {"type": "integer"},
        "stars": {"type": "integer", "role": "driver"},
    }
    upcast = {"tip": {"default": 0}, "stars": {"default": 5}}
    world.lake.types.register(ride)
    send(
        world,
        [
            paid("ann", event_id="1") | {"type": "Ride", "data": {"driver": "dan"}},
            paid("bob", event_id="2") | {"type": "Ride", "data": {"driver": "dot"}},
        ],
    )
    world.lake.types.register(ride | {"version": 2, "properties": grown, "upcast": upcast})
    shred(world, "ann")
    shred(world, "dot")
    riders = replayed(world, "Ride", ("tip", "stars", "event_id"))
    assert sorted(riders.select("tip", "stars", "shredded").rows(), key=str) == [
        (0, None, False),
        (None, None, True),
    ]
    drivers = replayed(world, "Ride", ("tip", "stars", "event_id"), Facet("driver", "service"))
    assert sorted(drivers.select("tip", "stars", "shredded").rows(), key=str) == [
        (None, 5, False),
        (None, None, True),
    ]


def test_a_widened_number_is_cast(world: Runtime) -> None:
    """Without any rule."""
    one = {"name": "T", "version": 1, "type": "object", "properties": {"n": {"type": "integer"}}}
    world.lake.types.register(one)
    send(world, [paid("ann", event_id="1") | {"type": "T", "data": {"n": 3}}])
    world.lake.types.register(one | {"version": 2, "properties": {"n": {"type": "number"}}})
    send(world, [paid("ann", event_id="2") | {"type": "T", "data": {"n": 3.5}}])
    assert replayed(world, "T", ("n",))["n"].to_list() == [3.0, 3.5]
