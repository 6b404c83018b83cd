"""Letters of nobody's are kept for so many days: then they leave the table, and their keys are destroyed.

Whoever such a letter is about cannot be told, and may never ask for it to be erased. A time limit is what
protects them (docs/adr/0056).
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, timedelta

import polars as pl
from attrs import evolve
from pyiceberg.exceptions import ValidationException

from lake.blocks import BLOCK_COLUMNS
from lake.errors import EpochMoved
from lake.letterkeys import LetterKeys
from lake.levels import Level, together
from lake.merging import day_of
from lake.nobodysletters import NobodysLetters
from lake.upkeeprules import WARNED_DAYS


class LetterRetention(NobodysLetters):
    """Lets letters of nobody's go when their time is over; repeating it is success."""

    def due(self, before: date) -> list[date]:
        """Ingest days before this one whose letters have not been looked at, oldest first; reads no row."""
        until = self._letter_keys().until
        days = {day_of(file) for file in self._table.files()}
        return sorted(day for day in days if day < before and (until is None or day >= until))

    def owes(self) -> bool:
        """Whether letters were removed whose keys are not destroyed yet."""
        return self._letter_keys().owes

    def count(self, day: date) -> int:
        """How many letters of nobody's a day holds. Raises `KeysError`: one of them cannot be opened."""
        letters = self._letters_in(file for file, _ in self._live(day))
        return self._nobodys(letters).height if letters.height else 0

    def coming(self, before: date, within_days: int = WARNED_DAYS) -> dict[date, int]:
        """Ingest day → letters of nobody's that go within so many days, but for those that are due."""
        last = before + timedelta(days=within_days)
        days = {day_of(file) for file in self._table.files()}
        counts = {day: self.count(day) for day in sorted(days) if before <= day < last}
        return {day: count for day, count in counts.items() if count}

    def remove(self, day: date) -> int:
        """Takes a day's letters of nobody's out of the head; their keys live on. Returns how many there were.

        Raises:
            KeysError: a letter could not be opened for a reason that is no erasure; nothing was changed.
        """

        def owing(known: LetterKeys) -> LetterKeys:
            keys = {one: ref for one, ref in known.keys.items() if one != day}
            return evolve(known, keys=keys, owes=True)

        while True:
            epoch = self._keyring.catch_up()
            live = self._live(day)
            letters = self._letters_in(file for file, _ in live)
            nobody = self._nobodys(letters) if letters.height else letters
            if nobody.height == 0:
                return 0
            refs = nobody["subject_ref"].unique().to_list()
            live = self._holding(live, refs)
            files = [file for file, _ in live]
            rows = self._rows(files)
            kept = rows.filter(~pl.col("subject_ref").is_in(refs)).select(BLOCK_COLUMNS)
            fresh = [self._write(day, kept, together(Level.REWRITTEN, live))] if kept.height else []
            try:
                self._commit(fresh, files, epoch, expired=nobody.height, letters=owing)
            except (EpochMoved, ValidationException):
                continue  # an erasure or other upkeep was first: look again
            return nobody.height

    def settle(self, before: date, in_use: Collection[bytes] = ()) -> None:
        """Destroys the keys of what was removed, and then writes down that these days are done.

        In this order: a kill between leaves it owed, and its repetition finds the keys in kept snapshots.

        Args:
            in_use: handles that a commit which was begun will use again.
        """
        self._drop_keys(in_use)

        def done(known: LetterKeys) -> LetterKeys:
            return evolve(known, until=max(before, known.until or before), owes=False)

        while True:
            try:
                self._commit([], [], self._keyring.catch_up(), letters=done)
                return
            except EpochMoved:
                continue
