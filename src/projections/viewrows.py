"""Rows of one person: sealed so that they die with any purpose they were derived from.

A row is sealed under the person's key for each purpose that the view reads, one seal inside the other, in
the order of the purposes' names; a purpose that the person has no key for has given nothing to the row. So
whichever of these keys is destroyed, the row is unreadable in every publication that ever held it.

    row      envelope                                  sealed under `service` alone
           | "SVR1" | length (1) | purposes | envelope   sealed under these, separated by spaces
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from keys import DEFAULT_PURPOSE, FieldContext, Held, Keyring, Shredded
from lake import TypeRegistry
from projections.definition import View, event_reads
from projections.errors import DefinitionError

_LAYERED: Final = b"SVR1"
_ALONE: Final = (DEFAULT_PURPOSE,)
ContextOf = Callable[[str], FieldContext]
"""The context of a purpose."""
Row = bytes | Shredded | Held


def row_purposes(view: View, types: TypeRegistry) -> tuple[str, ...]:
    """The purposes whose sealed fields a view reads, by name; `service` where it reads none."""
    reads = event_reads(view, types)
    found = {read.facet.purpose for read in reads if read.is_personal(types.get(read.event_type))}
    return tuple(sorted(found)) or _ALONE


def seal_rows(
    keyring: Keyring,
    context_of: ContextOf,
    refs: Sequence[bytes],
    row_ids: Sequence[bytes],
    bodies: Sequence[bytes],
    purposes: Sequence[str],
) -> list[bytes | None]:
    """Each body under all of its person's keys for these purposes; None where one of them was erased.

    Args:
        purposes: what the view reads, by name.
    """
    layers = _layers(keyring, refs, purposes)
    rows: list[bytes | None] = list(bodies)
    session = keyring.session()
    for purpose in sorted({one for names in layers for one in names}):
        chosen = [at for at, names in enumerate(layers) if purpose in names and rows[at] is not None]
        sealed = session.seal(
            context_of(purpose),
            [refs[at] for at in chosen],
            [row_ids[at] for at in chosen],
            [row for at in chosen if (row := rows[at]) is not None],
        )
        for at, one in zip(chosen, sealed, strict=True):
            rows[at] = one if isinstance(one, bytes) else None
    return [
        row if row is None or names == _ALONE else _head(names) + row
        for row, names in zip(rows, layers, strict=True)
    ]


def open_rows(
    keyring: Keyring,
    context_of: ContextOf,
    refs: Sequence[bytes],
    row_ids: Sequence[bytes],
    sealed: Sequence[bytes],
) -> list[Row]:
    """The body of each row; `Shredded` where one of its purposes was erased, `Held` under a legal hold.

    Raises:
        EnvelopeError, KeysError: see `keys.Opener.open`.
    """
    parsed = [parse_row(one) for one in sealed]
    rows: list[Row] = [row for _, row in parsed]
    opener = keyring.opener()
    for purpose in sorted({one for names, _ in parsed for one in names}, reverse=True):
        chosen = [
            (at, row)
            for at, (names, _) in enumerate(parsed)
            if purpose in names and isinstance(row := rows[at], bytes)
        ]
        opened = opener.open(
            context_of(purpose),
            [refs[at] for at, _ in chosen],
            [row_ids[at] for at, _ in chosen],
            [row for _, row in chosen],
        )
        for (at, _), one in zip(chosen, opened, strict=True):
            rows[at] = one
    return rows


def _layers(keyring: Keyring, refs: Sequence[bytes], purposes: Sequence[str]) -> list[tuple[str, ...]]:
    """By row, the purposes it is sealed under."""
    if tuple(purposes) == _ALONE:
        return [_ALONE] * len(refs)
    keys = {purpose: keyring.resident.active(refs, purpose) for purpose in sorted(purposes)}
    return [
        tuple(purpose for purpose, found in keys.items() if found[at] is not None) or _ALONE
        for at in range(len(refs))
    ]


def _head(purposes: Sequence[str]) -> bytes:
    names = " ".join(purposes).encode()
    if len(names) > 255:
        raise DefinitionError(
            "a view with a row per person reads too many purposes: their names exceed 255 bytes"
        )
    return _LAYERED + bytes([len(names)]) + names


def parse_row(sealed: bytes) -> tuple[tuple[str, ...], bytes]:
    """(purposes, outermost envelope) of a sealed row."""
    if not sealed.startswith(_LAYERED):
        return _ALONE, sealed
    begin = len(_LAYERED) + 1
    end = begin + sealed[len(_LAYERED)]
    return tuple(sealed[begin:end].decode(errors="replace").split(" ")), sealed[end:]
