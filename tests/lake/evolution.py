"""Event types that change: random steps of a schema, records of each version, and what they turn into.

`brought_forward` says it once more, in plain Python and one record at a time, so that a mistake of the
reader is not made here too.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

Document = dict[str, Any]
Record = dict[str, Any]
Steps = Callable[[Document, random.Random], None]
KINDS = ("string", "integer", "number", "boolean", "date", "enum")
WORDS = ("red", "green", "12", "-7", "1.5", "true", "2026-05-01", "hä? 🎈", "")


def first(rng: random.Random) -> Document:
    """A version 1."""
    document: Document = {"name": "Grown", "version": 1, "type": "object", "properties": {}, "required": []}
    for _ in range(rng.randint(1, 4)):
        add(document, rng)
    return document


def next_version(older: Document, rng: random.Random) -> Document:
    """A version with some steps more; whether it may be registered is for the rules to say."""
    newer = {
        **older,
        "version": older["version"] + rng.choice((1, 1, 2)),
        "properties": {name: dict(body) for name, body in older["properties"].items()},
        "required": list(older["required"]),
    }
    newer.pop("upcast", None)
    for step in rng.sample(STEPS, rng.randint(1, 3)):
        step(newer, rng)
    return newer


def record_of(document: Document, rng: random.Random, wild: bool = False) -> Record:
    """A record that fits a version; `wild` ones hold numbers that no scale fits into 64 bits."""
    return {
        name: value_of(body, rng, wild)
        for name, body in document["properties"].items()
        if name in document["required"] or rng.random() < 0.7
    }


def value_of(body: dict[str, Any], rng: random.Random, wild: bool = False) -> Any:
    """A value that fits a property."""
    if "enum" in body:
        return rng.choice(body["enum"])
    if body.get("format") == "date":
        return (date(2026, 1, 1) + timedelta(days=rng.randrange(400))).isoformat()
    if wild and body["type"] in ("integer", "number"):
        return rng.choice(
            (2**62, -(2**63), 2**53 + 1) if body["type"] == "integer" else (1e300, 9.3e18, 1e17)
        )
    if body["type"] == "integer":
        return rng.choice((0, 1, -5, rng.randrange(-(10**6), 10**6)))
    if body["type"] == "number":
        return rng.choice((0.5, 1.5, 2.5, -0.25, 12.34, float(rng.randrange(10**6)) / 100))
    return rng.choice(WORDS) if body["type"] == "string" else rng.random() < 0.5


def add(document: Document, rng: random.Random, optional: bool = True) -> str:
    """A new field; a required one comes with a default."""
    fields = document["properties"]
    name = f"f{rng.randrange(30)}"
    if name in fields:
        return name
    kind = rng.choice(KINDS)
    body: dict[str, Any] = {"type": "string" if kind in ("date", "enum") else kind}
    if kind == "date":
        body["format"] = "date"
    if kind == "enum":
        body["enum"] = ["red", "green", "12"]
    if rng.random() < 0.5:
        body["anonymous"] = True
    fields[name] = body
    return name


def add_required(document: Document, rng: random.Random) -> None:
    """A new required field, mostly with a default."""
    name = add(document, rng)
    if name not in document["required"]:
        document["required"].append(name)
    if rng.random() < 0.9:
        rule(document, name)["default"] = value_of(document["properties"][name], rng)


def drop(document: Document, rng: random.Random) -> None:
    """A field goes."""
    name = rng.choice(sorted(document["properties"]))
    if len(document["properties"]) > 1 and name not in document.get("upcast", {}):
        del document["properties"][name]
        document["required"] = [one for one in document["required"] if one != name]


def rename(document: Document, rng: random.Random) -> None:
    """A field takes another name."""
    old, new = rng.choice(sorted(document["properties"])), f"f{rng.randrange(30)}"
    if new in document["properties"] or old in document.get("upcast", {}):
        return
    document["properties"][new] = document["properties"].pop(old)
    document["required"] = [new if one == old else one for one in document["required"]]
    rule(document, new)["from"] = old


def rescale(document: Document, rng: random.Random) -> None:
    """A number changes its unit, and perhaps becomes whole."""
    for name, body in sorted(document["properties"].items()):
        if (
            body["type"] in ("integer", "number")
            and "upcast_done" not in body
            and name not in document.get("upcast", {})
        ):
            rule(document, name)["scale"] = rng.choice((100, 60, 0.01, 2.5))
            if body["type"] == "number" and rng.random() < 0.5:
                body["type"] = "integer"
                rule(document, name)["cast"] = True
            elif body["type"] == "integer" and rng.random() < 0.5:
                rule(document, name)["cast"] = True
            return


def retype(document: Document, rng: random.Random) -> None:
    """A field changes its type, with or without being told how."""
    name = rng.choice(sorted(document["properties"]))
    body = document["properties"][name]
    if name in document.get("upcast", {}):
        return
    body.pop("enum", None)
    body.pop("format", None)
    body["type"] = rng.choice(("string", "integer", "number", "boolean"))
    if rng.random() < 0.2:
        body |= {"type": "string", "format": "date"}
    if rng.random() < 0.8:
        rule(document, name)["cast"] = True


def remap(document: Document, rng: random.Random) -> None:
    """Texts get other values."""
    for name, body in sorted(document["properties"].items()):
        if body["type"] == "string" and "format" not in body and name not in document.get("upcast", {}):
            into = rng.choice(("string", "integer"))
            if into == "integer":
                body.pop("enum", None)
                body["type"] = "integer"
                rule(document, name)["map"] = {"red": 1, "green": 2, "12": 12}
            else:
                body |= {"enum": ["blue", "green", "12"]} if "enum" in body else {}
                rule(document, name)["map"] = {"red": "blue"}
            return


def demand(document: Document, rng: random.Random) -> None:
    """An optional field becomes required, with a default."""
    name = rng.choice(sorted(document["properties"]))
    if name not in document["required"]:
        document["required"].append(name)
        rule(document, name)["default"] = value_of(document["properties"][name], rng)


def relax(document: Document, rng: random.Random) -> None:
    """A required field becomes optional."""
    document["required"] = document["required"][1:]


def anew(document: Document, rng: random.Random) -> None:
    """A name gets another meaning."""
    name = rng.choice(sorted(document["properties"]))
    if name not in document.get("upcast", {}):
        document["properties"][name] |= {"type": "integer"}
        document["properties"][name].pop("enum", None)
        document["properties"][name].pop("format", None)
        rule(document, name)["from"] = None


def widen(document: Document, rng: random.Random) -> None:
    """A whole number may have fractions."""
    for name, body in sorted(document["properties"].items()):
        if body["type"] == "integer" and name not in document.get("upcast", {}):
            body["type"] = "number"
            return


def rule(document: Document, name: str) -> dict[str, Any]:
    """The upcast rule of a field, made where there is none."""
    made: dict[str, Any] = document.setdefault("upcast", {}).setdefault(name, {})
    return made


STEPS = [add, add_required, drop, rename, rescale, retype, remap, demand, relax, anew, widen]


def brought_forward(record: Record, path: list[Document]) -> Record:
    """A record of a path's first version as one of its last: every field of it, None where nothing is."""
    state = {name: (kind_of(body), record.get(name)) for name, body in path[0]["properties"].items()}
    for newer in path[1:]:
        fields, rules = newer["properties"], newer.get("upcast", {})
        gone = {r["from"] for r in rules.values() if r.get("from")} - fields.keys()
        after = {name: held for name, held in state.items() if name not in gone}
        for name, body in fields.items():
            told = rules.get(name, {})
            source = told.get("from", name)
            if name not in rules and name in gone:
                source = None
            kind, value = state.get(source, ("none", None))
            value = None if value is None else through(told, value, kind, kind_of(body))
            after[name] = (kind_of(body), told.get("default") if value is None else value)
        state = after
    return {name: state[name][1] for name in path[-1]["properties"]}


def kind_of(body: dict[str, Any]) -> str:
    """JSON Schema's type, or `date`."""
    return "date" if body.get("format") == "date" else str(body["type"])


def through(told: dict[str, Any], value: Any, kind: str, target: str) -> Any:
    """One value through one rule, before its default."""
    if "map" in told:
        return told["map"].get(value, value if target == "string" else None)
    if "scale" in told:
        if kind == target == "integer" and float(told["scale"]).is_integer():
            product = value * int(told["scale"])
            return product if abs(product) < 2**63 else None
        value, kind = float(value) * float(told["scale"]), "number"
    if kind == target:
        return value
    if target == "number":
        return float(value) if kind == "integer" or numeric(value) else None
    if target == "integer":
        if kind == "string":
            whole = int(value) if numeric(value) and "." not in value else 2**63
            return whole if -(2**63) <= whole < 2**63 else None
        return round(value) if kind == "boolean" or -(2**63) <= value < 2**63 else None
    if target == "boolean":
        return {"true": True, "false": False}.get(value)
    if target == "date":
        return value if len(str(value)) == 10 and str(value)[4] == "-" else None
    return str(value).lower() if kind == "boolean" else str(value)


def numeric(text: str) -> bool:
    """Of the texts that come up here: what a person would call a number."""
    return text.lstrip("-").replace(".", "").isdigit() and text.count("-") < 2 and not text.endswith("-")
