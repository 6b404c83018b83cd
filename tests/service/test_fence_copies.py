"""Copies of the fence log in a second place: a file, and an object of a real S3 store."""

from __future__ import annotations

import fcntl
import json
import sqlite3
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tomli_w
from attrs import frozen
from typer.testing import CliRunner

from infra.process import free_port
from infra.s3 import BUCKET
from keys import FenceCopyInvalid, RestoreGateClosed, SubjectId, export_fences, import_fences
from lake import get_bytes, put_bytes
from purge import Status
from service.cli import app
from service.doctor import Finding, examine
from service.errors import BadInput, FenceCopyNotWritten
from service.fencecopies import FenceCopies
from service.jobs import export_fence_copies, run_job
from service.runtime import Runtime, initialise, open_runtime
from service.settings import Job
from tests.lake.far import s3_properties
from tests.servers import Stores
from tests.world import PAID, VIEWS, erase, paid, send


@frozen
class Copied:
    """A lake with one copy of its fences at a place."""

    runtime: Runtime
    place: str
    properties: dict[str, str]

    def read(self) -> bytes:
        """What lies at the place."""
        found = get_bytes(self.place, self.properties)
        assert found is not None
        return found

    def put(self, body: bytes) -> None:
        """Lays something else there."""
        put_bytes(self.place, body, self.properties)

    def finding(self) -> Finding:
        """What `doctor` says of it."""
        (found,) = [one for one in examine(self.runtime) if one.check == f"fence copy {self.place}"]
        return found


@pytest.fixture(params=["file", "s3"])
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Copied]:
    """A lake with three people."""
    properties: dict[str, str] = {}
    place = str(tmp_path / "elsewhere" / "fences.jsonl")
    (tmp_path / "elsewhere").mkdir()
    if request.param == "s3":
        properties = s3_properties(request.getfixturevalue("stores"))
        place = f"s3://{BUCKET}/copies/{uuid.uuid4().hex}.jsonl"
    with open_with(tmp_path, [place], properties) as runtime:
        yield Copied(runtime, place, properties)


def open_with(folder: Path, places: list[str], properties: dict[str, str]) -> Runtime:
    """A lake whose settings name these places."""
    home = folder / "lake"
    home.mkdir()
    document = {
        "projections": {"files": [str(VIEWS)]},
        "lake": {"properties": properties},
        "keys": {"fence_copies": places},
    }
    (home / "shredlake.toml").write_text(tomli_w.dumps(document))
    initialise(home)
    runtime = open_runtime(home)
    runtime.lake.types.register(PAID)
    send(runtime, [paid(who, event_id=who) for who in ("ann", "bob", "cid")])
    return runtime


def test_every_erasure_brings_its_fence_to_the_copy(copied: Copied) -> None:
    """The journal says so, `doctor` agrees, and an empty log gets everything back from it."""
    assert (copied.finding().level, "not there" in copied.finding().text) == ("warning", True)
    for number, who in enumerate(("ann", "bob"), start=1):
        request = copied.runtime.purge.journal.get(erase(copied.runtime, who))
        assert request.detail("fenced")["fence_copies"] == {copied.place: "written"}
        assert copied.finding().level == "ok"
        assert f"all {number} fence(s)" in copied.finding().text
    keyring = copied.runtime.keyring
    merged = import_fences(copied.read(), keyring.fences, keyring.custodian.public_keys())
    assert (merged.fences, merged.added) == (2, 0)


def test_a_copy_that_was_cut_or_edited_is_an_error_and_an_older_one_lags(copied: Copied) -> None:
    """Each is told apart, with its lag in fences; the job writes a whole one again."""
    erase(copied.runtime, "ann")
    older = copied.read()
    erase(copied.runtime, "bob")
    newest = copied.read()
    for bad in (
        newest[:-40],
        newest.replace(b'"purpose": "*"', b'"purpose": "x"'),
        b"",
        newest[: len(newest) // 2],
    ):
        copied.put(bad)
        assert copied.finding().level == "error"
    copied.put(older)
    assert (copied.finding().level, "ends at fence 1, 1 behind" in copied.finding().text) == ("warning", True)
    assert run_job(copied.runtime, Job(name="n", cron="* * * * *", action="export_fences")).endswith(
        "written"
    )
    assert copied.finding().level == "ok"


def test_an_authorised_return_that_the_copy_lacks_is_a_lag(copied: Copied) -> None:
    """It came after the last fence."""
    erase(copied.runtime, "ann")
    copied.runtime.keyring.authorize_return(SubjectId("ann"))
    assert copied.finding().level == "warning"
    copied.runtime.fence_copies.write()
    assert copied.finding().level == "ok"


def test_a_copy_that_knows_of_one_more_return_is_not_overwritten(copied: Copied) -> None:
    """The log had no fence to lose; a person who was let back in would be refused."""
    keyring = copied.runtime.keyring
    erase(copied.runtime, "ann")
    older = keyring.fences.returns()
    keyring.authorize_return(SubjectId("ann"))
    copied.runtime.fence_copies.write()
    newest = copied.read()
    with sqlite3.connect(copied.runtime.home / "evidence" / "fences.db") as db:
        db.execute("DELETE FROM authorized_returns")
    assert keyring.fences.returns() == older
    with pytest.raises(FenceCopyNotWritten, match="1 authorised return"):
        export_fence_copies(copied.runtime)
    assert copied.read() == newest
    assert copied.finding().level == "warning"
    assert import_fences(newest, keyring.fences, keyring.custodian.public_keys()).returns_added == 1
    export_fence_copies(copied.runtime)
    assert copied.finding().level == "ok"


def test_an_older_log_does_not_overwrite_the_copy_that_can_mend_it(copied: Copied, tmp_path: Path) -> None:
    """Whether it has only lost fences, or has gone on with others since."""
    erase(copied.runtime, "ann")
    fences = copied.runtime.home / "evidence" / "fences.db"
    copied.runtime.keyring.fences._db.flush_deleted()
    before = fences.read_bytes()
    erase(copied.runtime, "bob")
    newest = copied.read()
    copied.runtime.close()
    for side in ("", "-wal", "-shm"):
        fences.with_name(fences.name + side).unlink(missing_ok=True)
    fences.write_bytes(before)
    with open_runtime(copied.runtime.home) as restored:
        assert restored.keyring.epoch() == 1
        with pytest.raises(RestoreGateClosed, match="the signed copy"):
            run_job(restored, Job(name="n", cron="* * * * *", action="export_fences"))
        (told,) = restored.fence_copies.write().values()
        assert "1 fence(s) more than the log here" in told
        log = restored.keyring.fences
        log.append([(b"s" * 16, b"r" * 16, "*", 1)], "r9")
        (told,) = restored.fence_copies.write().values()
        assert "another history" in told
        assert copied.read() == newest != export_fences(log, restored.keyring.custodian)


def test_a_copy_that_cannot_be_written_does_not_stop_an_erasure(tmp_path: Path) -> None:
    """It is named in the journal and by `doctor`; the other place has it."""
    lost, kept = str(tmp_path / "not mounted" / "fences.jsonl"), str(tmp_path / "fences.jsonl")
    with open_with(tmp_path, [lost, kept], {}) as runtime:
        request = runtime.purge.journal.get(erase(runtime, "ann"))
        assert request.status is Status.COMPLETED
        told = request.detail("fenced")["fence_copies"]
        assert told == {lost: "not written: StorageFailed", kept: "written"}
        found = {one.check: one for one in examine(runtime)}
        assert "is not there, 1 fence(s) behind" in found[f"fence copy {lost}"].text
        assert found[f"fence copy {kept}"].level == "ok"


def test_a_copy_out_of_reach_shuts_the_gate_only_where_no_other_can_be_read(tmp_path: Path) -> None:
    """One that was edited shuts it whatever the other says."""
    first, second = tmp_path / "a" / "fences.jsonl", tmp_path / "b" / "fences.jsonl"
    for one in (first, second):
        one.parent.mkdir()
    home = tmp_path / "lake"
    with open_with(tmp_path, [str(first), str(second)], {}) as runtime:
        erase(runtime, "ann")
        assert first.read_bytes().splitlines()[:2] == second.read_bytes().splitlines()[:2]
    first.parent.rename(tmp_path / "a-away")
    first.parent.write_text("no folder: nothing below it can be read")
    with open_runtime(home) as runtime:
        assert runtime.keyring.gate().is_open
        found = {one.check: one for one in examine(runtime)}
        assert found[f"fence copy {first}"].level == "warning"
        assert found["restore gate"].level == "ok"
        whole = second.read_bytes()
        second.write_bytes(whole.replace(b'"generation": 1', b'"generation": 0', 1))
        with pytest.raises(FenceCopyInvalid, match="cut or edited"):
            runtime.keyring.gate()
        second.unlink()
        with pytest.raises(FenceCopyInvalid, match="cannot be read"):
            runtime.keyring.gate()
        assert {one.check: one for one in examine(runtime)}[f"fence copy {first}"].level == "error"
        second.write_bytes(whole)
        assert runtime.keyring.gate().is_open


def test_a_process_goes_on_with_what_a_store_said_before_its_outage(stores: Stores, tmp_path: Path) -> None:
    """One that starts meanwhile cannot know, where the store holds the only copy."""
    properties, place = s3_properties(stores), f"s3://{BUCKET}/copies/{uuid.uuid4().hex}.jsonl"
    with open_with(tmp_path, [place], properties) as runtime:
        erase(runtime, "ann")
        reached, now, keyring = dict(properties), [0.0], runtime.keyring
        running = FenceCopies(keyring, [place], reached, tmp_path / "lock", clock_seconds=lambda: now[0])
        assert keyring.gate(running.witnesses()).is_open
        reached["s3.endpoint"] = f"http://127.0.0.1:{free_port()}"
        now[0] += 3600
        assert keyring.gate(running.witnesses()).is_open
        assert [one.epoch for ask in running.witnesses() if (one := ask())] == [1]
        starting = FenceCopies(keyring, [place], reached, tmp_path / "lock")
        with pytest.raises(FenceCopyInvalid, match="cannot be read"):
            keyring.gate(starting.witnesses())


def test_an_older_log_never_follows_a_newer_one(tmp_path: Path) -> None:
    """Who writes waits for the other, and looks at the log after that."""
    place = tmp_path / "fences.jsonl"
    with open_with(tmp_path, [str(place)], {}) as runtime, ThreadPoolExecutor(1) as pool:
        erase(runtime, "ann")
        with (runtime.home / "purge" / "locks" / "fence-copies").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            writing = pool.submit(runtime.fence_copies.write)
            with pytest.raises(TimeoutError):
                writing.result(timeout=0.5)
            runtime.keyring.fences.append([(b"s" * 16, b"r" * 16, "*", 1)], "r9")
        assert writing.result(timeout=60) == {str(place): "written"}
        assert json.loads(place.read_bytes().splitlines()[0])["fences"] == 2


def test_the_command_writes_every_place_or_the_one_it_is_given(tmp_path: Path) -> None:
    """It fails where one cannot be written, and names it."""
    first, second, third = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    with open_with(tmp_path, [str(first), str(second)], {}) as runtime:
        erase(runtime, "ann")
    whole = first.read_bytes()
    for one in (first, second):
        one.unlink()
    command = ["--home", str(tmp_path / "lake"), "keys", "export-fences"]
    assert CliRunner().invoke(app, [*command, str(third)]).exit_code == 0
    assert (third.read_bytes(), first.exists()) == (whole, False)
    assert CliRunner().invoke(app, command).exit_code == 0
    assert first.read_bytes() == second.read_bytes() == whole
    third.write_bytes(whole[:-40])
    failed = CliRunner().invoke(app, [*command, str(third)])
    assert isinstance(failed.exception, FenceCopyInvalid)
    missing = CliRunner().invoke(app, [*command, str(tmp_path / "nowhere" / "d.jsonl")])
    assert isinstance(missing.exception, FenceCopyNotWritten)
    assert "nowhere" in str(missing.exception)


def test_a_copy_in_a_store_comes_back_by_command_and_a_bad_one_does_not(
    stores: Stores, tmp_path: Path
) -> None:
    """Written to S3 and brought back into an empty log; cut, edited or absent it changes nothing."""
    properties, place = s3_properties(stores), f"s3://{BUCKET}/copies/{uuid.uuid4().hex}.jsonl"
    with open_with(tmp_path, [], properties) as runtime:
        for who in ("ann", "bob"):
            erase(runtime, who)
        fences = runtime.home / "evidence" / "fences.db"
        whole_log = runtime.keyring.fences.all()
    command = ["--home", str(tmp_path / "lake"), "--output", "json", "keys"]
    exported = CliRunner().invoke(app, [*command, "export-fences", place])
    assert json.loads(exported.stdout) == {"fences": 2, "copies": {place: "written"}}
    whole = get_bytes(place, properties)
    assert whole is not None
    with sqlite3.connect(fences) as db:
        db.execute("DELETE FROM fences WHERE epoch = 2")
    head, _, *rest = whole.splitlines(keepends=True)
    for bad in (
        whole[: len(whole) // 2],
        b"".join([head, *rest]),
        whole.replace(b'"generation": 1', b'"generation": 0', 1),
        b"",
    ):
        put_bytes(place, bad, properties)
        refused = CliRunner().invoke(app, [*command, "import-fences", place])
        assert isinstance(refused.exception, FenceCopyInvalid)
        with sqlite3.connect(fences) as db:
            assert db.execute("SELECT MAX(epoch) FROM fences").fetchone() == (1,)
    put_bytes(place, whole, properties)
    merged = CliRunner().invoke(app, [*command, "import-fences", place])
    assert json.loads(merged.stdout) == {"fences": 2, "added": 1, "returns_added": 0}
    with open_runtime(tmp_path / "lake") as runtime:
        assert runtime.keyring.fences.all() == whole_log
        assert runtime.keyring.gate().is_open
    absent = CliRunner().invoke(app, [*command, "import-fences", f"{place}.none"])
    assert isinstance(absent.exception, BadInput)
