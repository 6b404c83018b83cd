"""What may be registered beside what: one table per mode, and what no mode allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lake import SchemaError, TypeRegistry, parse_event_type, problems
from lake.eventtypes import RESERVED

ANON = {"anonymous": True}
WHOLE, REAL, TEXT = {"type": "integer"}, {"type": "number"}, {"type": "string"}
Fields = dict[str, dict[str, Any]]
Change = tuple[Fields, list[str], Fields, list[str], dict[str, Any]]


def document(version: int, fields: Fields, required: list[str], **more: Any) -> dict[str, Any]:
    """A schema document of the type `T`."""
    head = {"name": "T", "version": version, "type": "object"}
    return head | {"properties": fields, "required": required} | more


def said(change: Change, mode: str) -> list[str]:
    """Why the change is refused under a mode."""
    old, old_required, new, new_required, upcast = change
    more = {"compatibility": mode} | ({"upcast": upcast} if upcast else {})
    older = parse_event_type(document(1, old, old_required))
    return [str(p) for p in problems([older], parse_event_type(document(2, new, new_required, **more)))]


def change(
    old: Fields, new: Fields, old_required: str = "", new_required: str = "", **upcast: dict[str, Any]
) -> Change:
    """From these fields to those; required ones are words."""
    return old, old_required.split(), new, new_required.split(), upcast


def bounded(**rules: Any) -> Fields:
    """One field `a` with rules."""
    return {"a": (TEXT if rules.keys() & {"minLength", "maxLength", "pattern", "enum"} else WHOLE) | rules}


# change → (allowed under backward, allowed under forward); full is both, none is always allowed
CASES: dict[str, tuple[Change, bool, bool]] = {
    "nothing": (change({"a": TEXT}, {"a": TEXT}), True, True),
    "a new optional field": (change({}, {"a": TEXT}), True, True),
    "a new required field": (change({}, {"a": TEXT}, "", "a"), False, True),
    "a new required field with a default": (
        change({}, {"a": TEXT}, "", "a", a={"default": "x"}),
        True,
        True,
    ),
    "an optional field becomes required": (change({"a": TEXT}, {"a": TEXT}, "", "a"), False, True),
    "an optional field becomes required, with a default": (
        change({"a": TEXT}, {"a": TEXT}, "", "a", a={"default": "x"}),
        True,
        True,
    ),
    "a required field becomes optional": (change({"a": TEXT}, {"a": TEXT}, "a", ""), True, False),
    "an optional field is dropped": (change({"a": TEXT}, {}), True, True),
    "a required field is dropped": (change({"a": TEXT}, {}, "a"), True, False),
    "a whole number becomes a number": (change({"a": WHOLE}, {"a": REAL}), True, False),
    "a required field is renamed": (
        change({"a": TEXT}, {"b": TEXT}, "a", "b", b={"from": "a"}),
        True,
        False,
    ),
    "an optional field is renamed": (change({"a": TEXT}, {"b": TEXT}, b={"from": "a"}), True, True),
    "euros become cents under a new name": (
        change({"eur": REAL}, {"cents": WHOLE}, cents={"from": "eur", "scale": 100, "cast": True}),
        True,
        True,
    ),
    "a unit changes under the same name": (change({"a": WHOLE}, {"a": WHOLE}, a={"scale": 100}), True, False),
    "a number is rounded": (change({"a": REAL}, {"a": WHOLE}, a={"cast": True}), True, True),
    "a number becomes text": (change({"a": WHOLE}, {"a": TEXT}, "a", "a", a={"cast": True}), True, False),
    "text becomes a number where it is one": (
        change({"a": TEXT}, {"a": WHOLE}, a={"cast": True}),
        True,
        False,
    ),
    "text becomes a required number": (
        change({"a": TEXT}, {"a": WHOLE}, "a", "a", a={"cast": True}),
        False,
        False,
    ),
    "known texts become required numbers": (
        change(bounded(enum=["1", "2"]), {"a": WHOLE}, "a", "a", a={"cast": True}),
        True,
        False,
    ),
    "an enum grows": (change(bounded(enum=["x"]), bounded(enum=["x", "y"])), True, False),
    "an enum shrinks": (change(bounded(enum=["x", "y"]), bounded(enum=["x"])), False, True),
    "an enum shrinks and its values are mapped": (
        change(bounded(enum=["x", "y"]), bounded(enum=["x"]), a={"map": {"y": "x"}}),
        True,
        False,
    ),
    "an enum is translated": (
        change(bounded(enum=["x", "y"]), {"a": WHOLE}, "a", "a", a={"map": {"x": 1, "y": 2}}),
        True,
        False,
    ),
    "an enum is translated in part": (
        change(bounded(enum=["x", "y"]), {"a": WHOLE}, "a", "a", a={"map": {"x": 1}}),
        False,
        False,
    ),
    "a minimum rises": (change(bounded(minimum=0), bounded(minimum=1)), False, True),
    "a minimum falls": (change(bounded(minimum=1), bounded(minimum=0)), True, False),
    "a minimum appears": (change(bounded(), bounded(minimum=0)), False, True),
    "a minimum behind a scale": (
        change(bounded(minimum=1), bounded(minimum=100), a={"scale": 100}),
        True,
        False,
    ),
    "a maximum that a scale breaks": (
        change(bounded(maximum=100), bounded(maximum=100), a={"scale": 100}),
        False,
        False,
    ),
    "text gets shorter": (change(bounded(maxLength=9), bounded(maxLength=8)), False, True),
    "a pattern changes": (change(bounded(pattern="^x"), bounded(pattern="^y")), False, False),
    "a name starts anew": (change({"a": TEXT}, {"a": WHOLE}, a={"from": None}), True, False),
}
RIDER, DRIVER = {"type": "string"}, {"type": "string", "role": "driver"}
NAMES_DRIVER = {"d": {"type": "string", "subject_of": "driver"}}
NEVER: dict[str, tuple[Change, str]] = {
    "anonymous becomes personal": (change({"a": TEXT | ANON}, {"a": TEXT}), "cannot become personal"),
    "personal becomes anonymous": (change({"a": TEXT}, {"a": TEXT | ANON}), "cannot be anonymous"),
    "personal into anonymous by an upcast": (
        change({"a": TEXT}, {"b": TEXT | ANON}, b={"from": "a"}),
        "derived from the personal field `a`",
    ),
    "anonymous into personal by an upcast": (
        change({"a": TEXT | ANON}, {"b": TEXT}, b={"from": "a"}),
        "derived from the anonymous field `a`",
    ),
    "another person's field": (
        change({"a": RIDER} | NAMES_DRIVER, {"a": DRIVER} | NAMES_DRIVER),
        "moves from subject/service to driver/service",
    ),
    "another person's field by an upcast": (
        change({"a": RIDER} | NAMES_DRIVER, {"b": DRIVER} | NAMES_DRIVER, b={"from": "a"}),
        "derived from `a` of subject/service",
    ),
    "another purpose by an upcast": (
        change({"a": TEXT}, {"b": TEXT | {"purpose": "marketing"}}, b={"from": "a"}),
        "belongs to subject/marketing",
    ),
    "text becomes a number without a rule": (
        change({"a": TEXT}, {"a": WHOLE}),
        "changes its type from string to integer",
    ),
    "text becomes an object": (change({"a": TEXT}, {"a": {"type": "object"}}), "changes its type"),
    "a number is cut without being told": (change({"a": REAL}, {"a": WHOLE}), "changes its type"),
    "a scale that leaves fractions": (
        change({"a": WHOLE}, {"a": WHOLE}, a={"scale": 0.01}),
        "would give fractions",
    ),
    "a scale on text": (change({"a": TEXT}, {"a": TEXT}, a={"scale": 2}), "`scale` makes no string"),
    "a map on numbers": (change({"a": WHOLE}, {"a": WHOLE}, a={"map": {"1": 2}}), "`map` needs text"),
    "a source that is not there": (change({}, {"a": TEXT}, a={"from": "b"}), "does not exist"),
    "a default that the schema refuses": (
        change({}, bounded(minimum=5), a={"default": 1}),
        "its own schema refuses",
    ),
    "a date that is none": (
        change({}, {"a": TEXT | {"format": "date"}}, a={"default": "soon"}),
        "its own schema refuses",
    ),
    "a mapped value that the schema refuses": (
        change({"a": TEXT}, bounded(enum=["x"]), a={"map": {"y": "z"}}),
        "its own schema refuses",
    ),
    "a default for who the driver is": (
        change({}, NAMES_DRIVER, d={"default": "nobody"}),
        "names a person",
    ),
    "an identity that is mapped": (
        change(
            {"a": TEXT | {"identity": "email"}},
            {"a": TEXT | {"identity": "email"}},
            a={"map": {"x": "y"}},
        ),
        "names a person",
    ),
}


@pytest.mark.parametrize("mode", ["backward", "forward", "full", "none"])
@pytest.mark.parametrize("case", CASES)
def test_a_change_passes_exactly_the_modes_it_keeps(case: str, mode: str) -> None:
    """`full` is `backward` and `forward`; `none` asks for neither."""
    step, backward, forward = CASES[case]
    allowed = {"backward": backward, "forward": forward, "full": backward and forward, "none": True}
    found = said(step, mode)
    assert (not found) is allowed[mode], found


@pytest.mark.parametrize("mode", ["backward", "forward", "full", "none"])
@pytest.mark.parametrize("case", NEVER)
def test_what_would_be_untrue_or_unreadable_is_refused_in_every_mode(case: str, mode: str) -> None:
    """Also under `none`."""
    step, why = NEVER[case]
    assert why in "; ".join(said(step, mode))


def test_all_older_versions_count_not_only_the_last() -> None:
    """A field that rests for a version cannot come back as another type, class or demand."""
    chain = [
        parse_event_type(document(1, {"a": TEXT}, [])),
        parse_event_type(document(2, {}, [])),
    ]
    for again in (WHOLE, TEXT | ANON, TEXT | {"enum": ["x"]}):
        (problem,) = problems(chain, parse_event_type(document(3, {"a": again}, [])))
        assert (problem.field, problem.versions) == ("a", (1,))
        assert problem.next_step
    assert problems(chain, parse_event_type(document(3, {"a": TEXT}, []))) == []


def test_a_default_reaches_older_versions_through_the_chain() -> None:
    """Version 2 gives the value; version 3 may require it of events of version 1."""
    one = parse_event_type(document(1, {}, []))
    two = parse_event_type(document(2, {"a": TEXT}, [], upcast={"a": {"default": "x"}}))
    assert problems([one], two) == []
    assert problems([one], parse_event_type(document(3, {"a": TEXT}, ["a"]))) != []
    found = problems([one, two], parse_event_type(document(3, {"a": TEXT}, ["a"])))
    assert [p.versions for p in found] == [(2,)]
    narrower = {"a": TEXT | {"enum": ["y"]}}
    assert any(1 in p.versions for p in problems([one, two], parse_event_type(document(3, narrower, []))))


def test_a_problem_of_several_versions_is_told_once() -> None:
    """With all of their numbers."""
    chain = [parse_event_type(document(n, {"a": TEXT}, [])) for n in (1, 2, 3)]
    (problem,) = problems(chain, parse_event_type(document(4, {"b": TEXT}, ["b"])))
    assert str(problem).startswith("versions 1, 2, 3: `b` is new and required")


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_field_cannot_have_the_name_of_a_column_of_ours(name: str) -> None:
    """It would meet that column at ingest or be lost on reading."""
    with pytest.raises(SchemaError, match="column of ours"):
        parse_event_type(document(1, {name: TEXT}, []))


@pytest.mark.parametrize(
    "body", [WHOLE | {"minLength": 1}, TEXT | {"minimum": 1}, TEXT | {"format": "date", "enum": ["x"]}]
)
def test_a_rule_must_fit_its_type(body: dict[str, Any]) -> None:
    """What JSON Schema would ignore is a mistake that nobody would notice."""
    with pytest.raises(SchemaError, match="says nothing of"):
        parse_event_type(document(1, {"a": body}, []))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"compatibility": "sideways"}, "must be one of backward"),
        ({"upcast": []}, "must be an object"),
        ({"upcast": {"z": {"default": 1}}}, "no such property"),
        ({"upcast": {"a": {}}}, "a rule is an object"),
        ({"upcast": {"a": {"form": "b"}}}, "unknown key form"),
        ({"upcast": {"a": {"from": 3}}}, "must be the name of a field"),
        ({"upcast": {"a": {"from": None, "cast": True}}}, "nothing to map"),
        ({"upcast": {"a": {"scale": 0}}}, "positive"),
        ({"upcast": {"a": {"scale": True}}}, "positive"),
        ({"upcast": {"a": {"scale": 2, "map": {"x": "y"}}}}, "goes with neither"),
        ({"upcast": {"a": {"map": {}}}}, "old text → new value"),
        ({"upcast": {"a": {"map": {"x": None}}}}, "old text → new value"),
        ({"upcast": {"a": {"cast": "integer"}}}, "must be true"),
        ({"upcast": {"a": {"default": None}}}, "must be a value"),
    ],
)
def test_a_rule_that_is_none_says_why(more: dict[str, Any], why: str) -> None:
    """When the document is read."""
    with pytest.raises(SchemaError, match=why) as caught:
        parse_event_type(document(2, {"a": TEXT}, [], **more))
    assert caught.value.next_step


def test_versions_are_registered_in_order_and_stay(tmp_path: Path) -> None:
    """One that came between would change what older events turn into."""
    types = TypeRegistry(tmp_path)
    with pytest.raises(SchemaError, match="no version before"):
        types.register(document(1, {"a": TEXT}, [], upcast={"a": {"default": "x"}}))
    types.register(document(1, {"a": TEXT}, []))
    types.register(document(3, {"a": TEXT}, []))
    assert types.register(document(3, {"a": TEXT}, [])).version == 3
    with pytest.raises(SchemaError, match="comes after version 3") as caught:
        types.register(document(2, {"a": TEXT}, []))
    assert "version number 4" in caught.value.next_step
    with pytest.raises(SchemaError, match="another content"):
        types.register(document(3, {"b": TEXT}, []))
    with pytest.raises(SchemaError, match=r"not compatible \(backward\): versions 1, 3: `a`"):
        types.register(document(4, {"a": WHOLE}, []))
    assert types.versions("T") == [1, 3]
