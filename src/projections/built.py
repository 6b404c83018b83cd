"""What a build plans and what comes out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import date, timedelta

from attrs import field, frozen

from lake import Lake
from projections.definition import View
from projections.ledger import Publication


@frozen
class Built:
    """A built version, not yet seen by readers.

    Attributes:
        publication: the record it will be released with.
        derived, merged, reused: buckets by what was done to them.
        source: of the view, to be kept with the publication.
    """

    publication: Publication
    derived: int
    merged: int
    reused: int
    source: bytes = field(default=b"", repr=False)


@frozen
class Order:
    """Who asks for a build and why, and whether a result that changed over the same input is accepted."""

    who: str
    why: str
    accepts: bool = False


@frozen
class ViewPlan:
    """What is to be done for a view: buckets to derive anew, and those that stand at earlier snapshots."""

    view: View
    version: str
    personal: bool
    derive: frozenset[int]
    behind: Mapping[int, frozenset[int]]  # snapshot → buckets that stand there


def build_id_of(plan: ViewPlan, snapshot_id: int, people: str, bits: int) -> str:
    """The same for the same view, input and people: a build that was killed finds its snapshot."""
    text = f"{plan.view.name}|{plan.version}|{snapshot_id}|{people}|{bits}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def watermark_of(last_day: object, lateness: timedelta) -> str | None:
    """The newest event day less the lateness."""
    return (last_day - lateness).isoformat() if isinstance(last_day, date) else None


def schema_ids_of(lake: Lake, view: View) -> list[str]:
    """The newest version of each type that is read."""
    names = sorted({target.partition("/")[0] for target in view.reads})
    return [f"{name}/v{lake.types.versions(name)[-1]}" for name in names]
