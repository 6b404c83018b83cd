"""`shredlake schema`: for CI, and for whoever answers for what is kept in clear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.runtime import Runtime
from tests.command import command as shredlake
from tests.world import PAID

REGISTERED: dict[str, Any] = {
    "name": "Sold",
    "version": 1,
    "type": "object",
    "properties": {"n": {"type": "integer", "anonymous": True, "because": "a count"}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository's folder of schema files."""
    path = tmp_path / "schemas" / "Sold"
    path.mkdir(parents=True)
    (path / "v1.json").write_text(json.dumps(REGISTERED))
    return path.parent


def write(path: Path, **changed: Any) -> str:
    """A schema file that differs from the registered one."""
    path.write_text(json.dumps(REGISTERED | changed))
    return str(path)


def test_check_needs_no_lake_where_it_is_told_against_what(folder: Path, tmp_path: Path) -> None:
    """And leaves none behind."""
    two = write(tmp_path / "2.json", version=2, compatibility="full")
    done = shredlake(tmp_path / "none", "schema", "check", two, "--against", str(folder))
    assert (done.returncode, done.stdout) == (0, "Sold version 2 (full): compatible\n")
    assert not (tmp_path / "none").exists()


def test_check_lists_each_problem_and_ends_with_one(folder: Path, tmp_path: Path) -> None:
    """Every field, why, and what to do; the files that fit are named too."""
    fields = {"n": {"type": "string", "anonymous": True}, "m": {"type": "string"}}
    bad = write(tmp_path / "bad.json", version=2, properties=fields, required=["m"])
    good = write(tmp_path / "good.json", name="Other")
    (tmp_path / "broken.json").write_text("{")
    done = shredlake(
        tmp_path, "schema", "check", bad, good, str(tmp_path / "broken.json"), "--against", str(folder)
    )
    assert done.returncode == 1
    assert "version 1: `n` changes its type from integer to string → Convert it" in done.stdout
    assert "version 1: `m` is new and required: older events lack it → Make it optional" in done.stdout
    assert "Other version 1 (backward): compatible" in done.stdout
    assert "broken.json: refused\n  the schema is not JSON" in done.stdout
    assert "Traceback" not in done.stderr


def test_check_takes_files_of_one_type_in_the_order_of_their_versions(folder: Path, tmp_path: Path) -> None:
    """Version 3 is held against the version 2 of the same call, whatever the order of the arguments."""
    more = REGISTERED["properties"] | {"m": {"type": "string"}}
    two = write(tmp_path / "2.json", version=2, properties=more, upcast={"m": {"default": "x"}})
    three = write(tmp_path / "3.json", version=3, properties=more | {"m": {"type": "boolean"}})
    done = shredlake(tmp_path, "--output", "json", "schema", "check", three, two, "--against", str(folder))
    last, first = json.loads(done.stdout)
    assert (done.returncode, first["compatible"], last["compatible"]) == (1, True, False)
    assert last["problems"][0].startswith("versions 1, 2: `m` changes its type")
    assert len(last["problems"]) == 1


def test_check_refuses_other_content_under_a_known_number(folder: Path, tmp_path: Path) -> None:
    """What is registered stays; the same content again is fine."""
    same = write(tmp_path / "same.json")
    assert shredlake(tmp_path, "schema", "check", same, "--against", str(folder)).returncode == 0
    other = write(tmp_path / "other.json", title="new")
    done = shredlake(tmp_path, "schema", "check", other, "--against", str(folder))
    assert (done.returncode, "another content" in done.stdout, "version number 2" in done.stdout) == (
        1,
        True,
        True,
    )


def test_check_warns_of_a_name_that_changes_its_meaning(folder: Path, tmp_path: Path) -> None:
    """Events of producers that name no version would be taken for the new one."""
    two = write(tmp_path / "2.json", version=2, upcast={"n": {"scale": 100}})
    done = shredlake(tmp_path, "schema", "check", two, "--against", str(folder))
    assert (done.returncode, "names no `schemaversion`" in done.stderr) == (0, True)


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    """One sentence, one next step."""
    one = write(tmp_path / "1.json")
    done = shredlake(tmp_path, "schema", "check", one, "--against", str(tmp_path / "no"))
    assert (done.returncode, done.stdout, "names no folder" in done.stderr) == (1, "", True)


def test_check_holds_against_the_lake_by_default(world: Runtime, tmp_path: Path) -> None:
    """As `events register` would."""
    (tmp_path / "p.json").write_text(json.dumps(PAID | {"version": 2, "required": ["cents", "shop"]}))
    done = shredlake(world.home, "schema", "check", str(tmp_path / "p.json"))
    assert (done.returncode, "`shop` was optional and is required" in done.stdout) == (1, True)


def test_doctor_lists_what_is_in_clear_with_its_reason(world: Runtime) -> None:
    """Also of versions that are history; doubtful ones are warnings."""
    clear = {"anonymous": True}
    document = REGISTERED | {
        "properties": {
            "n": {"type": "integer", "because": "a count"} | clear,
            "ok": {"enum": ["a"], "description": "which"} | clear,
            "clientIP": {"type": "string", "maxLength": 40, "description": "where from"} | clear,
            "birth_date": {"type": "string", "format": "date", "because": "dates of companies"} | clear,
            "silent": {"type": "integer"} | clear,
            "memo": {"type": "string", "description": "what for"} | clear,
            "secret": {"type": "string"},
        }
    }
    world.lake.types.register(document)
    world.lake.types.register(document | {"version": 2, "properties": {"n": document["properties"]["n"]}})
    done = shredlake(world.home, "--output", "json", "schema", "doctor")
    rows = {row["field"]: row for row in json.loads(done.stdout) if row["type"] == "Sold"}
    assert (done.returncode, "secret" in rows) == (0, False)
    assert {name: row["level"] for name, row in rows.items()} == {
        "n": "ok",
        "ok": "ok",
        "clientIP": "warning",
        "birth_date": "ok",
        "silent": "warning",
        "memo": "warning",
    }
    assert (rows["n"]["versions"], rows["n"]["why"], rows["memo"]["versions"]) == ("1, 2", "a count", "1")
    assert "`ip` sounds like a person" in rows["clientIP"]["doubts"]
    assert rows["silent"]["doubts"] == "no reason given: add `because`"
    assert "text without a limit" in rows["memo"]["doubts"]
    assert "need a second look" in done.stderr
