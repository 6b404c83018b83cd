"""`erase scan` looks wherever the settings keep something of a lake, and names the places that it cannot look into."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
import tomli_w

from service.cli import common
from service.runtime import initialise, open_runtime
from service.scanplaces import beside, out_of_reach
from service.settings import Settings
from tests.command import Done, command
from tests.world import PAID, VIEWS, paid, send

PERSON = "customer-ann-0001"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A lake whose fence log and views lie beside it; nobody of the name is in it."""
    home, beside = tmp_path / "lake", tmp_path / "beside"
    beside.mkdir()
    (beside / "views.py").write_text(VIEWS.read_text())
    home.mkdir()
    settings = {
        "projections": {"files": [str(beside / "views.py")]},
        "keys": {"fence_log": str(beside / "fences.db"), "fence_copies": [str(beside / "copy.jsonl")]},
    }
    (home / "shredlake.toml").write_text(tomli_w.dumps(settings))
    initialise(home)
    with open_runtime(home) as runtime:
        runtime.lake.types.register(PAID)
        send(runtime, [paid("somebody", event_id="1")])
    return home


def scanned(home: Path, *options: str) -> Done:
    """The command, with the id on standard input."""
    return command(home, *options, "erase", "scan", "-", stdin=PERSON)


@pytest.mark.parametrize("name", ["views.py", "fences.db"])
def test_a_person_in_a_file_beside_the_lake_is_found_there(home: Path, name: str) -> None:
    """In whatever the settings name; before, nowhere."""
    assert scanned(home).returncode == 0
    path = home.parent / "beside" / name
    if name == "fences.db":
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE planted (said TEXT)")
            db.execute("INSERT INTO planted VALUES (?)", (PERSON,))
    else:
        path.write_text(f"# {PERSON}\n")
    done = scanned(home, "--output", "json")
    assert done.returncode == 3
    assert {Path(one["path"].partition(" /")[2]).name for one in json.loads(done.stdout)["findings"]} == {
        name
    }


def test_whatever_path_the_settings_name_is_looked_into_or_said_not_to_be_there(tmp_path: Path) -> None:
    """A walk over every setting, so that a later one is not forgotten; folders with all that is in them."""
    home, there = tmp_path / "lake", tmp_path / "there"
    (there / "agent").mkdir(parents=True)
    for name in ("mapping.toml", "views.py", "fences.db", "agent/token", "cert.pem"):
        (there / name).write_text("x")
    settings = Settings.model_validate(
        {
            "server": {"tls_cert": there / "cert.pem"},
            "kafka": {"bootstrap": "b:1", "topics": ["t"], "mapping": there / "mapping.toml"},
            "projections": {"files": [there / "views.py", there / "gone.py"]},
            "keys": {
                "fence_log": there / "fences.db",
                "fence_copies": [str(there / "copy.jsonl")],
                "agent_folder": there / "agent",
            },
        }
    )
    files, missing = beside(home, settings)
    assert sorted(files.values()) == sorted(one for one in there.rglob("*") if one.is_file())
    assert missing == [
        "what `projections.files` names, which is not there",
        "what `keys.fence_copies` names, which is not there",
    ]


def test_places_that_nobody_looks_into_are_named() -> None:
    """Each server that the settings name; of a lake that is a folder alone there is none."""
    assert list(out_of_reach(Settings())) == []
    everywhere = Settings.model_validate(
        {
            "keys": {
                "page_store": "postgresql://h/d",
                "fence_copies": ["s3://b/k"],
                "vault": {"address": "https://v", "token_file": "t"},
            },
            "lake": {"catalog": "rest", "uri": "http://c"},
            "kafka": {"bootstrap": "b:1", "topics": ["t"]},
        }
    )
    told = " ".join(out_of_reach(everywhere))
    for word in ("PostgreSQL", "catalog", "key server", "object stores", "brokers"):
        assert word in told


def test_progress_is_told_in_lines_where_standard_error_is_a_log(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only on a terminal; `-q` silences it."""
    assert "files: " not in scanned(home).stderr, "nothing before ten seconds"
    monkeypatch.setattr(common, "LINE_SECONDS", 0.0)
    told = scanned(home).stderr
    assert "files: 1 of " in told
    assert "files: " not in scanned(home, "-q").stderr
