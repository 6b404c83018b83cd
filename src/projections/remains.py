"""What views hold of people: what an erasure has to reach, and then looks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import polars as pl
from attrs import frozen

from lake import SnapshotGone
from lake.objects import collected
from projections.definition import SUBJECT
from projections.ledger import Ledger, Publication
from projections.state import StateStore
from projections.tables import AGGREGATE, ViewTables
from projections.viewrows import parse_row


@frozen
class RowSeals:
    """What a row of a person is sealed under.

    Attributes:
        purposes: of whose keys every one is needed to open it.
    """

    subject_ref: bytes
    purposes: tuple[str, ...]


class Remains:
    """Looks at states and published rows; opens none."""

    def __init__(self, ledger: Ledger, tables: ViewTables, states: StateStore) -> None:
        self._ledger = ledger
        self._tables = tables
        self._states = states

    def state_keys(self, refs: Collection[bytes]) -> dict[bytes, list[bytes]]:
        """Handle of a person → those of the keys of the states that the person is in, of every version."""
        found: dict[bytes, list[bytes]] = {ref: [] for ref in refs}
        for version in self._states.versions():
            bits = int(version.rpartition("/")[2])
            known = self._states.known(version)
            for ref, keys in found.items():
                state = known.get(int.from_bytes(ref[:2], "big") >> (16 - bits))
                if state is not None:
                    keys.append(state.ref)
        return found

    def rows(self, epochs: Mapping[bytes, int]) -> list[RowSeals]:
        """Rows of these people in the last publication before their erasure, of each version of each view.

        How a row is sealed is a matter of its version; the publications before are not read, so that an
        erasure costs no more for those that went before it.

        Args:
            epochs: handle → epoch of the fence.

        Raises:
            StorageFailed: the rows cannot be read.
        """
        history = [one for one in self._ledger.publications() if one.grain != AGGREGATE]
        last: dict[int, Publication] = {}
        for epoch in set(epochs.values()):
            before = {(one.view, one.version): one for one in history if one.epoch < epoch}
            last |= {one.publication_id: one for one in before.values()}
        return [row for one in last.values() for row in self._rows_in(one, list(epochs))]

    def _rows_in(self, publication: Publication, refs: Sequence[bytes]) -> list[RowSeals]:
        table = self._tables.table(publication.table)
        try:
            files = table.files(publication.snapshot_id)
        except SnapshotGone:  # dropped, with its rows
            return []
        mine = collected(table.scan(files).filter(pl.col(SUBJECT).is_in(refs)).select(SUBJECT, "sealed"))
        return [RowSeals(ref, parse_row(sealed)[0]) for ref, sealed in mine.iter_rows()]
