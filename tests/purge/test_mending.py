"""A lake whose states held their neighbours' bytes: what opening it does, and that every receipt says so."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from typer.testing import CliRunner

import projections.state
import purge.verifier
from keys import (
    Effects,
    FenceLog,
    KeyRecordMissing,
    Keyring,
    KeysError,
    LeaseBook,
    SqlitePageStore,
    SubjectId,
)
from keys.embedded import EmbeddedCustodian
from projections.compute import BUCKET, Partial
from purge import settle_retired_states, verifier_keys
from service.cli.main import app
from service.doctor import states_finding
from service.runtime import Runtime, initialise, open_runtime
from tests.world import PAID, erase, paid, publish, send

NOTES = """
import polars as pl
from projections import Last, Projection

class Notes(Projection):
    name = "notes"
    reads = {"Paid": ["note"]}
    keys = {"subject_ref": pl.col("subject_ref")}
    state = {"note": Last(pl.col("note"))}
"""
PEOPLE = [f"customer-{number:02d}" for number in range(24)]


def note(person: str) -> str:
    """What only this person's events say."""
    return f"said by {person}"


def old_bodies(partial: Partial, buckets: Sequence[int]) -> list[bytes]:
    """Layout 1: a slice of one Arrow table per bucket, as an IPC stream."""

    def split(frame: pl.DataFrame) -> list[bytes]:
        ordered = frame.sort(BUCKET)
        table, column = ordered.to_arrow(), ordered[BUCKET].to_numpy()
        starts = np.searchsorted(column, list(buckets), side="left").tolist()
        ends = np.searchsorted(column, list(buckets), side="right").tolist()
        return [block(table.slice(a, b - a)) for a, b in zip(starts, ends, strict=True)]

    def block(table: pa.Table) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        body = sink.getvalue().to_pybytes()
        return len(body).to_bytes(8, "big") + body

    frames = (partial.rows, partial.tags, partial.counts)
    return [b"".join(parts) for parts in zip(*map(split, frames), strict=True)]


def old_state(bodies: Sequence[bytes]) -> Partial:
    """Reads layout 1."""
    tables: list[list[pa.Table]] = [[], [], []]
    for body in bodies:
        at = 0
        for kind in tables:
            size = int.from_bytes(body[at : at + 8], "big")
            kind.append(pa.ipc.open_stream(body[at + 8 : at + 8 + size]).read_all())
            at += 8 + size
    frames = [pl.from_arrow(pa.concat_tables(kind)) for kind in tables]
    return Partial(*frames)  # type: ignore[arg-type]


@pytest.fixture
def old_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str, str]:
    """A lake of before, with a completed erasure: its folder, who was erased, and the receipt."""
    code = tmp_path / "notes.py"
    code.write_text(NOTES)
    home = tmp_path / "lake"
    initialise(home, [code])
    with monkeypatch.context() as before, open_runtime(home) as runtime:
        before.setattr(projections.state, "state_bodies", old_bodies)
        before.setattr(projections.state, "state_of", old_state)
        runtime.lake.types.register(PAID)
        send(runtime, [paid(one, event_id=one, note=note(one)) for one in PEOPLE])
        publish(runtime)
        own = {one: runtime.keyring.ref_of(SubjectId(one)) for one in PEOPLE}
        bodies = {place: body for place, _, body in opened(runtime)}
        erased = next(
            one
            for one in PEOPLE
            if any(note(one).encode() in body and at[1] != own[one][0] for at, body in bodies.items())  # type: ignore[index]
        )
        receipt = erase(runtime, erased)
    with sqlite3.connect(home / "views" / "states.db") as db:
        db.execute("DROP TABLE layout")  # as the files of before are
    return home, erased, receipt


def stored(home: Path) -> list[tuple[str, int, bytes, bytes]]:
    """Version, bucket, handle and sealed body of every state."""
    with contextlib.closing(sqlite3.connect(home / "views" / "states.db")) as db:
        return db.execute("SELECT version, bucket, ref, parts FROM states").fetchall()


def opened(
    runtime: Runtime, rows: Sequence[tuple[str, int, bytes, bytes]] | None = None
) -> list[tuple[tuple[str, int], bytes, bytes]]:
    """Place, handle and plaintext of states, with the keys of now."""
    rows = stored(runtime.home) if rows is None else rows
    places = [f"{version}/{bucket}".encode() for version, bucket, _, _ in rows]
    found = runtime.keyring.opener().open(
        projections.state.STATE_CONTEXT, [row[2] for row in rows], places, [row[3] for row in rows]
    )
    return [
        ((row[0], row[1]), row[2], body)
        for row, body in zip(rows, found, strict=True)
        if isinstance(body, bytes)
    ]


def agent(home: Path, effects: Effects | None = None) -> Runtime:
    """Opened as the role that may not close an epoch: what is owed stays owed."""
    return open_runtime(home, role="agent", effects=effects)


def test_old_states_that_held_an_erased_persons_bytes_are_unreadable_once_the_lake_was_opened(
    old_lake: tuple[Path, str, str], tmp_path: Path
) -> None:
    """Before: today's keys open them, after a receipt. After: neither with the keys, nor with a copy of the key
    pages and today's root; and the views are whole when they are built again."""
    home, erased, _ = old_lake
    rows = stored(home)
    thief = tmp_path / "thief"
    shutil.copytree(home / "keys", thief)
    shutil.copy(home / "evidence" / "fences.db", thief)
    with contextlib.closing(keys_of(thief)) as keyring:
        found = keyring.opener().open(
            projections.state.STATE_CONTEXT,
            [row[2] for row in rows],
            [f"{row[0]}/{row[1]}".encode() for row in rows],
            [row[3] for row in rows],
        )
    assert any(note(erased).encode() in body for body in found if isinstance(body, bytes)), "the old fault"
    with open_runtime(home) as runtime:
        assert stored(home) == []
        for row in rows:
            with pytest.raises(KeyRecordMissing):
                opened(runtime, [row])
        shutil.copy(home / "keys" / "root.key", thief / "root.key")
        with pytest.raises(KeysError):
            keys_of(thief)
        publish(runtime)
        assert sorted(runtime.views.as_reported("notes").rows["note"]) == sorted(
            note(one) for one in PEOPLE if one != erased
        )
        assert not [at for at, _, body in opened(runtime) if note(erased).encode() in body]


def keys_of(folder: Path) -> Keyring:
    """The keys of a copied folder, under whatever root file lies in it."""
    custodian = EmbeddedCustodian(folder / "root.key")
    return Keyring(
        custodian,
        SqlitePageStore(folder / "pages.db"),
        FenceLog(folder / "fences.db", custodian.secret("fence"), lambda: datetime.now(UTC)),
        LeaseBook(folder / "leases.db"),
    )


def test_each_receipt_of_before_has_a_supplement_that_the_single_file_verifies(
    old_lake: tuple[Path, str, str], tmp_path: Path
) -> None:
    """A signed leaf of the log, shown and exported beside its receipt, and a receipt of later has none."""
    home, erased, receipt = old_lake
    with open_runtime(home) as runtime:
        later = erase(runtime, next(one for one in PEOPLE if one != erased))
        assert [one.receipt_id for one in runtime.supplements.all()] == [receipt]
        (tmp_path / "key").write_text(verifier_keys(runtime.keyring.custodian.public_keys().values()))
        assert states_finding(runtime.views.states.retired(), 1).level == "note"
    run = CliRunner().invoke
    exported = run(app, ["--home", str(home), "receipt", "export", receipt, "--to", str(tmp_path / "r.json")])
    assert exported.exit_code == 0, exported.output
    script = tmp_path / "verifier.py"
    shutil.copy(purge.verifier.__file__, script)
    supplement = tmp_path / "r.supplement-1.json"
    for file, said in ((tmp_path / "r.json", "receipt"), (supplement, "supplement to receipt")):
        told = subprocess.run(
            [sys.executable, "-I", script, file, tmp_path / "key"], capture_output=True, text=True, check=True
        )
        assert told.stdout.startswith(f"VERIFIED: {said} {receipt}")
    changed = supplement.read_text().replace("a", "b", 1)
    (tmp_path / "changed.json").write_text(changed)
    refused = [sys.executable, "-I", script, tmp_path / "changed.json", tmp_path / "key"]
    assert subprocess.run(refused, capture_output=True).returncode == 1
    shown = json.loads(run(app, ["--home", str(home), "--output", "json", "receipt", "show", receipt]).stdout)
    (stated,) = shown["supplements"]
    assert erased not in json.dumps(stated)
    assert note(erased) not in json.dumps(stated)
    assert stated["predicate"]["level"]["E1"]["since"] > shown["predicate"]["level"]["E1"]["since"]
    alone = run(app, ["--home", str(home), "receipt", "export", receipt, "--supplement", "1"])
    assert json.loads(alone.stdout)["envelope"] == json.loads(supplement.read_text())["envelope"]
    assert "supplements" not in json.loads(
        run(app, ["--home", str(home), "--output", "json", "receipt", "show", later]).stdout
    )


class Killed(BaseException):
    """Stands for the end of a process."""


def test_a_kill_at_any_effect_leaves_what_is_owed_to_the_next_opening(
    old_lake: tuple[Path, str, str],
) -> None:
    """Before and after each; in the end no key is left, one supplement is there, and nothing is owed."""
    home, _, receipt = old_lake
    pristine = home.with_name("pristine")
    shutil.copytree(home, pristine)
    rows, tried = stored(home), 0
    for when in ("before", "after"):
        killed = True
        while killed:
            tried += 1
            killed = False
            shutil.rmtree(home)
            shutil.copytree(pristine, home)
            count = 0

            def kill(at: str, _: str, *, number: int = tried, when: str = when) -> None:
                nonlocal count, killed
                count += at == when
                if count == number and not killed:
                    killed = True
                    raise Killed

            with contextlib.suppress(Killed):
                agent(home, Effects(kill)).close()  # the opening itself, which lets go of the states
            with agent(home, Effects(kill)) as runtime:
                with contextlib.suppress(Killed):
                    settle(runtime)
                settle(runtime)
                assert stored(home) == []
                assert runtime.views.states.retired() is None
                assert [one.receipt_id for one in runtime.supplements.all()] == [receipt]
                assert not list(runtime.keyring.tree.records_of([row[2] for row in rows]))
            assert (home / "keys" / "root.key").read_bytes() != (pristine / "keys" / "root.key").read_bytes()
        assert tried > 6, "as many effects there are at least"
        tried = 0


def settle(runtime: Runtime) -> int | None:
    """What an opening as the purge role does."""
    return settle_retired_states(
        runtime.views.states,
        runtime.keyring,
        runtime.purge.journal,
        runtime.supplements,
        runtime.lake.clock,
    )


def test_a_lake_of_now_owes_nothing_and_rotates_nothing(
    old_lake: tuple[Path, str, str],
) -> None:
    """The second opening of the same lake is one of them."""
    home, _, _ = old_lake
    open_runtime(home).close()
    root = (home / "keys" / "root.key").read_bytes()
    with open_runtime(home) as runtime:
        assert settle(runtime) is None
        assert len(runtime.supplements.all()) == 1
    assert (home / "keys" / "root.key").read_bytes() == root


def test_while_something_is_owed_doctor_says_what_to_do() -> None:
    """An error with the way out; a note once receipts have supplements; else in order."""
    assert states_finding(7, 0).level == "error"
    assert "restore gate" in states_finding(7, 0).text
    assert [states_finding(None, n).level for n in (0, 2)] == ["ok", "note"]
