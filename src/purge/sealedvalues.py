"""Sealed values, opened in bulk with whatever keys live: what a thief of today's keys would read.

A value whose key is gone is passed over before anything is opened, so that it does not cost a try. One whose
key lives and that does not open is an error: what nobody could look into is never said to hold nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import polars as pl
from attrs import field, frozen

from keys import FieldContext, Keyring
from lake import EventType, Facet, TypeRegistry
from lake.bodyreader import unpack
from lake.events import sealing_context
from lake.intake import INTAKE_CONTEXT
from lake.objects import scan_parquet
from lake.selection import WHOLE_COLUMNS, Selection, stored_in, whole_rows
from projections.headbook import table_of
from projections.keptsource import SOURCE_CONTEXT, files_of, source_place
from projections.state import STATE_CONTEXT, state_of, state_place
from projections.tables import row_schema
from projections.viewrows import parse_row
from purge.containers import opened_database, text_of, values_of
from purge.requestseal import PLAN_PLACE, SUBJECT_CONTEXT

_BLOCKS: Final = 8_192
_AT_ONCE: Final = 256  # states, and batches that wait
_SUBJECT: Final = "_subject"
Whose = Literal["own", "nobody", "another"]
"""Under whose key something is, of one person who is looked for."""


@frozen
class OpenedValues:
    """Some values that were opened together.

    Attributes:
        owner: whose key they were under: of those who are looked for; None: somebody else's; "": nobody's.
        raw: their bytes, as they were sealed.
        text: their decoded values; "" where no schema is known.
    """

    owner: str | None = field(repr=False)
    count: int
    raw: bytes = field(repr=False)
    text: str = field(repr=False)

    def whose(self, said: str) -> Whose:
        """To one of those who are looked for, by id."""
        if self.owner == "":
            return "nobody"
        return "own" if self.owner == said else "another"


class LivingKeys:
    """Which keys are still in the key pages, past every fence."""

    def __init__(self, keyring: Keyring) -> None:
        self.keyring = keyring
        self._opener = keyring.opener()
        self._purposes = keyring.purposes()
        self._known: dict[bytes, frozenset[tuple[str, int]]] = {}

    def open(
        self, context: FieldContext, rows: Sequence[tuple[bytes, bytes, bytes]]
    ) -> list[tuple[int, bytes]]:
        """(number of the row, body) of those rows (handle, place, envelope) whose key lives.

        Raises:
            EnvelopeError, CustodianUnavailable: one of them cannot be opened all the same.
        """
        self._look(sorted({row[0] for row in rows} - self._known.keys()))
        alive = [at for at, row in enumerate(rows) if self._has_key(context.purpose, row[0], row[2])]
        opened = self._opener.open(
            context,
            [rows[at][0] for at in alive],
            [rows[at][1] for at in alive],
            [rows[at][2] for at in alive],
        )
        return [(at, body) for at, body in zip(alive, opened, strict=True) if isinstance(body, bytes)]

    def _has_key(self, purpose: str, ref: bytes, envelope: bytes) -> bool:
        return (purpose, int.from_bytes(envelope[3:5], "big")) in self._known[ref]

    def _look(self, refs: Sequence[bytes]) -> None:
        found: dict[bytes, set[tuple[str, int]]] = {ref: set() for ref in refs}
        for record in self.keyring.tree.records_of(refs):
            found[record.ref].add((self._purposes[record.purpose_code - 1], record.generation))
        self._known.update({ref: frozenset(one) for ref, one in found.items()})


class SealedFiles:
    """Opens what the files of a lake hold.

    Args:
        keys: those of the lake, or of whoever took a copy.
        home: the folder with event types and the ledger of publications.
        people: id → handle of those who are looked for; the handle is None where nobody has it.
        numbers: see `values_of`.
    """

    def __init__(
        self, keys: LivingKeys, home: Path, people: Mapping[str, bytes | None], *, numbers: bool
    ) -> None:
        self._keys = keys
        self._people = people
        self._said_by_ref = {ref: said for said, ref in people.items() if ref is not None}
        self._numbers = numbers
        self._types = TypeRegistry(home / "lake" / "types")
        self._ledger = home / "views" / "ledger.db"
        self._columns: dict[tuple[str, str], dict[str, str]] | None = None

    def in_table(self, path: Path) -> Iterator[OpenedValues]:
        """Of a data file of a table. Raises as `LivingKeys.open`, and `LakeError` for what is damaged."""
        names = pl.read_parquet_schema(path)
        if "sealed" not in names:
            return
        if "event_type" in names:
            yield from self._blocks(path)
            return
        rows = pl.read_parquet(path, hive_partitioning=False).select("subject_ref", "row_id", "sealed")
        table = _table_folder(path)
        name = f"views.{table.name}"
        uuid = _table_uuid(table)
        schema = row_schema(self._columns_of(name, path.parent.name))
        for some in rows.iter_slices(_BLOCKS):
            cells = some.rows()
            opened = self._rows(cells, lambda purpose: FieldContext(uuid, 3, "view", purpose, name, 1))
            by_owner: dict[str | None, list[bytes]] = {}
            for at, body in opened:
                by_owner.setdefault(self._said_by_ref.get(cells[at][0]), []).append(body)
            for owner, bodies in by_owner.items():
                yield self._decoded(owner, bodies, np.ones(len(bodies), dtype=np.int64), schema)

    def _rows(
        self, cells: Sequence[tuple[bytes, bytes, bytes]], context_of: Callable[[str], FieldContext]
    ) -> list[tuple[int, bytes]]:
        """(number, body) of the rows all of whose keys live; see `projections.viewrows`."""
        layers = [parse_row(sealed) for _, _, sealed in cells]
        rows = {at: envelope for at, (_, envelope) in enumerate(layers)}
        for purpose in sorted({one for names, _ in layers for one in names}, reverse=True):
            chosen = [at for at in rows if purpose in layers[at][0]]
            opened = self._keys.open(context_of(purpose), [(*cells[at][:2], rows[at]) for at in chosen])
            living = {chosen[n]: body for n, body in opened}
            for at in chosen:
                del rows[at]
            rows |= living
        return list(rows.items())

    def in_database(self, name: str, db: sqlite3.Connection) -> Iterator[OpenedValues]:
        """Of a SQLite file of this name. Raises as `LivingKeys.open`, and `sqlite3.Error`."""
        known: dict[str, Callable[[sqlite3.Connection], Iterator[OpenedValues]]] = {
            "intake.db": self._waiting,
            "states.db": self._states,
            "journal.db": self._requests,
            "ledger.db": self._sources,
        }
        if name in known:
            yield from known[name](db)

    def _blocks(self, path: Path) -> Iterator[OpenedValues]:
        stored = stored_in(scan_parquet([str(path)], {}), Selection(), WHOLE_COLUMNS)
        rows = whole_rows(stored, self._types.open_schema)
        uuid = _table_uuid(_table_folder(path))
        group_of = ("event_type", "schema_version", "facet")
        for (name, version, facet), group in rows.group_by(*group_of, maintain_order=True):
            event_type = self._types.get(str(name), int(str(version)))
            opened = unpack(
                group.get_column("open"),
                group.get_column("event_count").to_numpy(),
                event_type.open_schema,
                list(event_type.open_schema),
            )
            yield OpenedValues("", 0, b"", values_of(opened, numbers=self._numbers))
            for some in group.filter(pl.col("sealed").is_not_null()).iter_slices(_BLOCKS):
                yield from self._some_blocks(some, event_type, _facet(event_type, str(facet)), uuid)

    def _some_blocks(
        self, rows: pl.DataFrame, event_type: EventType, facet: Facet, uuid: bytes
    ) -> Iterator[OpenedValues]:
        cells = rows.select("subject_ref", "block_id", "sealed").rows()
        opened = self._keys.open(sealing_context(uuid, event_type, facet), cells)
        if not opened:
            return
        counts = rows.get_column("event_count").to_numpy()[[at for at, _ in opened]]
        schema = event_type.sealed_schema(facet)
        bodies = [body for _, body in opened]
        frame = unpack(bodies, counts, schema, list(schema))
        subjects = frame.get_column(_SUBJECT).gather(np.cumsum(counts) - counts).to_list()
        by_owner: dict[str | None, list[int]] = {}
        for at, subject in enumerate(subjects):
            by_owner.setdefault(self._owner(subject), []).append(at)
        owners = pl.Series(np.repeat(np.arange(len(counts)), counts))
        for owner, mine in by_owner.items():
            part = frame if len(by_owner) == 1 else frame.filter(owners.is_in(mine))
            text = values_of(part, numbers=self._numbers)
            yield OpenedValues(owner, len(mine), b"\0".join(bodies[at] for at in mine), text)

    def _owner(self, subject: str | None) -> str | None:
        return (subject if subject in self._people else None) if subject else ""

    def _decoded(
        self, owner: str | None, bodies: list[bytes], counts: np.ndarray, schema: dict[str, Any]
    ) -> OpenedValues:
        text = ""
        if schema:
            text = values_of(unpack(bodies, counts, schema, list(schema)), numbers=self._numbers)
        return OpenedValues(owner, len(bodies), b"\0".join(bodies), text)

    def _waiting(self, db: sqlite3.Connection) -> Iterator[OpenedValues]:
        rows = db.execute("SELECT key_ref, batch_id, sealed FROM waiting")
        while some := rows.fetchmany(_AT_ONCE):
            cells = [(ref, bytes.fromhex(batch_id), sealed) for ref, batch_id, sealed in some]
            bodies = [body for _, body in self._keys.open(INTAKE_CONTEXT, cells)]
            raw = b"\0".join(bodies)
            yield OpenedValues("", len(bodies), raw, text_of(raw))

    def _states(self, db: sqlite3.Connection) -> Iterator[OpenedValues]:
        for (version,) in db.execute("SELECT DISTINCT version FROM states").fetchall():
            rows = db.execute("SELECT ref, bucket, parts FROM states WHERE version = ?", (version,))
            while some := rows.fetchmany(_AT_ONCE):
                cells = [(ref, state_place(version, bucket), sealed) for ref, bucket, sealed in some]
                bodies = [body for _, body in self._keys.open(STATE_CONTEXT, cells)]
                if bodies:
                    state = state_of(bodies)
                    parts = (state.rows, state.tags, state.counts)
                    text = "\0".join(values_of(frame, numbers=self._numbers) for frame in parts)
                    yield OpenedValues("", len(bodies), b"\0".join(bodies), text)

    def _requests(self, db: sqlite3.Connection) -> Iterator[OpenedValues]:
        sql = "SELECT sealed_ref, sealed_subject FROM requests WHERE sealed_subject IS NOT NULL"
        for ref, sealed in db.execute(sql):
            for _, body in self._keys.open(SUBJECT_CONTEXT, [(ref, PLAN_PLACE, sealed)]):
                said = text_of(body)
                yield OpenedValues(self._owner(said), 1, body, said)

    def _sources(self, db: sqlite3.Connection) -> Iterator[OpenedValues]:
        """Code of views. What rows are withheld stands there in digests, which no value is told from."""
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'kept_sources'").fetchone():
            return  # of a release that kept none
        rows = db.execute("SELECT view, version, digest, key_ref, sealed FROM kept_sources")
        for view, version, digest, ref, sealed in rows:
            cells = [(ref, source_place((view, version, digest)), sealed)]
            for _, body in self._keys.open(SOURCE_CONTEXT, cells):
                raw = b"\0".join(one.body for one in files_of(body))
                yield OpenedValues("", 1, raw, text_of(raw))

    def _columns_of(self, table: str, folder: str) -> dict[str, str]:
        """Name → type of the rows in a folder of a view's table, as its newest publication says.

        A folder holds the files of one version of the view; an older table is all of one version.
        """
        if self._columns is None:
            self._columns = {}
            if self._ledger.exists():
                with opened_database(self._ledger) as db:
                    for (record,) in db.execute("SELECT record FROM publications ORDER BY publication_id"):
                        one = json.loads(record)
                        for name in (one["table"], table_of(one["view"])):
                            self._columns[name, one["version"][:8]] = one["columns"]
                            self._columns[name, "data"] = one["columns"]
        return self._columns.get((table, folder), {})


def _facet(event_type: EventType, name: str) -> Facet:
    return next(one for one in event_type.facets if str(one) == name)


def _table_folder(path: Path) -> Path:
    return next(parent for parent in path.parents if (parent / "metadata").is_dir())


def _table_uuid(table: Path) -> bytes:
    newest = max((table / "metadata").glob("*.metadata.json"))
    return bytes.fromhex(json.loads(newest.read_bytes())["table-uuid"].replace("-", ""))
