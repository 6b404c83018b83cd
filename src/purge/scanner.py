"""The byte scanner: can a person be found in a lake's files, by anyone who has all of them?

It looks three ways: at the raw bytes of every file; inside containers (Parquet, Avro, gzip, SQLite) after
decompression; and inside every sealed value that the keys found in the very same folder open. It looks
for the id in every spelling that formats produce (`lake.needles`). Only places are reported, never what was
found. What could not be opened is reported too: a scan with failures has not said "nowhere".
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa
import zstandard
from attrs import evolve, frozen

from keys import (
    KeyPlaces,
    Keyring,
    KeysError,
    ShredlakeError,
    SubjectId,
    embedded_places,
    open_forensic,
)
from lake import Hit, Needles, ObjectStore
from purge.containers import (
    database_values,
    is_database,
    opened_database,
    parquet_values,
    text_of,
    unpacked_bytes,
)
from purge.inventory import elsewhere
from purge.sealedvalues import LivingKeys, OpenedValues, SealedFiles

_DAMAGE: Final = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    StopIteration,
    json.JSONDecodeError,
    zlib.error,
    zstandard.ZstdError,
    sqlite3.Error,
    pa.ArrowException,
    pl.exceptions.PolarsError,
    ShredlakeError,
)

PATHS: Final = "(a path)"
"""Where a finding is that stands in the name of a file, which is not told."""


@frozen
class Finding:
    """Where a person was found.

    Attributes:
        path: below the scanned folder.
        how: `raw`, `decoded` (inside a container) or `opened` (behind a key that is in the folder).
        encoding: which form of the id it was.
        whose: of what was opened: sealed under the person's `own` key, under `another` person's, or under
            `nobody`'s; "" for what is in clear.
        is_whole: a word of its own; otherwise a part of what joins it to others by a hyphen or the like.
    """

    path: str
    how: str
    encoding: str
    whose: str = ""
    is_whole: bool = True

    @property
    def is_apart(self) -> bool:
        """Whether it is other people's: what they wrote of the person, or longer names than the id."""
        return self.whose == "another" or not self.is_whole


@frozen
class Failure:
    """What could not be looked into, and the kind of error."""

    path: str
    error: str


@frozen
class Scanned:
    """Result of a scan.

    Attributes:
        findings: where the person is.
        apart: hits in what is sealed under another person, and in longer names; no erasure reaches them.
        failures: what could not be opened, so that nothing is said of it.
        not_searched: forms of the id that nobody looked for.
        out_of_reach: places that nobody looked into.
        files, bytes, opened_values: how much was looked at.
    """

    findings: tuple[Finding, ...]
    files: int
    bytes: int
    opened_values: int
    apart: tuple[Finding, ...] = ()
    failures: tuple[Failure, ...] = ()
    not_searched: tuple[str, ...] = ()
    out_of_reach: tuple[str, ...] = ()


def scan(
    home: Path,
    subject: SubjectId,
    progress: Callable[[int, int], None] = lambda done, files: None,
    places: KeyPlaces | None = None,
    objects: ObjectStore | None = None,
) -> Scanned:
    """Looks for one person; see `scan_for`."""
    return scan_for(home, [subject], progress, places, objects)[0]


def scan_for(
    home: Path,
    subjects: Sequence[SubjectId],
    progress: Callable[[int, int], None] = lambda done, files: None,
    places: KeyPlaces | None = None,
    objects: ObjectStore | None = None,
    *,
    beside: Mapping[str, Path] | None = None,
    out_of_reach: tuple[str, ...] = (),
) -> list[Scanned]:
    """Scans every file below a folder, and every object of a warehouse elsewhere in all its versions.

    Each file is read, and each value opened, once for all who are looked for; once more where some of their
    ids are short and some are not. The results are in the order of the people.

    Args:
        home: a lake's folder, or a copy of one. Sealed values are tried with the keys in it, past every
            fence and hold: as somebody would who stole the folder.
        progress: called with files done and files in all.
        places: keys to try instead of those in the folder.
        objects: the warehouse; what lies outside the folder is copied for the time of the scan.
        beside: further files, by the names that findings give them.
        out_of_reach: further places, which nobody looks into; the result says so.

    Raises:
        StorageFailed: the warehouse cannot be read.
        KeysError: the keys cannot be opened.
    """
    with tempfile.TemporaryDirectory(prefix="shredlake-scan-") as scratch:
        if places is None and (home / "keys" / "root.key").exists():
            places = embedded_places(home / "keys", create=False)
        keyring = open_forensic(places, Path(scratch)) if places is not None else None
        try:
            folders = [home]
            if objects is not None:
                folders.append(_copied(home, objects, Path(scratch) / "objects"))
            found: dict[SubjectId, Scanned] = {}
            for is_short in (False, True):
                some = [one for one in dict.fromkeys(subjects) if Needles(one).is_short == is_short]
                if some:
                    results = _Scan(home, some, keyring).run(folders, beside or {}, progress)
                    found |= zip(some, results, strict=True)
            return [evolve(found[one], out_of_reach=out_of_reach) for one in subjects]
        finally:
            if keyring is not None:
                keyring.close()


def _copied(home: Path, objects: ObjectStore, to: Path) -> Path:
    for number, (name, one) in enumerate(elsewhere(home, objects)):
        if not one.is_marker:
            path = to / name
            path.parent.mkdir(parents=True, exist_ok=True)
            objects.copy(one, path.with_stem(f"{path.stem}~{number}") if path.exists() else path)
    return to


class _Search:
    """One person who is looked for, and what is found."""

    def __init__(self, subject: SubjectId) -> None:
        self.said = subject.reveal()
        self.needles = Needles(subject)
        self.found: dict[Finding, None] = {}
        self._explained: dict[str, bool] = {}  # files whose values hold the id's bytes

    def name(self, name: str) -> None:
        """A path."""
        self.note(PATHS, "raw", self.needles.in_texts(name.replace("/", "\0")))

    def text(self, name: str, text: str) -> bool:
        """Decoded values of a container in clear; whether the id's own bytes stand in them."""
        self.note(name, "decoded", self.needles.in_texts(text))
        return self._count(text) > 0

    def container(self, name: str, raw: bytes, is_explained: bool) -> None:
        """Its bytes. Copies in an index or in statistics are explained by values, however many there are."""
        self._explained[name] = is_explained
        self.note(name, "raw", self._unexplained(raw, is_explained))

    def side_file(self, name: str, raw: bytes, database: str) -> None:
        """Of a database that was looked at before: names sort so."""
        self.note(name, "raw", self._unexplained(raw, self._explained[database]))

    def opened(self, name: str, one: OpenedValues) -> None:
        """Values behind keys, or in clear behind a container's own format."""
        label: str = one.whose(self.said) if one.count else ""
        how = "opened" if one.count else "decoded"
        self.note(name, how, self.needles.in_texts(one.text), label)
        is_explained = self.needles.count_in(one.raw) <= self._count(one.text)
        self.note(name, how, self._unexplained(one.raw, is_explained), label)

    def note(self, path: str, how: str, hits: Iterable[Hit], whose: str = "") -> None:
        """What was found somewhere."""
        for hit in hits:
            self.found[Finding(path, how, hit.form, whose, hit.is_whole)] = None

    def _count(self, text: str) -> int:
        """How often the id stands in values that follow each other without a gap."""
        return self.needles.count_in(text.replace("\0", "").encode("utf-8", "surrogateescape"))

    def _unexplained(self, raw: bytes, is_explained: bool) -> Iterator[Hit]:
        """Hits in undecoded bytes. Two values may make a word together, so nothing is asked of neighbours.

        Args:
            is_explained: where the id's own bytes stand there, they are those of decoded values.
        """
        for hit in self.needles.in_bytes(raw):
            if not (is_explained and hit.form.startswith("utf-8")):
                yield hit


class _Scan:
    """One look at every file, for people whose ids are all short or all not: see `values_of`."""

    def __init__(self, home: Path, subjects: Sequence[SubjectId], keyring: Keyring | None) -> None:
        self._searches = [_Search(one) for one in subjects]
        self._numbers = not self._searches[0].needles.is_short
        self._failures: dict[Failure, None] = {}
        self._databases = set[str]()
        self._opened = 0
        self._sealed: SealedFiles | None = None
        if keyring is not None:
            people = {one.reveal(): keyring.ref_of(one) for one in subjects}
            self._sealed = SealedFiles(LivingKeys(keyring), home, people, numbers=self._numbers)

    def run(
        self, folders: Sequence[Path], beside: Mapping[str, Path], progress: Callable[[int, int], None]
    ) -> list[Scanned]:
        """Every file below these folders and beside them, each once; what was found of each person."""
        paths = [
            (str(path.relative_to(one)), path)
            for one in folders
            for path in sorted(one.rglob("*"))
            if path.is_file()
        ]
        paths += beside.items()
        size = 0
        for at, (name, path) in enumerate(paths, start=1):
            size += self._file(path, name)
            progress(at, len(paths))
        return [
            Scanned(
                tuple(one for one in search.found if not one.is_apart),
                len(paths),
                size,
                self._opened,
                tuple(one for one in search.found if one.is_apart),
                tuple(self._failures),
                search.needles.not_searched(),
            )
            for search in self._searches
        ]

    def _file(self, path: Path, name: str) -> int:
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return 0  # a database's side file, or a swept one, gone since the folder was listed
        except OSError as error:
            self._failures[Failure(name, type(error).__name__)] = None
            return 0
        for search in self._searches:
            search.name(name)
        try:
            if raw[:4] == b"PAR1":
                self._table(path, name, raw)
            elif is_database(raw):
                self._database(path, name, raw)
            else:
                self._plain(path, name, raw)
        except _DAMAGE as error:
            if isinstance(error, KeysError) and error.retry_helps:
                raise
            if path.exists():
                for search in self._searches:
                    search.note(name, "raw", search.needles.in_bytes(raw))
                self._failures[Failure(name, type(error).__name__)] = None
        return len(raw)

    def _table(self, path: Path, name: str, raw: bytes) -> None:
        self._container(name, raw, parquet_values(path, numbers=self._numbers))
        self._opened_values(name, self._sealed.in_table(path) if self._sealed is not None else ())

    def _database(self, path: Path, name: str, raw: bytes) -> None:
        with opened_database(path) as db:
            self._container(name, raw, database_values(db, numbers=self._numbers))
            self._databases.add(name)
            self._opened_values(
                name, self._sealed.in_database(path.name, db) if self._sealed is not None else ()
            )

    def _container(self, name: str, raw: bytes, texts: Iterable[str]) -> None:
        explained = [False] * len(self._searches)
        for text in texts:
            for at, search in enumerate(self._searches):
                explained[at] |= search.text(name, text)
        for search, is_explained in zip(self._searches, explained, strict=True):
            search.container(name, raw, is_explained)

    def _opened_values(self, name: str, values: Iterable[OpenedValues]) -> None:
        for one in values:
            self._opened += one.count
            for search in self._searches:
                search.opened(name, one)

    def _plain(self, path: Path, name: str, raw: bytes) -> None:
        database = name.removesuffix("-wal").removesuffix("-journal")
        if database in self._databases:
            for search in self._searches:
                search.side_file(name, raw, database)
            return
        text = text_of(raw) if b"\0" not in raw and _is_utf8(raw) else None
        inner = list(unpacked_bytes(path, raw))
        for search in self._searches:
            needles = search.needles
            search.note(name, "raw", needles.in_texts(text) if text is not None else needles.in_bytes(raw))
            for one in inner:
                search.note(name, "decoded", needles.in_bytes(one))


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
