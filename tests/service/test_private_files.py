"""Whatever the umask and whoever made the folder, nobody else can read or write what a lake holds."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import tomli_w
from fastapi.testclient import TestClient

from lake.kafkaprogress import Progress
from service import privatefiles
from service.app import create_app
from service.doctor import examine
from service.privatefiles import keep_private, open_to_others
from service.runtime import initialise, log_to_file, open_runtime
from service.settings import AgentUsers
from tests.command import command
from tests.world import PAID, VIEWS, compact_all, erase, paid, publish, send


@pytest.fixture
def open_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator's process that lets everybody in, as some containers and init systems do."""
    monkeypatch.setattr(privatefiles, "_given_mask", [])
    os.umask(0)


@pytest.mark.usefixtures("open_mask")
def test_every_file_and_folder_of_a_used_lake_is_private_under_an_open_umask_in_an_open_folder(
    tmp_path: Path,
) -> None:
    """Every store: keys, fences, tables of events and views, states, journal, log, spool, letters, logs."""
    home = tmp_path / "lake"
    home.mkdir(mode=0o777)
    (home / "shredlake.toml").write_text(tomli_w.dumps({"projections": {"files": [str(VIEWS)]}}))
    (home / "shredlake.toml").chmod(0o600)
    initialise(home)
    os.umask(0)
    events = tmp_path / "events.jsonl"
    people = ("ann", "bob", "cy")
    lines = [json.dumps(paid(who, event_id=who, note=f"of {who}")) for who in people]
    events.write_text("\n".join([*lines, "{"]) + "\n")
    with open_runtime(home) as runtime:
        runtime.lake.types.register(PAID)
        runtime.lake.consumers.note("one", Progress(0, 0, 0, 0, 0, 0, 0, None))
    assert command(home, "ingest", "file", str(events)).returncode == 3
    with open_runtime(home) as runtime:
        log_to_file(home)
        headers = {"Authorization": f"Bearer {runtime.token}"}
        with TestClient(create_app(runtime), headers=headers) as client:
            body = json.dumps([paid("dee", event_id="d")])
            assert client.post("/v1/events", content=body).status_code < 300
        publish(runtime)
        send(runtime, [paid("ann", event_id="late")])
        compact_all(runtime)
        receipt_id = erase(runtime, "ann")
        publish(runtime)
        seen = [Path(folder) / one for folder, folders, files in os.walk(home) for one in (*folders, *files)]
        assert len(seen) > 60
        assert [one for one in seen if stat.S_IMODE(one.lstat().st_mode) & 0o077] == []
        checked = {one.check: one.level for one in examine(runtime)}
        assert (checked["mode of the lake's folder"], checked["modes in the lake's folder"]) == ("ok", "ok")
    receipt = tmp_path / "receipt.json"
    assert command(home, "receipt", "export", receipt_id, "--to", str(receipt)).returncode == 0
    assert stat.S_IMODE(receipt.stat().st_mode) == 0o666, "a receipt is made for others: the umask says"


def test_the_doctor_names_what_others_could_read_and_what_to_do(tmp_path: Path) -> None:
    """A warning while the folder keeps them out, an error where it does not."""
    initialise(tmp_path / "lake")
    with open_runtime(tmp_path / "lake") as runtime:
        (runtime.home / "lake" / "topics.db").chmod(0o644)
        levels = []
        for mode in (0o700, 0o755):
            runtime.home.chmod(mode)
            (found,) = [one for one in examine(runtime) if one.check == "modes in the lake's folder"]
            levels.append(found.level)
        assert levels == ["warning", "error"]
        assert "lake/topics.db: run `chmod -R go= " in found.text
        assert list(open_to_others(runtime.home)) == [runtime.home / "lake" / "topics.db"]


@pytest.mark.usefixtures("open_mask")
def test_where_other_users_work_on_the_lake_the_operator_s_umask_stands() -> None:
    """They have to read the tables that this user's process writes."""
    os.umask(0o027)
    keep_private(AgentUsers())
    assert os.umask(0o077) == 0o077
    keep_private(AgentUsers(ingest="somebody"))
    assert os.umask(0) == 0o027
