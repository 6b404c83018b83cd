"""Upcast rules: how a field comes out of the version before, as data in the newer schema document. Pure.

On the top level of a schema document, per field of this version:

=========  ===================================================================================
from       the field of the version before (default: the same name); null: nothing, it starts anew
map        old text → new value; text that is not listed stays, or is absent where the type changes
scale      a positive factor, for a change of unit; whole × whole is exact, else IEEE doubles
cast       true: convert to this field's type (numbers are rounded half to even)
default    the value where nothing came out of the above
=========  ===================================================================================

They apply in this order. `convert` defines them for one value; `lake.upcast` does the same to columns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date
from typing import Any, Final

from attrs import field, frozen

from lake.errors import SchemaError

INT64_MAX: Final = 2**63 - 1
WHOLE_TEXT: Final = r"^-?[0-9]{1,19}$"
NUMBER_TEXT: Final = r"^-?[0-9]{1,300}(\.[0-9]{1,300})?([eE][+-]?[0-9]{1,2})?$"
DAY_TEXT: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
CASTS: Final = frozenset(
    {
        ("integer", "number"),
        ("number", "integer"),
        ("integer", "string"),
        ("boolean", "string"),
        ("date", "string"),
        ("boolean", "integer"),
        ("string", "integer"),
        ("string", "number"),
        ("string", "boolean"),
        ("string", "date"),
    }
)
_KEYS: Final = frozenset({"from", "map", "scale", "cast", "default"})
_NUMBERS: Final = frozenset({"integer", "number"})


@frozen
class Rule:
    """How one field of a version is derived from the version before.

    Attributes:
        target: the field of this version.
        source: the field it comes from; None where it starts anew.
        scale: positive; an int where it is a whole number.
        default: None where there is none.
    """

    target: str
    source: str | None
    mapping: Mapping[str, Any] | None = None
    scale: int | float | None = None
    cast: bool = False
    default: Any = field(default=None, repr=False)

    @property
    def changes_meaning(self) -> bool:
        """Whether the same name says something else than before."""
        return self.source != self.target or self.mapping is not None or self.scale is not None

    @property
    def keeps_value(self) -> bool:
        """Whether it only renames."""
        return self.mapping is None and self.scale is None and not self.cast and self.default is None


def parse_upcast(body: object, names: frozenset[str]) -> tuple[Rule, ...]:
    """The rules of a schema document's `upcast`.

    Args:
        names: the document's properties.

    Raises:
        SchemaError: says which field and what is wrong with its rule.
    """
    if body is None:
        return ()
    if not isinstance(body, dict):
        raise SchemaError("`upcast` must be an object: field → rule")
    return tuple(_rule(target, rule, names) for target, rule in body.items())


def _rule(target: str, body: object, names: frozenset[str]) -> Rule:
    def bad(why: str, next_step: str | None = None) -> SchemaError:
        return SchemaError(f"`upcast` of `{target}`: {why}", next_step=next_step)

    if target not in names:
        raise bad("the schema has no such property")
    if not isinstance(body, dict) or not body:
        raise bad('a rule is an object, such as {"from": "old_name"}')
    unknown = body.keys() - _KEYS
    if unknown:
        raise bad(f"unknown key {sorted(unknown)[0]}", f"Use one of {', '.join(sorted(_KEYS))}.")
    source = body.get("from", target)
    if source is not None and not isinstance(source, str):
        raise bad("`from` must be the name of a field, or null")
    mapping, scale, cast = body.get("map"), body.get("scale"), body.get("cast", False)
    if mapping is not None and (not isinstance(mapping, dict) or not mapping or None in mapping.values()):
        raise bad("`map` must be an object: old text → new value")
    if scale is not None and not _is_factor(scale):
        raise bad("`scale` must be a positive number")
    if not isinstance(cast, bool):
        raise bad("`cast` must be true")
    if mapping is not None and (scale is not None or cast):
        raise bad("`map` goes with neither `scale` nor `cast`", "Map to values of the new type.")
    if source is None and (mapping is not None or scale is not None or cast):
        raise bad("with `from: null` there is nothing to map, scale or cast")
    if "default" in body and body["default"] is None:
        raise bad("`default` must be a value", "Leave `default` out: absent is null.")
    if isinstance(scale, float) and scale.is_integer():
        scale = int(scale)
    return Rule(target, source, mapping, scale, cast, body.get("default"))


def _is_factor(scale: object) -> bool:
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        return False
    return math.isfinite(scale) and 0 < scale <= INT64_MAX


def outcome(rule: Rule, kind: str, target: str) -> str | None:
    """Why a rule cannot make a `target` out of a `kind`; None where it can.

    Kinds are JSON Schema's types, and `date` for a string of format date.
    """
    if rule.mapping is not None:
        return None if kind == "string" else f"`map` needs text, not {kind}"
    if rule.scale is not None:
        if kind not in _NUMBERS or target not in _NUMBERS:
            return f"`scale` makes no {target} of {kind}"
        rounds = target == "integer" and (kind == "number" or isinstance(rule.scale, float))
        return "`scale` would give fractions; add `cast: true` to round" if rounds and not rule.cast else None
    if kind == target or (kind, target) == ("integer", "number"):
        return None
    if not rule.cast:
        return f"changes its type from {kind} to {target}"
    return None if (kind, target) in CASTS else f"`cast` makes no {target} of {kind}"


def convert(rule: Rule, value: Any, kind: str, target: str) -> Any:
    """One value of a `kind` as a `target`, before `default`; None where nothing comes out."""
    if rule.mapping is not None:
        return rule.mapping.get(value, value if target == "string" else None)
    if rule.scale is not None:
        if kind == target == "integer" and isinstance(rule.scale, int):
            product = value * rule.scale
            return product if abs(product) <= INT64_MAX else None
        value, kind = float(value) * float(rule.scale), "number"
    if kind == target:
        return value
    return _cast(value, kind, target)


def _cast(value: Any, kind: str, target: str) -> Any:
    if target == "number" and kind == "integer":
        return float(value)
    if kind == "number":
        return round(value) if math.isfinite(value) and -(2.0**63) <= value < 2.0**63 else None
    if kind == "string":
        return _read_text(value, target)
    if target == "integer":
        return int(value)
    return str(value).lower() if kind == "boolean" else str(value)


def _read_text(text: str, target: str) -> Any:
    if target == "boolean":
        return {"true": True, "false": False}.get(text)
    if target == "integer":
        whole = int(text) if re.fullmatch(WHOLE_TEXT[1:-1], text, re.ASCII) else INT64_MAX + 1
        return whole if -INT64_MAX - 1 <= whole <= INT64_MAX else None
    if target == "number":
        found = float(text) if re.fullmatch(NUMBER_TEXT[1:-1], text, re.ASCII) else math.inf
        return found if math.isfinite(found) else None
    try:
        return date.fromisoformat(text) if re.fullmatch(DAY_TEXT[1:-1], text, re.ASCII) else None
    except ValueError:
        return None
