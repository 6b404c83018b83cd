"""Dead letters that name nobody: finding them and the keys that seal them, for whoever takes some out."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import date
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.manifest import DataFile

from lake.errors import EpochMoved
from lake.eventtypes import DEAD_LETTER, PRIMARY
from lake.housekeeping import Housekeeping
from lake.lakehouse import Lake
from lake.letterkeys import LetterKeys, letter_keys_of
from lake.objects import StoredObject, get_bytes, scan_parquet, storage_errors
from lake.rewriting import Rewriter
from lake.selection import WHOLE_COLUMNS, Selection, some_rows, stored_in, whole_rows
from lake.table import summary_of

LETTERS_OF_ALL: Final = Selection(DEAD_LETTER, PRIMARY)
_IN_FLIGHT_SECONDS: Final = 2.0
_BLOCK: Final = ("subject_ref", "block_id")
Block = tuple[bytes, bytes]
"""Handle and id of a block: where both are the same, so is what is sealed in it."""


class NobodysLetters(Rewriter):
    """Base of what takes letters of nobody's out of the table.

    Args:
        sleep: waits for commits that are under way, where there may be one.
    """

    def __init__(self, lake: Lake, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(lake)
        self._housekeeping = Housekeeping(lake)
        self._sleep = sleep
        self._whole: Mapping[str, frozenset[Block]] = {}

    def _nobodys(self, letters: pl.DataFrame) -> pl.DataFrame:
        """Those that can be opened and name nobody, opened. Raises `KeysError`."""
        found = self._open_group(letters, self._types.get(DEAD_LETTER), PRIMARY).frame
        return found.filter((pl.col("subject") == "") & ~pl.col("shredded"))

    def _letters_in(self, files: Iterable[DataFile]) -> pl.DataFrame:
        return self._rows(list(files), LETTERS_OF_ALL)

    def _letter_keys(self) -> LetterKeys:
        head = self._table.snapshot()
        return letter_keys_of(summary_of(head)) if head is not None else LetterKeys()

    def _replace_key(self, day: date, old: bytes) -> None:
        """Gives a day another key: from here on no batch lands whose letters are sealed under the old one."""

        def anew(known: LetterKeys) -> LetterKeys:
            if known.keys.get(day) != old:
                raise EpochMoved("somebody else gave the day another key")
            return known.with_key(day, fresh)

        fresh = self._keyring.mint(1, PRIMARY.purpose)[0].ref
        try:
            self._commit([], [], self._keyring.catch_up(), letters=anew)
        except EpochMoved:  # the caller looks again
            self._keyring.drop([fresh])

    # -- keys of what is gone ----------------------------------------------------------------------

    def _drop_keys(self, in_use: Collection[bytes]) -> None:
        """Destroys the keys of letters that are in the head no more, or never were.

        Args:
            in_use: handles that a commit which was begun will use again.
        """
        self._keyring.drop(self._replaced_keys())
        self._keyring.drop(self._abandoned_keys(in_use))

    def _replaced_keys(self) -> list[bytes]:
        """Handles of nobody's letters that kept snapshots hold and the head does not.

        Found from the table itself, so that a killed redaction is finished by its repetition.
        """
        return self._of_nobody(self._letters_in(self._table.kept_files()), self._in_head())

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
        return self._of_nobody(self._abandoned_rows(), self._in_head() | set(in_use))

    def _abandoned_rows(self) -> pl.DataFrame:
        """Letters in files that no snapshot refers to, of those files that have any beside the head's.

        Each erasure leaves the day that it rewrote there for a while; its letters are looked at in the head.
        """
        found = {one: letters for one, letters in self._looked_at(self._abandoned()).items() if letters}
        if not found:
            return self._letters_at([])
        in_head = _blocks(some_rows(self._table, self._table.files(), LETTERS_OF_ALL, _BLOCK))
        return self._letters_at(
            [one for one, letters in found.items() if self._is_any_living(letters - in_head)]
        )

    def _letters_at(self, locations: Sequence[str]) -> pl.DataFrame:
        if not locations:
            return self._letters_in([])
        scan = scan_parquet(locations, self._table.load().io.properties)
        return whole_rows(stored_in(scan, LETTERS_OF_ALL, WHOLE_COLUMNS), self._types.open_schema)

    def torn(self) -> list[StoredObject]:
        """Half-written data files that no snapshot refers to: the trace of a kill, or of a writer at work."""
        abandoned = self._abandoned()
        whole = self._looked_at(abandoned)
        return [one for one in abandoned if one.location not in whole]

    def _abandoned(self) -> list[StoredObject]:
        return [one for one in self._housekeeping.orphans() if one.location.endswith(".parquet")]

    def _looked_at(self, abandoned: Iterable[StoredObject]) -> Mapping[str, frozenset[Block]]:
        """Which letters the whole ones of these files hold, by location. Raises `StorageFailed`.

        Each file is read once: a whole one never changes.
        """
        io = self._table.load().io.properties
        before, found = self._whole, {}
        for one in abandoned:
            letters = before.get(one.location)
            if letters is None:
                letters = _letters_at(one.location, io)
            if letters is not None:
                found[one.location] = letters
        self._whole = found
        return found

    def _is_any_living(self, letters: Collection[Block]) -> bool:
        return any(self._keyring.purposes_of(ref) for ref in {ref for ref, _ in letters})

    def _in_head(self) -> set[bytes]:
        """Handles of letters in the head, and of the days' keys that batches are sealed under now."""
        letters = some_rows(self._table, self._table.files(), LETTERS_OF_ALL, ("subject_ref",))
        return {*letters["subject_ref"].to_list(), *self._letter_keys().keys.values()}

    def _of_nobody(self, rows: pl.DataFrame, kept: Collection[bytes]) -> list[bytes]:
        """Handles with a living key, not among those kept, that sealed letters of nobody."""
        left = self._living(rows.filter(~pl.col("subject_ref").is_in(list(kept))))
        if left.height == 0:
            return []
        return self._nobodys(left)["subject_ref"].unique().to_list()

    def _living(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Sealed rows whose handle has a key."""
        alive = [ref for ref in rows["subject_ref"].unique() if self._keyring.purposes_of(ref)]
        return rows.filter(pl.col("subject_ref").is_in(alive) & pl.col("sealed").is_not_null())


def _letters_at(location: str, properties: Mapping[str, str]) -> frozenset[Block] | None:
    """Blocks of letters in a file; None where it is no Parquet file (any more). Raises `StorageFailed`."""
    with storage_errors():
        body = get_bytes(location, properties)
    if body is None:  # swept, or its writer gave it up
        return None
    try:
        with pq.ParquetFile(pa.BufferReader(body)) as file:
            rows = pl.DataFrame(file.read([*_BLOCK, "event_type", "facet"]))
    except (pa.ArrowInvalid, EOFError):
        return None
    return _blocks(rows.filter(LETTERS_OF_ALL.wanted()))


def _blocks(rows: pl.DataFrame) -> frozenset[Block]:
    return frozenset(rows.select(_BLOCK).iter_rows())
