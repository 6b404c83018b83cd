"""Manifests: read as pyiceberg reads them, and none is carried on that lists no live file."""

from __future__ import annotations

from typing import Any

import pytest
from pyiceberg.table import Table

from lake import Housekeeping
from lake.manifests import entries_of, manifests_of
from service.runtime import Runtime
from tests.world import erase, paid, publish, send


def entries(table: Table) -> list[tuple[Any, ...]]:
    """What pyiceberg reads of every kept snapshot."""
    return [
        (snapshot.snapshot_id, one.snapshot_id, one.sequence_number, one.file_sequence_number, one.data_file)
        for snapshot in table.metadata.snapshots
        for manifest in snapshot.manifests(table.io)
        for one in manifest.fetch_manifest_entry(table.io, discard_deleted=True)
    ]


def test_no_snapshot_carries_a_manifest_without_a_live_file_but_those_of_its_own_deletions(
    world: Runtime,
) -> None:
    """However many files were replaced before: else every commit costs as much as there were before it."""
    send(world, [paid(f"p{n}", event_id=str(n), note="n") for n in range(8)])
    for n in range(6):
        publish(world)
        send(world, [paid(f"p{n + 6}", event_id=f"more-{n}")])
        erase(world, f"p{n}")
    for table in (world.lake.events, *world.lake.warehouse.tables("views")):
        loaded = table.load()
        for snapshot in loaded.metadata.snapshots:
            dead = [
                one
                for one in snapshot.manifests(loaded.io)
                if not (one.has_added_files() or one.has_existing_files())
            ]
            assert all(one.added_snapshot_id == snapshot.snapshot_id for one in dead)
            assert len(dead) <= 1


def test_manifests_are_read_as_pyiceberg_reads_them(world: Runtime) -> None:
    """Every entry of every kept snapshot of every table, with what it inherits from its manifest."""
    for n in range(3):
        send(world, [paid(f"p{m}", event_id=f"{n}-{m}") for m in range(4)])
        publish(world)
        erase(world, f"p{n}")
    for table in (world.lake.events, *world.lake.warehouse.tables("views")):
        loaded = table.load()
        ours = [
            (
                snapshot.snapshot_id,
                one.snapshot_id,
                one.sequence_number,
                one.file_sequence_number,
                one.data_file,
            )
            for snapshot in loaded.metadata.snapshots
            for manifest in manifests_of(loaded.io, snapshot)
            for one in entries_of(loaded.io, manifest)
        ]
        assert ours == entries(loaded)
        assert [one[4].lower_bounds for one in ours] == [one[4].lower_bounds for one in entries(loaded)]


def test_a_manifest_is_read_once_per_process(world: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at all snapshots again reads no file again."""
    send(world, [paid(f"p{m}", event_id=str(m)) for m in range(4)])
    erase(world, "p1")
    world.lake.events.kept_files()

    def refused(*_: object) -> None:
        raise AssertionError("a manifest was read again")

    monkeypatch.setattr("lake.manifests._RecordFile.__enter__", refused)
    assert world.lake.events.kept_files()
    assert world.lake.events.sequenced_files()
    Housekeeping(world.lake).orphans()
