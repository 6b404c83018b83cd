"""As reported against as recomputed, and which of the differences erasures account for."""

from __future__ import annotations

import polars as pl
from attrs import field, frozen

from lake import PERSONAL_HEAD, Lake
from lake.inputs import keeper_of
from projections.definition import BUILT_IN, EVENT_TYPE, SUBJECT, View, event_reads
from projections.differencing import Guarded, key_digests
from projections.explained import Gone, unexplained
from projections.guarding import is_guarded
from projections.ledger import Ledger, Publication

_THERE = "__reported"


@frozen
class Reconciled:
    """`as_reported` against `as_recomputed`, by key.

    Attributes:
        differences: the keys that differ, both values of every measure (`…_reported`, `…_recomputed`), and
            `explained`: whether people erased since can account for that key's difference.
        erased_events: events counted then whose person was erased since; None where that number could be
            one person's.
        residual: differing keys that erasures cannot explain, withheld ones included; 0 means explained.
        withheld: keys left out, because fewer people than the view's floor explain them.
    """

    differences: pl.DataFrame = field(repr=False)
    erased_events: int | None
    residual: int
    publication: Publication
    withheld: int = 0


class Reconciler:
    """Explains differences by what is left of the events of erased people."""

    def __init__(self, lake: Lake, ledger: Ledger) -> None:
        self._lake = lake
        self._ledger = ledger

    def reconciled(
        self, view: View, publication: Publication, reported: pl.DataFrame, guarded: Guarded
    ) -> Reconciled:
        """The differences, each with whether it is explained.

        Args:
            reported: what readers saw.
            guarded: the recomputation, without the rows that would tell few people apart.
        """
        keys = list(view.keys)
        recomputed = guarded.rows.select(reported.columns)
        if guarded.withheld:
            hidden = [digest in guarded.withheld for digest in key_digests(reported, keys)]
            reported = reported.filter(~pl.Series(hidden, dtype=pl.Boolean))
        measures = [column for column in reported.columns if column not in keys]
        both = reported.with_columns(pl.lit(True).alias(_THERE)).join(
            recomputed, on=keys, how="full", suffix="_recomputed", coalesce=True, nulls_equal=True
        )
        differs = pl.any_horizontal(pl.col(m).ne_missing(pl.col(f"{m}_recomputed")) for m in measures)
        found = both.filter(differs).rename({m: f"{m}_reported" for m in measures}).sort(keys)
        gone = self._gone(view, publication)
        wrong = unexplained(view, found.drop(_THERE), gone) | self._appeared(view, publication, found, gone)
        told = None if guarded.withheld else self._erased_events(view, publication, gone)
        return Reconciled(
            found.drop(_THERE).with_columns((~wrong).alias("explained")),
            told,
            int(wrong.sum()) + guarded.unexplained,
            publication,
            len(guarded.withheld),
        )

    def _appeared(self, view: View, publication: Publication, found: pl.DataFrame, gone: Gone) -> pl.Series:
        """Rows that nobody saw then and that were not withheld: an erasure makes none."""
        withheld = self._ledger.withheld(publication.build_id)
        known = [digest in withheld for digest in key_digests(found, list(view.keys))]
        new = found[_THERE].is_null() & ~pl.Series(known, dtype=pl.Boolean)
        return new & (not gone.holds_changed)

    def _erased_events(self, view: View, publication: Publication, gone: Gone) -> int | None:
        if not publication.personal or self._lake.keyring.epoch() <= publication.epoch:
            return 0
        if is_guarded(view, publication.personal) or publication.events_shredded is None:
            return None  # it may be one person's, of a row that nobody sees
        return gone.events.height - (0 if gone.is_exact else publication.events_shredded)

    def _gone(self, view: View, publication: Publication) -> Gone:
        """Events counted then that cannot be opened now; more of them where they cannot be told apart."""
        if not publication.personal or not self._may_have_changed(publication):
            return Gone(pl.DataFrame({SUBJECT: []}), frozenset(), 0, True, False)
        replay, keyring = self._lake.replay(), self._lake.keyring
        made_of = (publication.input_snapshot, publication.input_sequence)
        files = replay.files(*keeper_of(self._lake.events, *made_of))
        parts = []
        for read in event_reads(view, self._lake.types):
            frame = replay.events(files, read).frame.filter(pl.col("shredded"))
            names = [*BUILT_IN, *(name for name in read.fields if name not in BUILT_IN)]
            parts.append(frame.select(names).with_columns(pl.lit(read.event_type).alias(EVENT_TYPE)))
        unreadable = pl.concat(parts, how="diagonal")
        refs = unreadable[SUBJECT].unique().to_list()
        since = [ref for ref in refs if keyring.fenced_since(publication.epoch, [ref])]
        mine = unreadable.filter(pl.col(SUBJECT).is_in(since))
        # Severed blocks lie under handles of their own: what was fenced when is not known of them.
        is_exact = mine.height == unreadable.height - (publication.events_shredded or 0)
        events = mine if is_exact else unreadable
        return Gone(
            events, self._clear(view), events[SUBJECT].n_unique(), is_exact, self._holds_changed(publication)
        )

    def _may_have_changed(self, publication: Publication) -> bool:
        return self._lake.keyring.epoch() > publication.epoch or self._holds_changed(publication)

    def _holds_changed(self, publication: Publication) -> bool:
        _, _, holds = publication.people_mark.partition("/")
        return bool(holds) and int(holds) != self._lake.keyring.hold_changes()

    def _clear(self, view: View) -> frozenset[str]:
        """Columns that were never sealed, in any of the types that the view reads."""
        sealed = {SUBJECT, *PERSONAL_HEAD}
        named = {"ingest_day", "occurred_on", EVENT_TYPE}
        for target, fields in view.reads.items():
            known = {one.name: one for one in self._lake.types.get(target.partition("/")[0]).fields}
            sealed |= {name for name in fields if name in known and not known[name].anonymous}
            named |= set(fields)
        return frozenset(named - sealed)
