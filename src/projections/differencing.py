"""The differencing guard: two publications must not reveal one person by subtraction. Pure.

Before an erasure a row says 5,210, after it 4,870: the erased person's 340, to the cent. A floor of people
per row (`min_subjects`) does not help, since both rows are far above it. The guard holds between any two
publications of a view with a floor of k people: a row that both of them show differs by nobody or by at
least k people who were taken out or brought back. A row that would break the rule is withheld until enough
people changed in it. What was shown before stays comparable, because the count goes on over the
publications that withheld the row.

Attacker: reads every publication of the view and every recomputation, and knows nothing else (deletion
inference: Gao et al., "Deletion inference, reconstruction, and compliance in machine (un)learning",
PETS 2022). What the guard does not cover is in docs/threat-model.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Final

import polars as pl
from attrs import field, frozen

_NOW: Final = "__now"


@frozen
class Withheld:
    """A row that a publication does not show.

    Attributes:
        people: in the row, counted at this publication's input.
        changed: people taken out (positive) or brought back (negative) since the row was last shown.
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
class Shown:
    """An earlier publication, as the guard compares it.

    Attributes:
        rows: what its readers saw: keys, measures, and the measure that counts people.
        withheld: what it did not show.
    """

    rows: pl.DataFrame = field(repr=False)
    withheld: Mapping[bytes, Withheld]


def guard(
    rows: pl.DataFrame,
    people: pl.DataFrame,
    *,
    earlier: Shown,
    again: pl.DataFrame,
    people_again: pl.DataFrame,
    keys: Sequence[str],
    subjects: str,
    k: int,
    same_code: bool,
    may_return: bool = True,
    is_settled: bool = False,
) -> Guarded:
    """Withholds rows that, compared with an earlier publication, fewer than k people tell apart.

    Args:
        rows: the new result, keys and measures.
        people: keys and `subjects` of every row of the new result, those under the floor included.
        earlier: the publication before this one.
        again: the earlier publication's input computed with today's keys; `people_again` as `people`.
        subjects: the measure that counts people.
        same_code: `again` was computed by the code of `earlier`, so that equal people mean equal values.
        may_return: whether a hold may have ended since, so that people came back.
        is_settled: nobody was erased, held or brought back since: what differs, differs for no person.

    Returns:
        The rows without the withheld ones, in the same order.
    """
    counts_again = _counts(people_again, keys, subjects)
    counts_now = _counts(people, keys, subjects)
    shown = _counts(earlier.rows, keys, subjects)
    different = _different(earlier.rows, again, keys) if same_code else frozenset()
    withheld: dict[bytes, Withheld] = {}
    unexplained = 0
    for digest in shown.keys() | earlier.withheld.keys():
        before = earlier.withheld.get(digest)
        was, changed = (shown[digest], 0) if before is None else (before.people, before.changed)
        changed += was - counts_again.get(digest, 0)
        if not changed and before is None and digest in different and not is_settled:
            changed = 1  # as many people came back as were taken out
            unexplained += not may_return
        if changed and abs(changed) < k:
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
