"""A lake's folder in somebody's hands who has not its root file."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import polars as pl
import pytest

from keys import (
    EmbeddedCustodian,
    FieldContext,
    KeysError,
    RootMismatch,
    embedded_places,
    open_embedded,
    open_forensic,
)
from lake import HttpBatch
from lake.events import SEALED_FIELD_ID
from service.runtime import Runtime
from tests.world import compact_all, paid, publish, send

PERSON, NOTE, LETTER, WAITING = (
    "customer-ann-0001",
    "a note of hers",
    "a letter of hers",
    "what waits of hers",
)


@pytest.fixture
def stolen(world: Runtime, tmp_path: Path) -> Path:
    """A copy of all but the root file, of a lake with events, views, a letter and a batch that waits."""
    for number in range(2):  # one commit is sorted, one is not
        send(
            world,
            [paid(PERSON, event_id=f"id-{number}-of-hers", note=NOTE), paid("bob", event_id=f"b{number}")],
        )
        if number == 0:
            compact_all(world)
    world.lake.ingestor().run(HttpBatch([f'{{"broken": "{LETTER}"'.encode()], "k", world.lake.types))
    publish(world)
    world.lake.intake.put(json.dumps([paid(PERSON, event_id="w", note=WAITING)]).encode(), 1)
    copy = tmp_path / "stolen"
    shutil.copytree(world.home, copy, ignore=shutil.ignore_patterns("root.key*"))
    return copy


def cells(path: Path) -> list[bytes]:
    """What a file says: the values of a Parquet file, the bytes of any other."""
    if path.suffix != ".parquet":
        return [path.read_bytes()]
    rows = pl.read_parquet(path, hive_partitioning=False)
    return [
        value if isinstance(value, bytes) else str(value).encode()
        for column in rows.get_columns()
        for value in column.drop_nulls()
    ]


def test_a_stolen_folder_tells_no_personal_value(stolen: Path) -> None:
    """Neither events nor letters, views, requests or what waits; what is anonymous it does tell."""
    said = {path: cells(path) for path in stolen.rglob("*") if path.is_file()}
    assert any(b"s1" in value for values in said.values() for value in values), "an anonymous field"
    for secret in (PERSON, NOTE, LETTER, WAITING, "-of-hers"):
        assert [path for path, values in said.items() if any(secret.encode() in one for one in values)] == []


def test_no_root_of_a_thief_opens_a_stolen_folder(world: Runtime, stolen: Path, tmp_path: Path) -> None:
    """Neither a new one nor one that passes itself off as the lake's."""
    rows = pl.concat(
        pl.read_parquet(path, hive_partitioning=False)
        for path in (stolen / "lake" / "warehouse" / "lake").rglob("*.parquet")
    ).filter(pl.col("event_type") == "Paid")
    context = FieldContext(
        world.lake.events.metadata().table_uuid.bytes, SEALED_FIELD_ID, "personal", "service", "Paid", 1
    )
    sealed = rows["subject_ref"].to_list(), rows["block_id"].to_list(), rows["sealed"].to_list()
    assert len(world.keyring.opener().open(context, *sealed)) > 2, "with the lake's own root they open"
    with pytest.raises(RootMismatch):
        open_embedded(stolen / "keys")
    path = stolen / "keys" / "root.key"
    EmbeddedCustodian(path).rotate()  # to the version that the lake's root is at
    with sqlite3.connect(stolen / "keys" / "pages.db") as db:
        ((root_id,),) = db.execute("SELECT value FROM meta WHERE name = 'root_id'")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"root_id": root_id}))
    (tmp_path / "scratch").mkdir()
    with pytest.raises(KeysError):
        open_forensic(embedded_places(stolen / "keys", create=False), tmp_path / "scratch").opener().open(
            context, *sealed
        )
