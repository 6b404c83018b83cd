"""Through every door any bytes, against any schema: an event that is stored, or one letter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lake.eventcolumns import parse_columns
from lake.mapping import parse_mapping
from lake.typedevents import parse_typed
from service.runtime import Runtime
from tests.lake.anydoor import GOOD, Doors, outcomes
from tests.lake.anytrial import DOORS, forged, tried
from tests.world import make_world


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A lake that takes all of it and keeps nothing."""
    runtime = make_world(Path(tmp_path_factory.mktemp("doors")) / "lake")
    yield runtime
    runtime.close()


@pytest.mark.parametrize("door", DOORS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_comes_through_a_door_is_stored_or_one_letter(
    shared: Runtime, door: str, data: st.DataObject
) -> None:
    """With a reason that was foreseen; its neighbours are stored, and all of it is read again."""
    tried(shared, door, data)


def test_what_nobody_with_keys_sealed_is_a_letter(shared: Runtime) -> None:
    """It looks like any other message, and would break every read of its type."""
    doors = Doors(shared, shared.lake.types)
    fine = doors.sealing(GOOD)
    came = doors.sealed([fine[0], forged(fine[1]), fine[2]])
    assert [(one.line, one.flaw.reason) for one in came.parsed.rejected] == [(1, "not_authentic")]
    doors.check(came)


def test_a_rule_that_only_whole_schemas_know_holds_through_a_mapping_too(
    shared: Runtime, tmp_path: Path
) -> None:
    """Constants, conditions, steps, and texts that stand for objects: as through any other door."""
    rules = {
        "name": "Ruled",
        "version": 1,
        "type": "object",
        "properties": {
            "n": {"type": "integer", "multipleOf": 5},
            "word": {"type": "string", "const": "yes"},
            "more": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
        "dependentRequired": {"n": ["word"]},
    }
    shared.lake.types.register(rules)
    fields = {name: name for name in ("n", "word", "more")}
    event = {"type": "Ruled", "source": "s", "subject": "{who}", "time": "at"}
    shape = {"kind": "csv", "delimiter": ";"}
    mapping = parse_mapping({"format": shape, "event": event, "fields": fields}, shared.lake.types)
    rows = {
        '5;yes;{"a": 1}': "Ruled",
        "7;yes;": "!multipleOf",
        "5;no;": "!const",
        "5;;": "!dependentRequired",
        ";yes;[1]": "!wrong_type",
        ";yes;text": "!wrong_type",
        ';yes;{"a": "b"}': "!type",
        ";yes;" + '{"a":' * 300 + "1" + "}" * 300: "!wrong_type",
    }
    lines = ["who;at;n;word;more", *(f"ann;2026-03-01T12:00:00Z;{row}" for row in rows)]
    doors = Doors(shared, shared.lake.types)
    came = doors.mapped_file([line.encode() for line in lines], mapping)
    assert [outcomes(came)[at] for at in range(1, len(lines))] == list(rows.values())
    doors.check(came)


@settings(max_examples=40)
@given(
    texts=st.lists(
        (st.integers(2**53 - 3, 2**53 + 3) | st.integers(-(2**70), 2**70) | st.integers(0, 10**300)).map(str)
        | st.floats(allow_nan=False, allow_infinity=False).map(repr),
        min_size=1,
        max_size=6,
    )
)
@example(texts=["9007199254740993", "9007199254740992", "-9007199254740993", "18446744073709551617", "1e300"])
def test_a_whole_number_in_a_field_of_numbers_is_kept_exactly_or_is_a_letter(
    shared: Runtime, texts: list[str]
) -> None:
    """Never changed silently: by each way of parsing events, and by a mapping."""
    types = shared.lake.types
    number = {"name": "Measured", "version": 1, "type": "object", "properties": {"x": {"type": "number"}}}
    types.register(number)
    doors = Doors(shared, types)
    head = '{"specversion":"1.0","source":"s","type":"Measured","subject":"ann","time":"2026-03-01T12:00:00Z"'
    lines = [f'{head},"id":"{at}","data":{{"x":{text}}}}}'.encode() for at, text in enumerate(texts)]
    shape = {"kind": "csv", "columns": ["x", "at"]}
    event = {"type": "Measured", "source": "s", "subject": "ann", "time": "at"}
    mapping = parse_mapping({"format": shape, "event": event, "fields": {"x": "x"}}, types)
    rows = [f"{text},2026-03-01T12:00:00Z".encode() for text in texts]
    columns, _ = parse_columns(list(enumerate(lines)), types, least=1)
    typed, _ = parse_typed(list(enumerate(lines)), types)
    frames = [frame for way in (columns, typed) for _, frame in way]
    for came in (doors.file(lines), doors.mapped_file(rows, mapping)):
        frames += [frame for _, frame in came.parsed.accepted]
        exact = {
            at for at, text in enumerate(texts) if not text.lstrip("-").isdigit() or float(text) == int(text)
        }
        assert {at for at, what in outcomes(came).items() if what == "Measured"} == exact
        assert set(outcomes(came).values()) <= {"Measured", "!inexact"}
    for frame in frames:
        for at, x in frame.select("position", "x").iter_rows():
            assert x == (int(texts[at]) if texts[at].lstrip("-").isdigit() else float(texts[at]))
