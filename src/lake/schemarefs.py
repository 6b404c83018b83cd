"""References inside a schema document, followed without leaving it. Pure.

Nothing is ever fetched: a reference to another document is an error, whoever meets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from lake.errors import SchemaError

LOCAL_ONLY: Final[Registry[Any]] = Registry()
"""Retrieves nothing."""
NOTES: Final = frozenset(
    {
        "title",
        "description",
        "$comment",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
    }
)
"""What a schema says to people alone."""
_REFERENCES: Final = ("$ref", "$dynamicRef")
_MOST_STEPS: Final = 32


def target_of(document: dict[str, Any], reference: object) -> Any:
    """The schema that a reference names.

    Raises:
        SchemaError: it leads out of the document, or nowhere.
    """
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise SchemaError(
            "`$ref` leads out of the document: other files and addresses are never read",
            next_step='Copy what it names into the document\'s `$defs` and write `"$ref": "#/$defs/…"`.',
        )
    resource = Resource.from_contents({**document, "$id": ""}, default_specification=DRAFT202012)
    try:
        return LOCAL_ONLY.resolver_with_root(resource).lookup(reference).contents
    except (Unresolvable, LookupError, ValueError, TypeError, AttributeError):
        raise SchemaError(f"`$ref` names `{reference}`, which is not in the document") from None


def subschemas(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every schema of a document that says something of an event, the document first.

    Raises:
        SchemaError: see `target_of`.
    """
    waiting: list[Any] = [document]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [target_of(document, one[name]) for name in _REFERENCES if name in one]
        waiting += DRAFT202012.create_resource(one)._specification.subresources_of(one)


def plain_body(document: dict[str, Any], name: str, body: object) -> tuple[dict[str, Any], bool]:
    """(a property's schema with its references put in, whether it may be null).

    `{"$ref": …}`, `{"type": [T, "null"]}`, `{"anyOf": [S, {"type": "null"}]}` and an `allOf` of one schema
    are what generators write for a plain field.

    Raises:
        SchemaError: see `target_of`; or two places say different things by one keyword.
    """
    may_be_null = False
    for _ in range(_MOST_STEPS):
        if not isinstance(body, dict):
            raise SchemaError(f"property `{name}`: its schema must be an object")
        kinds = body.get("type")
        if isinstance(kinds, list):
            rest = [kind for kind in kinds if kind != "null"]
            if len(rest) != 1:
                return body, may_be_null
            may_be_null = may_be_null or len(rest) < len(kinds)
            body = {**body, "type": rest[0]}
            continue
        key, inner, is_nullable = _wrapped(document, body)
        if key is None:
            return body, may_be_null
        may_be_null = may_be_null or is_nullable
        body = _merged(name, {k: v for k, v in body.items() if k != key}, inner)
    raise SchemaError(f"property `{name}`: its references lead in a circle")


def _wrapped(document: dict[str, Any], body: dict[str, Any]) -> tuple[str | None, Any, bool]:
    """(the keyword that holds the property's schema, that schema, whether it allows null besides)."""
    if "$ref" in body:
        return "$ref", target_of(document, body["$ref"]), False
    if "type" in body:
        return None, None, False
    for key in ("anyOf", "oneOf"):
        parts = body.get(key, ())
        rest = [part for part in parts if part != {"type": "null"}]
        if len(parts) == 2 and len(rest) == 1:
            return key, rest[0], True
    if len(body.get("allOf", ())) == 1:
        return "allOf", body["allOf"][0], False
    return None, None, False


def _merged(name: str, own: dict[str, Any], inner: object) -> dict[str, Any]:
    if not isinstance(inner, dict):
        raise SchemaError(f"property `{name}`: its schema must be an object")
    for key in own.keys() & inner.keys() - NOTES:
        if own[key] != inner[key]:
            raise SchemaError(f"property `{name}` says `{key}` twice, and not the same")
    return {**inner, **own}
