"""Which fields of an event type are kept in clear, why, and what speaks against it. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from attrs import frozen

from lake.eventtypes import EventType, Field

_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_NAMING: Final = frozenset(
    [
        "address",
        "addr",
        "birth",
        "birthday",
        "birthdate",
        "born",
        "card",
        "city",
        "contact",
        "customer",
        "cvv",
        "device",
        "dob",
        "driver",
        "email",
        "employee",
        "fingerprint",
        "firstname",
        "fullname",
        "geo",
        "gps",
        "iban",
        "imei",
        "imsi",
        "ip",
        "ipv4",
        "ipv6",
        "lastname",
        "lat",
        "latitude",
        "license",
        "login",
        "lon",
        "longitude",
        "mac",
        "mail",
        "mobile",
        "msisdn",
        "name",
        "nationality",
        "nickname",
        "passport",
        "patient",
        "person",
        "phone",
        "plate",
        "postcode",
        "rider",
        "sex",
        "gender",
        "ssn",
        "street",
        "subject",
        "surname",
        "tax",
        "tel",
        "telephone",
        "token",
        "url",
        "user",
        "username",
        "visitor",
        "zip",
        "zipcode",
    ]
)


@frozen
class ClearField:
    """A field that is kept in clear, and after an erasure.

    Attributes:
        versions: those that keep it; what an older one stored stays in clear.
        reason: why, from the newest of them; None where no schema says it.
        doubts: what speaks against it; empty where nothing does.
    """

    event_type: str
    name: str
    versions: tuple[int, ...]
    reason: str | None
    doubts: tuple[str, ...]


def clear_fields(chain: Sequence[EventType]) -> list[ClearField]:
    """Every field in clear of a type's versions (ascending), in order of appearance."""
    kept: dict[str, list[tuple[int, Field]]] = {}
    for event_type in chain:
        for one in event_type.fields:
            if one.anonymous:
                kept.setdefault(one.name, []).append((event_type.version, one))
    return [
        ClearField(
            chain[-1].name,
            name,
            tuple(version for version, _ in found),
            found[-1][1].reason,
            _doubts(found[-1][1]),
        )
        for name, found in kept.items()
    ]


def _doubts(one: Field) -> tuple[str, ...]:
    """`because` is an answer to what the name suggests; a description is only a reason."""
    doubts = []
    if one.reason is None:
        doubts.append("no reason given: add `because`")
    words = {word.lower() for word in _WORDS.findall(one.name)}
    telling = sorted(words & _NAMING)
    if telling and not one.declared:
        doubts.append(f"`{telling[0]}` sounds like a person: make it personal, or say `because`")
    is_free = one.kind in ("object", "array") or (
        one.kind == "string" and not {"enum", "pattern", "maxLength"} & one.rules.keys()
    )
    if is_free and not one.declared:
        what = "text" if one.kind == "string" else f"an {one.kind}"
        doubts.append(f"{what} without a limit can hold anything: bound it (enum, pattern, maxLength)")
    return tuple(doubts)
