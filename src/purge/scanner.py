"""The byte scanner: can a person be found in a lake's files, by anyone who has all of them?

It looks three ways: at the raw bytes of every file; inside containers (Parquet, Avro, gzip, SQLite) after
decompression; and inside every sealed value that the keys found in the very same folder open. It looks
for the id in many encodings. Only places are reported, never what was found.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow.parquet as pq
import zstandard
from attrs import frozen

from keys import (
    FieldContext,
    KeyPlaces,
    Keyring,
    KeysError,
    Opener,
    SubjectId,
    embedded_places,
    open_forensic,
)
from lake import ObjectStore, waiting_bodies
from purge.inventory import elsewhere

_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_INTAKE: Final = "intake.db"
_CHUNK_BYTES: Final = 8 * 1024 * 1024


@frozen
class Finding:
    """Where a person was found.

    Attributes:
        path: below the scanned folder.
        how: `raw`, `decoded` (inside a container) or `opened` (behind a key that is in the folder).
        encoding: which form of the id it was.
    """

    path: str
    how: str
    encoding: str


@frozen
class Scanned:
    """Result of a scan: findings, and how much was looked at."""

    findings: tuple[Finding, ...]
    files: int
    bytes: int
    opened_values: int


def needles(subject: SubjectId) -> dict[str, bytes]:
    """The id in every encoding that is looked for, by the encoding's name."""
    raw = subject.reveal().encode()
    found = {
        "utf-8": raw,
        "utf-16-le": subject.reveal().encode("utf-16-le"),
        "utf-16-be": subject.reveal().encode("utf-16-be"),
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
    }
    for shift in range(3):
        # What any base64 text that contains the id must contain, whatever stands before and after it:
        # the characters whose six bits are all the id's.
        text = base64.b64encode(b"\0" * shift + raw)
        found[f"base64+{shift}"] = text[(0, 2, 3)[shift] : 8 * (shift + len(raw)) // 6]
    for name in ("md5", "sha1", "sha256"):
        digest = hashlib.new(name, raw).digest()
        found[name] = digest
        found[f"{name}-hex"] = digest.hex().encode()
        found[f"{name}-16"] = digest[:16]
    return {name: value for name, value in found.items() if len(value) >= 6}


def scan(
    home: Path,
    subject: SubjectId,
    progress: Callable[[int], None] = lambda files: None,
    places: KeyPlaces | None = None,
    objects: ObjectStore | None = None,
) -> Scanned:
    """Scans every file below a folder, and every object of a warehouse elsewhere in all its versions.

    Args:
        home: a lake's folder, or a copy of one. Sealed values are tried with the keys in it, past every
            fence: as somebody would who stole the folder.
        places: keys to try instead of those in the folder.
        objects: the warehouse; what lies outside the folder is copied for the time of the scan.

    Raises:
        StorageFailed: the warehouse cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="shredlake-scan-") as scratch:
        if places is None and (home / "keys" / "root.key").exists():
            places = embedded_places(home / "keys", create=False)
        keyring = open_forensic(places, Path(scratch)) if places is not None else None
        try:
            folders = [home]
            if objects is not None:
                folders.append(_copied(home, objects, Path(scratch) / "objects"))
            return _scan(folders, subject, keyring, progress)
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


def _scan(
    folders: Sequence[Path], subject: SubjectId, keyring: Keyring | None, progress: Callable[[int], None]
) -> Scanned:
    wanted = needles(subject)
    findings: dict[Finding, None] = {}
    files = total = opened = 0
    for home, path in [(one, p) for one in folders for p in sorted(one.rglob("*")) if p.is_file()]:
        if not path.exists():
            continue  # a database's side file, gone since the folder was listed
        files += 1
        total += path.stat().st_size
        relative = str(path.relative_to(home))
        for name in _hits(relative.encode(), wanted):
            findings[Finding("(a path)", "raw", name)] = None
        for how, text in _texts(path):
            for name in _hits(text, wanted):
                findings[Finding(relative, how, name)] = None
        if keyring is not None and (path.suffix == ".parquet" or path.name == _INTAKE):
            opening = waiting_bodies if path.name == _INTAKE else _opened
            for body in opening(path, keyring):
                opened += 1
                for name in _hits(body, wanted):
                    findings[Finding(relative, "opened", name)] = None
        progress(files)
    return Scanned(tuple(findings), files, total, opened)


def _hits(text: bytes, wanted: dict[str, bytes]) -> Iterator[str]:
    return (name for name, needle in wanted.items() if needle in text)


def _texts(path: Path) -> Iterator[tuple[str, bytes]]:
    raw = path.read_bytes()
    yield "raw", raw
    if raw[:4] == b"PAR1":
        yield from (("decoded", text) for text in _parquet_texts(path))
    elif raw[:4] == b"Obj\x01":
        yield "decoded", _avro_text(raw)
    elif raw[:2] == b"\x1f\x8b":
        yield "decoded", gzip.decompress(raw)
    elif raw[:4] == _ZSTD:
        yield "decoded", zstandard.ZstdDecompressor().decompress(raw, max_output_size=1 << 30)


def _parquet_texts(path: Path) -> Iterator[bytes]:
    unpack = zstandard.ZstdDecompressor()
    for batch in pq.ParquetFile(path).iter_batches():
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        for column in frame.iter_columns():
            if column.dtype == pl.Binary:
                values = [v for v in column.to_list() if v is not None]
                yield b"\0".join(unpack.decompress(v) if v[:4] == _ZSTD else v for v in values)
            else:
                yield "\0".join(column.cast(pl.String).drop_nulls().to_list()).encode()


def _avro_text(raw: bytes) -> bytes:
    """Every deflate, gzip or zstd stream of an Avro container, decompressed; the rest as it is."""
    out = []
    marker = raw[-16:]
    for part in raw.split(marker):
        for start in range(min(len(part), 12)):
            for window in (-15, 31):
                try:
                    out.append(zlib.decompressobj(window).decompress(part[start:]))
                except zlib.error:
                    continue
    return b"\0".join(out)


def _opened(path: Path, keyring: Keyring) -> Iterator[bytes]:
    """Every sealed value of a data file that the keyring opens."""
    frame = pl.read_parquet(path, hive_partitioning=False)
    if "sealed" not in frame.columns:
        return
    opener = keyring.opener()
    if "event_type" in frame.columns:
        keys = ("event_type", "schema_version", "facet")
        for (name, version, facet), rows in frame.drop_nulls("sealed").group_by(*keys):
            purpose = str(facet).partition("/")[2]
            context = FieldContext(_table_uuid(path), 16, "personal", purpose, str(name), int(str(version)))
            yield from _open_each(opener, context, rows, "block_id")
        return
    table = _table_folder(path)
    context = FieldContext(_table_uuid(path), 3, "view", "service", f"views.{table.name}", 1)
    yield from _open_each(opener, context, frame, "row_id")


def _open_each(opener: Opener, context: FieldContext, rows: pl.DataFrame, place: str) -> Iterator[bytes]:
    """One by one: what does not open with what lies here must not hide what does."""
    for ref, block_id, envelope in rows.select("subject_ref", place, "sealed").iter_rows():
        try:
            body = opener.open(context, [ref], [block_id], [envelope])[0]
        except KeysError:
            continue
        if isinstance(body, bytes):
            yield body


def _table_folder(path: Path) -> Path:
    return next(parent for parent in path.parents if (parent / "metadata").is_dir())


def _table_uuid(path: Path) -> bytes:
    newest = max((_table_folder(path) / "metadata").glob("*.metadata.json"))
    return bytes.fromhex(json.loads(newest.read_bytes())["table-uuid"].replace("-", ""))
