"""Whether a new version of an event type may be registered beside the versions that are. Pure.

The modes are those of schema registries in their transitive form, against all versions before:

=========  ==========================================================================================
backward   what any older version stored, brought forward by the upcasts, is valid in the new version
forward    what the new version stores is valid for a reader of any older one (which knows no upcast)
full       both
none       neither is asked
=========  ==========================================================================================

In every mode, also in `none`, a version is refused that would be untrue or unreadable: a name that
changes its class, role or purpose (what is stored in clear cannot become personal, and a personal
value must not come out where views are stored in clear); a type that no rule converts; an upcast that
mixes classes, roles or purposes, or changes what names a person.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import Any, Final

from attrs import evolve, field, frozen

from lake.eventtypes import EventType, Field
from lake.fieldrules import is_valid, matches
from lake.upcast import taken
from lake.upcastrules import INT64_MAX, Rule, convert, outcome

_NEW_NAME: Final = "Give the field a new name."
_ANEW: Final = "Convert it by an `upcast` rule, or start anew with `from: null`."
_LOWER: Final = ("minimum", "exclusiveMinimum")
_UPPER: Final = ("maximum", "exclusiveMaximum")


@frozen
class Problem:
    """Why a version may not be registered.

    Attributes:
        versions: the older versions concerned.
        why: what is wrong with the field, to be read behind its name.
        next_step: what to do.
    """

    field: str
    versions: tuple[int, ...]
    why: str
    next_step: str

    def __str__(self) -> str:
        word = "version" if len(self.versions) == 1 else "versions"
        return f"{word} {', '.join(map(str, self.versions))}: `{self.field}` {self.why}"


_Found = tuple[str, str, str]
"""Field, why, next step."""


def problems(known: Iterable[EventType], newer: EventType) -> list[Problem]:
    """Every reason against registering `newer`, empty where it may be.

    Args:
        known: the registered versions of the type, in any order; later ones do not count.
    """
    older = sorted((one for one in known if one.version < newer.version), key=lambda one: one.version)
    found: dict[_Found, list[int]] = {}

    def note(version: int, reasons: Iterable[_Found]) -> None:
        for reason in reasons:
            found.setdefault(reason, []).append(version)

    for one in older:
        note(one.version, _class_moves(one, newer))
    before = older[-1] if older else None
    flaws = _rule_flaws(before, newer)
    note(before.version if before else newer.version, flaws)
    if not flaws:  # a flawed rule cannot be followed
        for at, one in enumerate(older):
            path = (*older[at:], newer)
            unreadable, invalid = _backward(path)
            note(one.version, unreadable)
            if newer.compatibility in ("backward", "full"):
                note(one.version, invalid)
            if newer.compatibility in ("forward", "full"):
                note(one.version, _forward(path))
    return [Problem(name, tuple(versions), why, step) for (name, why, step), versions in found.items()]


def notes(newer: EventType) -> list[str]:
    """What is allowed, and still worth knowing before registering."""
    return [
        f"`{rule.target}` keeps its name and changes its meaning: an event that names no `schemaversion`"
        f" counts as version {newer.version}"
        for rule in newer.upcast
        if rule.source == rule.target and rule.changes_meaning
    ]


def _class_moves(older: EventType, newer: EventType) -> list[_Found]:
    before = {f.name: f for f in older.fields}
    found = []
    for one in newer.fields:
        was = before.get(one.name)
        if was is None:
            continue
        if was.anonymous and not one.anonymous:
            why = "was kept in clear and cannot become personal for stored events"
            found.append((one.name, why, _NEW_NAME))
        elif not was.anonymous and one.anonymous:
            why = "was personal and cannot be anonymous: it would bring sealed values into the clear"
            found.append((one.name, why, _NEW_NAME))
        elif not one.anonymous and was.facet != one.facet:
            why = f"moves from {was.facet} to {one.facet}, and stored values are sealed under the former"
            found.append((one.name, why, _NEW_NAME))
    return found


def _rule_flaws(before: EventType | None, newer: EventType) -> list[_Found]:
    """What is wrong with a version's upcast, whatever the mode."""
    found = []
    sources = {f.name: f for f in before.fields} if before is not None else {}
    for rule in newer.upcast:
        target = next(f for f in newer.fields if f.name == rule.target)
        if before is None:
            step = "Remove `upcast`, or register the version before first."
            found.append((rule.target, "has an upcast rule, and there is no version before", step))
            continue
        needs_source = rule.source != rule.target or rule.changes_meaning or rule.cast
        if rule.source is not None and needs_source and rule.source not in sources:
            step = f"Name a field of version {before.version}."
            found.append((rule.target, f"is derived from `{rule.source}`, which does not exist", step))
            continue
        source = sources.get(rule.source) if rule.source is not None else None
        found.extend((rule.target, why, step) for why, step in _mixing(rule, source, target))
        found.extend((rule.target, why, "Correct the rule.") for why in _unfit_constants(rule, target))
    return found


def _mixing(rule: Rule, source: Field | None, target: Field) -> list[tuple[str, str]]:
    found = []
    if source is not None and source.anonymous != target.anonymous:
        kinds = ("anonymous", "personal") if source.anonymous else ("personal", "anonymous")
        why = f"is {kinds[1]} and would be derived from the {kinds[0]} field `{source.name}`"
        found.append((why, "Derive it from a field of its own class, or leave it without a rule."))
    elif source is not None and not target.anonymous and source.facet != target.facet:
        why = f"belongs to {target.facet} and would be derived from `{source.name}` of {source.facet}"
        found.append((why, "Derive it from a field of the same role and purpose."))
    names = any(one is not None and (one.identity or one.subject_of) for one in (source, target))
    if names and not rule.keeps_value:
        found.append(("names a person, so its values cannot be changed", "Use `from` alone."))
    return found


def _unfit_constants(rule: Rule, target: Field) -> list[str]:
    values = list((rule.mapping or {}).values())
    why = []
    if any(not _fits(value, target) for value in values):
        why.append("has a value in `map` that its own schema refuses")
    if rule.default is not None and not _fits(rule.default, target):
        why.append("has a `default` that its own schema refuses")
    return why


def _fits(value: Any, target: Field) -> bool:
    if not is_valid(target.body, value):
        return False
    if target.kind == "integer":
        return isinstance(value, int) and abs(value) <= INT64_MAX
    if target.kind == "date":
        return convert(Rule(target.name, None, cast=True), value, "string", "date") is not None
    return True


@frozen
class _Shape:
    """Which values a field can hold: those that `rules` allow, and `extras`.

    Attributes:
        may_lack: whether an event can be without it.
        rules: bounds as in JSON Schema; a finite set is under `enum` alone.
    """

    kind: str
    may_lack: bool
    rules: Mapping[str, Any]
    extras: tuple[Any, ...] = field(default=())


def _shape(one: Field) -> _Shape:
    rules = dict(one.rules)
    if one.kind == "boolean":
        rules.setdefault("enum", [False, True])
    if "enum" in rules:
        rest = {name: bound for name, bound in rules.items() if name != "enum"}
        rules = {"enum": [v for v in rules["enum"] if v is not None and _allowed(v, rest)]}
    return _Shape(one.kind, not one.required or one.may_be_null, rules)


def _backward(path: Sequence[EventType]) -> tuple[list[_Found], list[_Found]]:
    """(what cannot be read, what can be and would be invalid) of a path's first version in its last."""
    shapes = {f.name: _shape(f) for f in path[0].fields}
    unreadable: list[_Found] = []
    for newer in path[1:]:
        shapes, unreadable = _stepped(shapes, newer)
    newest = path[-1]
    invalid: list[_Found] = []
    broken = {name for name, _, _ in unreadable}
    for one in newest.fields:
        if one.name in broken:
            continue
        shape = shapes.get(one.name)
        if one.required and (shape is None or shape.may_lack):
            known = "was optional and is required" if shape is not None else "is new and required"
            step = "Make it optional, or give older events a value by `upcast` with `default`."
            invalid.append((one.name, f"{known}: older events lack it", step))
        if shape is not None and one.kind not in ("object", "array"):
            step = "Widen the rule, bring the values over by `upcast`, or use a new name."
            invalid.extend((one.name, f"{why}: older events break it", step) for why in _misfits(shape, one))
    return unreadable, invalid


def _stepped(shapes: Mapping[str, _Shape], newer: EventType) -> tuple[dict[str, _Shape], list[_Found]]:
    """The shapes after one version's upcast, and what of it cannot be read."""
    after = {name: shape for name, shape in shapes.items() if name not in taken(newer)}
    unreadable: list[_Found] = []
    for one in newer.fields:
        rule = newer.upcast_of(one.name) or Rule(one.name, one.name)
        was = shapes.get(rule.source) if rule.source is not None else None
        shape = _Shape(one.kind, True, {"enum": []})
        if was is None and rule.default is None:
            after.pop(one.name, None)
            continue
        if was is not None:
            why = outcome(rule, was.kind, one.kind)
            if why is not None:
                unreadable.append((one.name, why, _ANEW))
                after.pop(one.name, None)
                continue
            shape = _through(rule, was, one)
        if rule.default is not None:
            shape = evolve(shape, may_lack=False, extras=(*shape.extras, _stored(rule.default, one)))
        after[one.name] = shape
    return after, unreadable


def _through(rule: Rule, was: _Shape, target: Field) -> _Shape:
    """What a rule makes of a shape, before `default`."""

    def image(value: Any) -> Any:
        return convert(rule, value, was.kind, target.kind)

    if "enum" in was.rules:
        images = [image(value) for value in (*was.rules["enum"], *was.extras)]
        some = [value for value in images if value is not None]
        return _Shape(target.kind, was.may_lack or len(some) < len(images), {"enum": some})
    extras = tuple(value for value in map(image, was.extras) if value is not None)
    if rule.mapping is not None:
        listed = tuple(_stored(value, target) for value in rule.mapping.values())
        if target.kind == "string":
            return _Shape("string", was.may_lack, was.rules, (*extras, *listed))
        return _Shape(target.kind, True, {"enum": list(listed)})
    numbers = {"integer", "number"}
    if was.kind in numbers and target.kind in numbers:
        exact = rule.scale is None and (was.kind == target.kind or was.kind == "integer")
        return _Shape(target.kind, was.may_lack, _bounds(was.rules, image, exact), extras)
    if was.kind == target.kind:
        return _Shape(target.kind, was.may_lack, was.rules, extras)
    parses = was.kind == "string"  # text that does not parse comes out as nothing
    return _Shape(target.kind, was.may_lack or parses, {}, extras)


def _bounds(rules: Mapping[str, Any], image: Callable[[Any], Any], exact: bool) -> dict[str, Any]:
    """Bounds behind an increasing function; rounding may reach an exclusive bound."""
    after: dict[str, Any] = {}
    for names in (_LOWER, _UPPER):
        for name in names:
            if name in rules:
                bound = image(rules[name])
                kept = name if exact else names[0]
                if bound is not None:
                    pick = max if names is _LOWER else min
                    after[kept] = pick(after.get(kept, bound), bound)
    return after


def _stored(value: Any, target: Field) -> Any:
    return date.fromisoformat(value) if target.kind == "date" else value


def _misfits(shape: _Shape, target: Field) -> list[str]:
    """Rules of a field that values of a shape can break."""
    rules = target.rules
    if target.kind == "date":
        return []
    values = [*shape.extras, *shape.rules.get("enum", ())]
    found = [name for name in rules if any(not _allowed(v, {name: rules[name]}) for v in values)]
    if "enum" not in shape.rules:
        found += [n for n in rules if n not in found and not _implied(n, rules[n], shape.rules, target.kind)]
    return [_said(name, rules[name]) for name in rules if name in found]


def _said(name: str, bound: Any) -> str:
    return "lists fewer values in `enum`" if name == "enum" else f"has the narrower `{name}: {bound}`"


def _implied(name: str, bound: Any, rules: Mapping[str, Any], kind: str) -> bool:
    """Whether whatever `rules` allow keeps to a bound."""
    if name in _LOWER + _UPPER and kind not in ("integer", "number"):
        return True  # as in JSON Schema: says nothing of text
    if name in _LOWER:
        least = max(rules.get(n, -math.inf) for n in _LOWER)
        above = rules.get("exclusiveMinimum", -math.inf) >= bound
        return least > bound or above or (name == "minimum" and least == bound)
    if name in _UPPER:
        most = min(rules.get(n, math.inf) for n in _UPPER)
        below = rules.get("exclusiveMaximum", math.inf) <= bound
        return most < bound or below or (name == "maximum" and most == bound)
    if kind != "string" and name != "enum":
        return True
    if name == "minLength":
        return bool(rules.get(name, 0) >= bound)
    if name == "maxLength":
        return bool(rules.get(name, math.inf) <= bound)
    if name == "enum" and kind == "boolean":
        return {False, True} <= set(bound)
    return bool(name in rules and rules[name] == bound)


def _allowed(value: Any, rules: Mapping[str, Any]) -> bool:
    return all(_CHECKS[name](value, bound) for name, bound in rules.items())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_CHECKS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "enum": lambda value, bound: value in bound,
    "minimum": lambda value, bound: not _is_number(value) or value >= bound,
    "maximum": lambda value, bound: not _is_number(value) or value <= bound,
    "exclusiveMinimum": lambda value, bound: not _is_number(value) or value > bound,
    "exclusiveMaximum": lambda value, bound: not _is_number(value) or value < bound,
    "minLength": lambda value, bound: not isinstance(value, str) or len(value) >= bound,
    "maxLength": lambda value, bound: not isinstance(value, str) or len(value) <= bound,
    "pattern": lambda value, bound: not isinstance(value, str) or matches(bound, value),
}


def _forward(path: Sequence[EventType]) -> list[_Found]:
    """What a reader of the path's first version could not make of events of its last."""
    reader, writer = path[0], path[-1]
    written = {f.name: f for f in writer.fields}
    anew = {r.target for newer in path[1:] for r in newer.upcast if r.changes_meaning}
    found = []
    for one in reader.fields:
        now = written.get(one.name)
        if one.required and (now is None or not now.required):
            known = "is missing" if now is None else "is optional now"
            step = "Keep it as a required field, or set `compatibility` to backward."
            found.append((one.name, f"{known}, and readers of that version require it", step))
        if now is None:
            continue
        if one.name in anew:
            step = "Use a new name, or set `compatibility` to backward."
            found.append((one.name, "changes its meaning, and readers of that version know no upcast", step))
        why = outcome(Rule(one.name, one.name), now.kind, one.kind)
        if why is not None:
            step = "Use a new name, or set `compatibility` to backward."
            found.append((one.name, f"changes its type from {one.kind} to {now.kind}", step))
        elif one.kind not in ("object", "array"):
            step = "Keep to the older rule, or set `compatibility` to backward."
            wider = _misfits(_shape(now), one)
            found.extend((one.name, f"may break its older rules: there it {why}", step) for why in wider)
    return found
