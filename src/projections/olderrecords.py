"""Kept publications that today's rules do not reach, since they were made before them.

Aggregates of before columns in clear were judged: nobody knows which of their columns can show a personal
value. Rows of single people of before purposes were recorded: they may be sealed under `service` alone, so
that they do not die with another purpose. The way out of both is to publish anew and to drop these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from attrs import frozen

from keys import DEFAULT_PURPOSE
from lake import TypeRegistry
from projections.ledger import Ledger, Publication

_WAY_OUT: Final = "publish it anew, then `shredlake views drop-publications {view} --all-but-current`"


@frozen
class OlderRecord:
    """Publications of a view that are not covered.

    Attributes:
        publications: how many.
        kind: `not_judged` columns in clear; `service_alone`: rows that outlive the `purposes`.
    """

    view: str
    publications: int
    kind: Literal["not_judged", "service_alone"]
    purposes: tuple[str, ...] = ()

    def words(self) -> str:
        """In a sentence."""
        count = f"{self.publications:,} earlier publication(s) of {self.view}"
        if self.kind == "not_judged":
            return f"{count}, which nobody judged by what their columns can show in clear"
        return f"{count}, whose rows of people may be sealed under `service` alone and outlive other purposes"

    def next_step(self) -> str:
        """The way out."""
        return _WAY_OUT.format(view=self.view)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "view": self.view,
            "publications": self.publications,
            "kind": self.kind,
            "purposes": list(self.purposes),
            "text": self.words(),
        }


def older_records(ledger: Ledger, types: TypeRegistry) -> list[OlderRecord]:
    """What is not covered, by view."""
    gone = {i for i, one in ledger.dropped().items() if one.is_gone}
    kept = [one for one in ledger.publications() if one.publication_id not in gone]
    found: list[OlderRecord] = []
    for view in sorted({one.view for one in kept}):
        mine = [one for one in kept if one.view == view]
        unjudged = [one for one in mine if one.grain == "aggregate" and one.personal and one.exposes is None]
        if unjudged:
            found.append(OlderRecord(view, len(unjudged), "not_judged"))
        alone = [one for one in mine if one.grain != "aggregate" and one.purposes is None]
        purposes = _other_purposes(alone, types)
        if purposes:
            found.append(OlderRecord(view, len(alone), "service_alone", purposes))
    return found


def _other_purposes(publications: Sequence[Publication], types: TypeRegistry) -> tuple[str, ...]:
    """Beside `service`, of the event types that these were made of; each may have been read."""
    known = set(types.names())
    names = {schema.rpartition("/v")[0] for one in publications for schema in one.schemas} & known
    purposes = {facet.purpose for name in names for facet in types.get(name).facets}
    return tuple(sorted(purposes - {DEFAULT_PURPOSE}))
