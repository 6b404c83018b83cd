"""Dead letters that name nobody and yet hold somebody: taken out, and their keys destroyed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date

import polars as pl
from pyiceberg.exceptions import ValidationException

from lake.blocks import BLOCK_COLUMNS
from lake.errors import EpochMoved
from lake.eventtypes import DEAD_LETTER, PRIMARY
from lake.letterkeys import LetterKeys
from lake.levels import Level, together
from lake.merging import day_of
from lake.nobodysletters import NobodysLetters
from lake.offsets import REDACTION
from lake.sealer import letter_bytes

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


class LetterRedaction(NobodysLetters):
    """Redacts letters of nobody's."""

    def run(
        self,
        holds: Callable[[bytes], bool],
        in_use: Collection[bytes] = (),
        removed: Removed = lambda lines: None,
    ) -> int:
        """Removes dead letters of nobody's that `holds` recognises, and destroys what sealed them.

        A line without a readable subject is sealed under a key of its day that belongs to no person. Those
        that name an erased person are taken out, the others of the day sealed anew, and the old key is
        destroyed, so that they are unreadable in every old snapshot too. Returns how many were removed.

        Args:
            in_use: handles that a commit which was begun will use again.
            removed: told of each record that was taken out, its lines.

        Raises:
            KeysError: a letter could not be opened for a reason that is no erasure; run it again.
        """
        left_behind = self._left_behind(holds)
        for day, ref in self._letter_keys().keys.items():
            if ref in left_behind:
                self._replace_key(day, ref)
        days = {day_of(file) for file in self._table.files()}
        count = sum(self._redact_day(day, holds, left_behind, removed) for day in sorted(days))
        self._drop_keys(in_use)
        return count

    def count(self, holds: Callable[[bytes], bool]) -> int:
        """How many letters of nobody's `holds` recognises. Changes nothing. Raises as `run`."""
        letters = self._letters_in(self._table.files())
        if letters.height == 0:
            return 0
        return int(_naming(self._nobodys(letters), holds).sum())

    def keys_naming(self, holders: Mapping[str, Callable[[bytes], bool]]) -> dict[str, list[bytes]]:
        """Handles of the keys that seal letters of nobody's which each of the named recognises.

        Changes nothing. Raises as `run`.
        """
        letters = self._letters_in(self._table.files())
        nobody = self._nobodys(letters) if holders and letters.height else letters.clear()
        return {
            name: sorted(set(nobody.filter(_naming(nobody, holds))["subject_ref"])) if nobody.height else []
            for name, holds in holders.items()
        }

    def _left_behind(self, holds: Callable[[bytes], bool]) -> set[bytes]:
        """Handles of letters that `holds` recognises in files that no snapshot refers to.

        A killed ingest leaves such a file, under a key that the day's other letters may share.
        """
        letters = self._living(self._abandoned_rows())
        if letters.height == 0:
            return set()
        found = self._nobodys(letters)
        return set(found.filter(_naming(found, holds))["subject_ref"].to_list())

    def _redact_day(
        self, day: date, holds: Callable[[bytes], bool], left_behind: Collection[bytes], removed: Removed
    ) -> int:
        while True:
            epoch = self._keyring.catch_up()
            key = self._letter_keys().keys.get(
                day
            )  # before the files: what lands later is not under an old one
            live = self._live(day)
            letters = self._letters_in(file for file, _ in live)
            if letters.height == 0:
                return 0
            nobody = self._nobodys(letters)
            named = _naming(nobody, holds)
            doomed = nobody.filter(named)
            shared = set(nobody["subject_ref"].to_list()) & set(left_behind)
            old = list(shared | set(doomed["subject_ref"].to_list()))
            if not old:
                return 0
            if key is not None and (key in old or not self._keyring.purposes_of(key)):
                self._replace_key(day, key)
                continue
            live = self._holding(live, old)  # the others stay: a day may be large
            files = [file for file, _ in live]
            rows = self._rows(files)
            rest = nobody.filter(pl.col("subject_ref").is_in(old) & ~named)
            parts = [rows.filter(~pl.col("subject_ref").is_in(old)).select(BLOCK_COLUMNS)]
            if rest.height:
                parts.append(self._sealed_again(rest, key, rows))
            after = pl.concat(parts)
            fresh = [self._write(day, after, together(Level.REWRITTEN, live))] if after.height else []
            try:
                unchanged = _with(day, key)
                self._commit(fresh, files, epoch, redacted=doomed.height, letters=unchanged, kind=REDACTION)
            except (EpochMoved, ValidationException):
                continue  # upkeep or another erasure was first: look again
            _tell(nobody, named, removed)
            return doomed.height

    def _sealed_again(self, rest: pl.DataFrame, key: bytes | None, rows: pl.DataFrame) -> pl.DataFrame:
        """Letters that stay, under the day's key; a day that is over may have none on record."""
        fresh = key or self._keyring.mint(1, PRIMARY.purpose)[0].ref
        again = rest.with_columns(pl.lit(fresh, pl.Binary).alias("ref"), pl.col("occurred_on").alias("_day"))
        return self._sealed(again, self._types.get(DEAD_LETTER), PRIMARY, rows)


def _with(day: date, key: bytes | None) -> Callable[[LetterKeys], LetterKeys]:
    def unchanged(known: LetterKeys) -> LetterKeys:
        if known.keys.get(day, key) != key:
            raise EpochMoved("another erasure gave the day another key")
        return known

    return unchanged


def _tell(nobody: pl.DataFrame, named: pl.Series, removed: Removed) -> None:
    records: dict[int, list[bytes]] = {}
    for record, raw, is_named in zip(_records(nobody), nobody["raw"], named, strict=True):
        if is_named:
            records.setdefault(record, []).append(letter_bytes(raw))
    for lines in records.values():
        removed(lines)
