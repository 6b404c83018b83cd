"""Through every door any bytes, against any schema: an event that is stored, or one letter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lake.mapping import parse_mapping
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
