"""A view is a function of its input: a build that gives another result for the same one is an alarm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import polars as pl

from projections.built import Built, ViewPlan
from projections.definition import View, grain
from projections.errors import ResultChanged
from projections.fingerprint import library_versions
from projections.ledger import Ledger
from projections.sameness import Difference, difference
from projections.tables import ViewTables, column_types

_log = logging.getLogger("shredlake.views")


def each_finished(plans: Sequence[ViewPlan], finish: Callable[[ViewPlan], Built]) -> list[Built]:
    """What `finish` makes of every plan.

    Raises:
        ResultChanged: of all whose result changed, after every plan was looked at.
    """
    built: list[Built] = []
    changed: list[ResultChanged] = []
    for plan in plans:
        try:
            built.append(finish(plan))
        except ResultChanged as error:
            changed.append(error)
    if changed:
        raise ResultChanged.of_all(changed)
    return built


class RebuildCheck:
    """Compares what was derived with what the same build gave before, published or not.

    The rows themselves are compared, and no digest of them is kept: a digest of people's rows would let
    whoever knows the others find out an erased one by trying.
    """

    def __init__(self, ledger: Ledger, tables: ViewTables) -> None:
        self._ledger = ledger
        self._tables = tables

    def checked_id(
        self, plan: ViewPlan, table: str, first_id: str, rows: pl.DataFrame, who: str, *, accept: bool
    ) -> str:
        """The id under which the result is kept.

        Args:
            first_id: names version, input snapshot, fences, holds and what the guard compared with.
            accept: a result that differs is kept beside the one of before.

        Raises:
            ResultChanged: it differs; recorded as an alarm.
        """
        alarms = self._ledger.alarms
        first_id = self._ledger.fresh_id(first_id)
        build_id = self._ledger.fresh_id(alarms.newest_id(first_id))
        if not plan.derive:
            return build_id  # from the very states that the result of before was made of
        before = self._rows_of(plan.view, table, build_id, rows)
        found = None if before is None else difference(before, rows)
        if found is None:
            return build_id
        view = plan.view.name
        kept_id = alarms.raise_alarm(view, plan.version, first_id, found, who, accept=accept)
        _log.error("view %s: another result for the same input, %d row(s) differ", view, found.rows_differing)
        if accept:
            return kept_id
        raise ResultChanged(_sentence(view, found, self._changed_libraries(build_id)), view=view)

    def _rows_of(self, view: View, table: str, build_id: str, rows: pl.DataFrame) -> pl.DataFrame | None:
        """What the build gave before; None where there is none, or not all of it can be opened any more."""
        snapshot_id = self._tables.landed(table, build_id)
        if snapshot_id is None:
            return None
        if not grain(view).subject:
            return self._tables.read_aggregate(table, snapshot_id)
        found = self._tables.read_subjects(table, snapshot_id, column_types(rows))
        return None if found.shredded or found.held else found.frame

    def _changed_libraries(self, build_id: str) -> list[str]:
        publication = self._ledger.by_build(build_id)
        before: Mapping[str, str] = {} if publication is None else publication.libraries
        now = library_versions()
        return [
            f"{name} {was} then, {now.get(name)} now" for name, was in before.items() if was != now.get(name)
        ]


def _sentence(view: str, found: Difference, libraries: list[str]) -> str:
    changed = f" ({', '.join(libraries)})" if libraries else ""
    return (
        f"`{view}` gives another result over the same input, erasures and holds by the same code{changed}: "
        f"{found.rows_before:,} rows before, {found.rows_now:,} now, {found.rows_differing:,} in one of them"
        " alone"
    )
