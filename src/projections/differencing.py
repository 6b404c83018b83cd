"""The differencing guard: two publications must not reveal one person by subtraction. Pure.

Before an erasure a row says 5,210, after it 4,870: the erased person's 340, to the cent. A floor of people
per row (`min_subjects`) does not help, since both rows are far above it. The guard holds between any two
publications of a view with a floor of k people: a row that both of them show differs by nobody or by at
least k people who were taken out or brought back. A row that would break the rule is withheld until enough
people changed in it. A row is compared with every earlier publication that shows it, not with the one before
alone: who came and went between two that show it is in neither.

Attacker: reads every publication of the view and every recomputation, and knows nothing else (deletion
inference: Gao et al., "Deletion inference, reconstruction, and compliance in machine (un)learning",
PETS 2022). What the guard does not cover is in docs/threat-model.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import polars as pl
from attrs import field, frozen

_NOW: Final = "__now"
MOST_COMPARED: Final = 32
"""Each costs a computation of the view from its input; what is not told by then is withheld."""
Row = tuple[Any, ...]


@frozen
class Withheld:
    """A row that a publication does not show.

    Attributes:
        people: in the row, counted at this publication's input.
        changed: people taken out (positive) or brought back (negative) since a publication that shows it.
    """

    people: int
    changed: int


@frozen
class Guarded:
    """What may be shown, and what the next publication has to know of the rest.

    Attributes:
        rows: without the withheld ones.
        withheld: by digest of the row's keys.
        unexplained: withheld rows with other values and as many people as before, where nobody can have come
            back: no erasure explains them.
    """

    rows: pl.DataFrame = field(repr=False)
    withheld: Mapping[bytes, Withheld]
    unexplained: int = 0


@frozen
class Again:
    """An earlier publication's input, computed with today's keys.

    Attributes:
        people: keys and people of all its rows.
        rows: the result by the code of then, so that equal people mean equal values; None by other code.
    """

    people: pl.DataFrame = field(repr=False)
    rows: pl.DataFrame | None = field(repr=False)


@frozen
class Shown:
    """An earlier publication, as the guard compares it.

    Attributes:
        rows: what its readers saw: keys, measures, and the measure that counts people.
        withheld: what it did not show.
        again: computes its input again; None where the input is not kept any more.
        is_settled: nobody was erased, held or brought back since: what differs, differs for no person.
    """

    rows: pl.DataFrame = field(repr=False)
    withheld: Mapping[bytes, Withheld]
    again: Callable[[], Again | None] = field(repr=False)
    is_settled: bool = False


def guard(
    rows: pl.DataFrame,
    people: pl.DataFrame,
    *,
    earlier: Iterable[Shown],
    keys: Sequence[str],
    subjects: str,
    k: int,
    may_return: bool = True,
    most: int = MOST_COMPARED,
) -> Guarded:
    """Withholds rows that, compared with any earlier publication, fewer than k people tell apart.

    A row in which nobody changed since an earlier publication is not looked for in those before: it was
    compared with them then.

    Args:
        rows: the new result, keys and measures.
        people: keys and `subjects` of every row of the new result, those under the floor included.
        earlier: the publications before this one that can be read, newest first.
        subjects: the measure that counts people.
        may_return: whether a hold may have ended since, so that people came back.
        most: so many are computed again; rows that are not told by then, or whose input is gone, are
            withheld.

    Returns:
        The rows without the withheld ones, in the same order.
    """
    counts_now = _counts(people, keys, subjects)
    withheld: dict[bytes, Withheld] = {}
    settled: set[bytes] = set()
    seen: dict[bytes, Row] = {}
    newest: Shown | None = None
    computed, unexplained = 0, 0
    for one in earlier:
        newest = newest or one
        shown = {
            digest: (row, was)
            for digest, (row, was) in _shown(one.rows, keys, subjects).items()
            if digest not in settled and digest not in withheld and seen.get(digest) != row
        }
        if one.is_settled:
            settled.update(shown)
            continue
        again = one.again() if shown and computed < most else None
        if again is None:
            withheld |= {digest: Withheld(counts_now.get(digest, 0), 1) for digest in shown}
        else:
            computed += 1
            counts_again = _counts(again.people, keys, subjects)
            different = frozenset() if again.rows is None else _different(one.rows, again.rows, keys)
            for digest, (row, was) in shown.items():
                changed = was - counts_again.get(digest, 0)
                seen[digest] = row
                if not changed and digest in different:
                    changed = 1  # as many people came back as were taken out
                    unexplained += not may_return
                if not changed:
                    settled.add(digest)
                elif abs(changed) < k:
                    withheld[digest] = Withheld(counts_now.get(digest, 0), changed)
    # What showed these rows is dropped and cannot be compared: who changed since is added up.
    carried = {} if newest is None else dict(newest.withheld)
    for digest in settled | withheld.keys() | seen.keys():
        carried.pop(digest, None)
    if newest is not None and carried:
        last = newest.again()
        counts_again = {} if last is None else _counts(last.people, keys, subjects)
        for digest, before in carried.items():
            changed = before.changed + before.people - counts_again.get(digest, 0)
            if last is None or (changed and abs(changed) < k):
                withheld[digest] = Withheld(counts_now.get(digest, 0), changed)
    if not withheld:
        return Guarded(rows, {})
    kept = [digest not in withheld for digest in key_digests(rows, keys)]
    return Guarded(rows.filter(pl.Series(kept, dtype=pl.Boolean)), withheld, unexplained)


def key_digests(rows: pl.DataFrame, keys: Sequence[str]) -> list[bytes]:
    """A digest of each row's keys: SHA-256 of their JSON text."""
    return [
        hashlib.sha256(json.dumps([str(value) for value in row]).encode()).digest()
        for row in rows.select(keys).iter_rows()
    ]


def _shown(rows: pl.DataFrame, keys: Sequence[str], subjects: str) -> dict[bytes, tuple[Row, int]]:
    """Digest of the keys → the whole row, and its people."""
    people = rows[subjects].cast(pl.Int64).to_list()
    return dict(zip(key_digests(rows, keys), zip(rows.iter_rows(), people, strict=True), strict=True))


def _counts(rows: pl.DataFrame, keys: Sequence[str], subjects: str) -> dict[bytes, int]:
    return dict(zip(key_digests(rows, keys), rows[subjects].cast(pl.Int64).to_list(), strict=True))


def _different(rows: pl.DataFrame, again: pl.DataFrame, keys: Sequence[str]) -> frozenset[bytes]:
    """Keys whose measures are not the same in both; those of one side alone are left to the counts."""
    both = rows.join(again, on=list(keys), how="inner", suffix=_NOW, nulls_equal=True)
    measures = [column for column in rows.columns if column not in keys and f"{column}{_NOW}" in both.columns]
    if not measures:
        return frozenset()
    differs = both.filter(pl.any_horizontal(pl.col(m).ne_missing(pl.col(f"{m}{_NOW}")) for m in measures))
    return frozenset(key_digests(differs, keys))
