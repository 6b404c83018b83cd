"""Dead letters that name nobody and yet hold somebody: taken out, and their keys destroyed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from datetime import date
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.exceptions import ValidationException

from lake.blocks import BLOCK_COLUMNS
from lake.errors import EpochMoved
from lake.eventtypes import DEAD_LETTER, PRIMARY
from lake.housekeeping import Housekeeping
from lake.lakehouse import Lake
from lake.levels import Level, together
from lake.merging import day_of
from lake.objects import StoredObject, get_bytes, scan_parquet, storage_errors
from lake.rewriting import Rewriter
from lake.sealer import letter_bytes
from lake.selection import WHOLE_COLUMNS, Selection, some_rows, stored_in, whole_rows

_LETTERS: Final = Selection(DEAD_LETTER, PRIMARY)
_IN_FLIGHT_SECONDS: Final = 2.0
Removed = Callable[[Sequence[bytes]], None]
"""Told of the letters that were one record."""


def _naming(letters: pl.DataFrame, holds: Callable[[bytes], bool]) -> pl.Series:
    """Which letters name somebody, or are a line of a torn record that does."""
    raws = [letter_bytes(raw) for raw in letters["raw"]]
    record_of = _records(letters)
    named = {record for record, raw in zip(record_of, raws, strict=True) if holds(raw)}
    return pl.Series([record in named for record in record_of], dtype=pl.Boolean)


def _records(letters: pl.DataFrame) -> list[int]:
    raws = [letter_bytes(raw) for raw in letters["raw"]]
    return torn_records(list(zip(letters["feed"], letters["line"], raws, strict=True)))


def torn_records(letters: Sequence[tuple[str, int, bytes]]) -> list[int]:
    """For each letter (feed, line, raw) a number of its record, the same for lines of one. Pure.

    A quoted line break tears a record of CSV, and the later lines name nobody: from a line with an odd
    number of quotes on all that follow without a gap belong to it, up to the next such line.
    """
    numbers = [0] * len(letters)
    record, before, is_open = 0, ("", -1), False
    for at in sorted(range(len(letters)), key=lambda one: letters[one][:2]):
        feed, line, raw = letters[at]
        follows = is_open and (feed, line - 1) == before
        is_odd = raw.count(b'"') % 2 == 1
        record += not follows
        is_open = is_odd != follows
        numbers[at], before = record, (feed, line)
    return numbers


class LetterRedaction(Rewriter):
    """Redacts letters of nobody's.

    Args:
        sleep: waits for commits that are under way, where there may be one.
    """

    def __init__(self, lake: Lake, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(lake)
        self._housekeeping = Housekeeping(lake)
        self._sleep = sleep

    def run(
        self,
        holds: Callable[[bytes], bool],
        in_use: Collection[bytes] = (),
        removed: Removed = lambda lines: None,
    ) -> int:
        """Removes dead letters of nobody's that `holds` recognises, and destroys what sealed them.

        A line without a readable subject is sealed under a key that belongs to no person. Those that
        name an erased person are taken out, the others sealed anew, and the old key is destroyed, so
        that they are unreadable in every old snapshot too. Returns how many were removed.

        Args:
            in_use: handles that a commit which was begun will use again.
            removed: told of each record that was taken out, its lines.

        Raises:
            KeysError: a letter could not be opened for a reason that is no erasure; run it again.
        """
        days = {day_of(file) for file in self._table.files()}
        count = sum(self._redact_day(day, holds, removed) for day in sorted(days))
        self._keyring.drop(self._replaced_keys())
        self._keyring.drop(self._abandoned_keys(in_use))
        return count

    def count(self, holds: Callable[[bytes], bool]) -> int:
        """How many letters of nobody's `holds` recognises. Changes nothing. Raises as `run`."""
        letters = self._rows(self._table.files(), _LETTERS)
        if letters.height == 0:
            return 0
        return int(_naming(self._nobodys(letters), holds).sum())

    def _nobodys(self, letters: pl.DataFrame) -> pl.DataFrame:
        found = self._open_group(letters, self._types.get(DEAD_LETTER), PRIMARY).frame
        return found.filter((pl.col("subject") == "") & ~pl.col("shredded"))

    def _redact_day(self, day: date, holds: Callable[[bytes], bool], removed: Removed) -> int:
        while True:
            epoch = self._keyring.catch_up()
            live = self._live(day)
            letters = self._rows([file for file, _ in live], _LETTERS)
            if letters.height == 0:
                return 0
            nobody = self._nobodys(letters)
            named = _naming(nobody, holds)
            doomed = nobody.filter(named)
            if doomed.height == 0:
                return 0
            old = doomed["subject_ref"].unique().to_list()
            with_them = nobody.filter(pl.col("subject_ref").is_in(old))
            live = self._holding(live, old)  # the others stay: a day may be large
            files = [file for file, _ in live]
            rows = self._rows(files)
            rest = with_them.join(doomed.select("_tag"), on="_tag", how="anti")
            kept = rows.filter(~pl.col("subject_ref").is_in(old))
            parts = [kept.select(BLOCK_COLUMNS)]
            if rest.height:
                fresh = self._keyring.mint(1, PRIMARY.purpose)[0].ref
                again = rest.with_columns(
                    pl.lit(fresh, pl.Binary).alias("ref"), pl.col("occurred_on").alias("_day")
                )
                parts.append(self._sealed(again, self._types.get(DEAD_LETTER), PRIMARY, rows))
            fresh_file = self._write(day, pl.concat(parts), together(Level.REWRITTEN, live))
            try:
                self._commit([fresh_file], files, epoch, redacted=doomed.height)
            except (EpochMoved, ValidationException):
                continue  # upkeep or another erasure was first: look again
            records: dict[int, list[bytes]] = {}
            for record, raw, is_named in zip(_records(nobody), nobody["raw"], named, strict=True):
                if is_named:
                    records.setdefault(record, []).append(letter_bytes(raw))
            for lines in records.values():
                removed(lines)
            return doomed.height

    def _replaced_keys(self) -> list[bytes]:
        """Handles of nobody's letters that kept snapshots hold and the head does not.

        Found from the table itself, so that a killed redaction is finished by its repetition.
        """
        return self._of_nobody(self._rows(self._table.kept_files(), _LETTERS), self._in_head())

    def _abandoned_keys(self, in_use: Collection[bytes]) -> list[bytes]:
        """Handles of nobody's letters in files that no snapshot refers to.

        An ingest that was killed before its commit leaves such a file, and its letters' key lives on.
        One that is still about to commit notices by the fence and seals its letters anew (see
        `Ingestor.land`), unless it is past that look: so a file counts only when it is still abandoned
        some seconds later.
        """
        found = self._abandoned_letters(in_use)
        if not found:
            return []
        self._sleep(_IN_FLIGHT_SECONDS)
        return [ref for ref in self._abandoned_letters(in_use) if ref in found]

    def _abandoned_letters(self, in_use: Collection[bytes]) -> list[bytes]:
        locations = [one.location for one in self._abandoned() if not self._is_torn(one.location)]
        if not locations:
            return []
        scan = scan_parquet(locations, self._table.load().io.properties)
        letters = whole_rows(stored_in(scan, _LETTERS, WHOLE_COLUMNS), self._types.open_schema)
        return self._of_nobody(letters, self._in_head() | set(in_use))

    def torn(self) -> list[StoredObject]:
        """Half-written data files that no snapshot refers to: the trace of a kill, or of a writer at work."""
        return [one for one in self._abandoned() if self._is_torn(one.location)]

    def _abandoned(self) -> list[StoredObject]:
        return [one for one in self._housekeeping.orphans() if one.location.endswith(".parquet")]

    def _is_torn(self, location: str) -> bool:
        """Whether a file is no Parquet file (any more). Raises `StorageFailed` where it cannot be read."""
        with storage_errors():
            body = get_bytes(location, self._table.load().io.properties)
        if body is None:  # swept, or its writer gave it up
            return True
        try:
            pq.ParquetFile(pa.BufferReader(body)).close()
        except (pa.ArrowInvalid, EOFError):
            return True
        return False

    def _in_head(self) -> set[bytes]:
        letters = some_rows(self._table, self._table.files(), _LETTERS, ("subject_ref",))
        return set(letters["subject_ref"].to_list())

    def _of_nobody(self, rows: pl.DataFrame, kept: Collection[bytes]) -> list[bytes]:
        """Handles with a living key, not among those kept, that sealed letters of nobody."""
        rows = rows.filter(~pl.col("subject_ref").is_in(list(kept)))
        alive = [ref for ref in rows["subject_ref"].unique() if self._keyring.purposes_of(ref)]
        left = rows.filter(pl.col("subject_ref").is_in(alive) & pl.col("sealed").is_not_null())
        if left.height == 0:
            return []
        found = self._open_group(left, self._types.get(DEAD_LETTER), PRIMARY).frame
        return found.filter(pl.col("subject") == "")["subject_ref"].unique().to_list()
