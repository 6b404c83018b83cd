"""A lake restored from backups: shut, for everybody and over HTTP, until the newest fences are back."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from fastapi.testclient import TestClient
from typer.core import TyperGroup as Group
from typer.main import get_command
from typer.testing import CliRunner

from keys import RestoreGateClosed, Shredded, SubjectId
from projections import LakeBehind, LedgerBehind
from service.app import create_app
from service.cli import app
from service.doctor import examine
from service.jobs import export_fence_copies
from service.runtime import Runtime, initialise, open_runtime
from tests.keys.people import backup, restore
from tests.world import PAID, VIEWS, erase, paid, publish, send

PAGES, LOG = "keys/pages.db", "evidence/fences.db"
JOURNAL, TLOG = "purge/journal.db", "evidence/tlog.db"
STATES = "views/states.db"
EVERYTHING = (PAGES, LOG, JOURNAL, TLOG, STATES)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A lake whose settings name a copy of the fence log on another disk; nobody was erased yet."""
    home = tmp_path / "lake"
    home.mkdir()
    settings = {
        "projections": {"files": [str(VIEWS)]},
        "keys": {"fence_copies": [str(tmp_path / "elsewhere" / "fences.jsonl")]},
    }
    (tmp_path / "elsewhere").mkdir()
    (home / "shredlake.toml").write_text(tomli_w.dumps(settings))
    initialise(home)
    with open_runtime(home) as runtime:
        runtime.lake.types.register(PAID)
        send(runtime, [paid(who, event_id=who) for who in ("ann", "bob", "cid")])
        publish(runtime)
    return home


def copy_of(home: Path) -> Path:
    """The copy of the fence log that the settings name; every erasure writes it."""
    return home.parent / "elsewhere" / "fences.jsonl"


def go_back(home: Path, older: Iterable[str], *, copied: bool) -> bytes | None:
    """Ann is erased, a backup is made, Bob is erased, and some of the backup is restored.

    Pages come back with the root of their time: today's root opens nothing of before an epoch close.
    """
    with open_runtime(home) as runtime:
        erase(runtime, "ann")
        for name in EVERYTHING:
            backup(home / name, home.parent / name.replace("/", "-"))
        shutil.copy(home / "keys" / "root.key", home.parent)
        ref = runtime.keyring.ref_of(SubjectId("bob"))
        erase(runtime, "bob")
        if not copied:
            copy_of(home).unlink()
    for name in older:
        restore(home.parent / name.replace("/", "-"), home / name)
        if name == PAGES:
            shutil.copy(home.parent / "root.key", home / "keys")
    return ref


def client_of(runtime: Runtime) -> TestClient:
    """A client with the token."""
    headers = {"Authorization": f"Bearer {runtime.token}"}
    return TestClient(create_app(runtime), headers=headers, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("older", "copied", "said_by"),
    [
        ((PAGES,), False, None),
        ((LOG,), False, "request journal"),
        ((PAGES, LOG), False, "request journal"),
        ((PAGES, LOG, JOURNAL), False, "transparency log"),
        ((PAGES, LOG, TLOG), False, "request journal"),
        (EVERYTHING, True, "signed copy"),
    ],
)
def test_a_server_over_a_restored_lake_is_ready_only_with_the_newest_fences(
    home: Path, older: tuple[str, ...], copied: bool, said_by: str | None
) -> None:
    """With the newest log it converges by itself; without, it comes up, says why, and serves nobody."""
    ref = go_back(home, older, copied=copied)
    with open_runtime(home) as runtime, client_of(runtime) as client:
        ready = client.get("/v1/health/ready")
        if said_by is None:
            assert ready.status_code == 200
            assert isinstance(runtime.keyring.resident.deks([ref], "service")[ref], Shredded)
            return
        assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
        assert said_by in ready.json()["why"]
        assert "import-fences" in ready.json()["next_step"]
        for method, path, body in (
            ("post", "/v1/events", [paid("dora", event_id="d")]),
            ("get", "/v1/views/balance", None),
            ("post", "/v1/views/balance/row", {"subject": "bob"}),
            ("post", "/v1/erasure-requests", {"subject": "cid"}),
            ("post", "/v1/legal-holds", {"subject": "cid"}),
        ):
            answer = client.request(method, path, json=body)
            assert answer.status_code == 503, path
            assert answer.json()["next_step"] == ready.json()["next_step"]
        assert client.get("/v1/health/live").status_code == 200
        assert client.get("/v1/log/key").status_code == 200
        (found,) = [one for one in examine(runtime) if one.check == "restore gate"]
        assert (found.level, "import-fences" in found.text) == ("error", True)


def test_a_whole_lake_that_went_back_without_a_copy_elsewhere_cannot_know(home: Path) -> None:
    """Everything that remembers is as old: this is what `keys.fence_copies` is for."""
    go_back(home, EVERYTHING, copied=False)
    with open_runtime(home) as runtime, client_of(runtime) as client:
        assert client.get("/v1/health/ready").status_code == 200


def test_a_server_that_came_up_shut_opens_when_the_copy_is_imported(home: Path) -> None:
    """By another process; nobody has to start the server again."""
    ref = go_back(home, (PAGES, LOG), copied=True)
    with open_runtime(home) as runtime, client_of(runtime) as client:
        assert client.get("/v1/health/ready").status_code == 503
        copied = str(copy_of(home))
        done = CliRunner().invoke(app, ["--home", str(home), "keys", "import-fences", copied])
        assert done.exit_code == 0, done.output
        until = time.monotonic() + 60
        while client.get("/v1/health/ready").status_code != 200 and time.monotonic() < until:
            time.sleep(0.1)
        assert client.get("/v1/health/ready").json()["status"] == "ready"
        assert isinstance(runtime.keyring.resident.deks([ref], "service")[ref], Shredded)
        assert client.post("/v1/views/balance/row", json={"subject": "cid"}).status_code == 200


COMMANDS = (
    ["ingest", "{file}"],
    ["ingest", "intake"],
    ["views", "build"],
    ["views", "publish"],
    ["views", "show", "balance"],
    ["views", "person", "balance", "cid"],
    ["erase", "plan", "cid"],
    ["erase", "apply", "cid", "--yes"],
    ["erase", "apply", "--resume"],
    ["erase", "hold", "cid"],
    ["lake", "compact"],
    ["lake", "upkeep"],
    ["events", "letters"],
    ["keys", "export-fences"],
)


def test_no_command_that_seals_opens_or_erases_works_past_the_gate(home: Path) -> None:
    """The one that would replace the copy by the shorter log among them."""
    go_back(home, (PAGES, LOG), copied=True)
    (home.parent / "events.jsonl").write_text("")
    for command in COMMANDS:
        words = [word.format(file=home.parent / "events.jsonl") for word in command]
        done = CliRunner().invoke(app, ["--home", str(home), *words])
        assert isinstance(done.exception, RestoreGateClosed), (command, done.output)
    with sqlite3.connect(home / LOG) as db:
        assert db.execute("SELECT COUNT(*) FROM fences").fetchone() == (1,)


def test_a_key_agent_does_not_start_past_the_gate(home: Path) -> None:
    """It asks the journal and the transparency log too, although it needs neither."""
    go_back(home, (PAGES, LOG), copied=False)
    command = [sys.executable, "-c", "from service.cli import main; main()", "--home", str(home)]
    done = subprocess.run(
        [*command, "keys", "agent"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "request journal (number 2), the transparency log (number 2)" in " ".join(done.stderr.split())
    assert not (home / "agent").exists()


def test_another_lakes_fence_log_leaves_the_server_shut(home: Path, tmp_path: Path) -> None:
    """It comes up all the same and says which file is missing."""
    initialise(tmp_path / "other")
    open_runtime(tmp_path / "other").close()
    restore(tmp_path / "other" / LOG, home / LOG)
    with open_runtime(home) as runtime, client_of(runtime) as client:
        ready = client.get("/v1/health/ready")
        assert ready.status_code == 503
        assert "adopt-log" in ready.json()["next_step"]
        assert client.get("/v1/views/balance").status_code == 503


@pytest.mark.parametrize("copied", [False, True])
def test_lost_fences_can_be_given_up_by_name_and_by_no_other_way(home: Path, copied: bool) -> None:
    """After `--adopt-log` the lake goes on, and the next erasure is watched again, by the copy as well."""
    go_back(home, (PAGES, LOG, STATES), copied=copied)
    plain = CliRunner().invoke(app, ["--home", str(home), "keys", "converge"])
    assert isinstance(plain.exception, RestoreGateClosed)
    adopted = CliRunner().invoke(app, ["--home", str(home), "keys", "converge", "--adopt-log", "--yes"])
    assert adopted.exit_code == 0, adopted.output
    with open_runtime(home) as runtime:
        assert runtime.keyring.gate().is_open
        erase(runtime, "cid")
        assert runtime.keyring.gate().is_open
        (state,) = runtime.fence_copies.look()
        assert (state.level, state.text) == ("ok", "holds all 2 fence(s)")


def test_a_damaged_copy_shuts_the_gate_and_names_the_way_out(home: Path) -> None:
    """What it would have said is not known."""
    with open_runtime(home) as runtime:
        erase(runtime, "ann")
        copy = copy_of(home)
        copy.write_bytes(copy.read_bytes().replace(b'"generation": 1', b'"generation": 0', 1))
        with client_of(runtime) as client:
            ready = client.get("/v1/health/ready")
            assert ready.status_code == 503
            assert "intact copy" in ready.json()["next_step"]
            copy.unlink()
            export_fence_copies(runtime)
            until = time.monotonic() + 60
            while client.get("/v1/health/ready").status_code != 200 and time.monotonic() < until:
                time.sleep(0.1)
            assert client.get("/v1/health/ready").status_code == 200


def test_an_older_record_of_publications_restored_alone_is_noticed_by_whoever_reads(home: Path) -> None:
    """It would show views that still count Bob; publishing anew opens them, and so does the newest record."""
    ledger = "views/ledger.db"
    with open_runtime(home) as runtime:
        publish(runtime)
        runtime.purge.log_publications()
        backup(home / ledger, home.parent / "older")
        erase(runtime, "bob")
        backup(home / ledger, home.parent / "newest")
    restore(home.parent / "older", home / ledger)
    names = ("people_per_day", "balance")
    with open_runtime(home) as runtime, client_of(runtime) as client:
        for name in names:
            with pytest.raises(LedgerBehind, match=name):
                runtime.views.as_reported(name)
            with pytest.raises(LedgerBehind):
                runtime.views.as_reported(name, datetime.now(UTC))
            assert client.get(f"/v1/views/{name}").status_code == 503
    restore(home.parent / "newest", home / ledger)
    with open_runtime(home) as runtime:
        assert runtime.views.as_reported(names[0]).rows["people"].to_list() == [2]
    restore(home.parent / "older", home / ledger)
    with open_runtime(home) as runtime:
        publish(runtime)
        runtime.purge.log_publications()  # as the command does
        assert runtime.views.as_reported(names[0]).rows["people"].to_list() == [2]


@pytest.mark.parametrize("older", [("lake",), ("lake", "views")])
def test_an_older_lake_folder_or_older_views_show_nobody_again_and_name_the_store_to_bring(
    home: Path, older: tuple[str, ...]
) -> None:
    """Whatever went back: a read is of today or an error that names a store, and that store opens it."""
    names, now, before = ("people_per_day", "balance"), home.parent / "now", home.parent / "before"
    with open_runtime(home) as runtime:
        publish(runtime)
        runtime.purge.log_publications()
    shutil.copytree(home, before)
    with open_runtime(home) as runtime:
        erase(runtime, "bob")
    shutil.copytree(home, now)
    for name in older:
        brought(before / name, home / name)
    refused = set[type]()
    for _ in range(3):
        with open_runtime(home) as runtime:
            try:
                rows = runtime.views.as_reported(names[0]).rows["people"].to_list()
                assert rows == [2], "Bob is not counted again"
                assert {p.rows for p in [runtime.views.person("balance", SubjectId("bob"))]} == {()}
                runtime.views.restored.refuse_older_lake()
                break
            except (LakeBehind, LedgerBehind) as error:
                refused.add(type(error))
                if isinstance(error, LakeBehind):
                    (found,) = [one for one in examine(runtime) if one.check == "lake's tables"]
                    assert (found.level, "the newest one" in found.text) == ("error", True)
                    with pytest.raises(LakeBehind):
                        publish(runtime)
                    store = "lake"
                else:
                    store = "views"
        brought(now / store, home / store)
    else:
        pytest.fail("it does not converge")
    assert refused, "an older copy was noticed"


def test_an_erasure_over_an_older_lake_ends_and_withdraws_what_it_cannot_derive(home: Path) -> None:
    """With the reason; no view comes back from the older lake, and the newest one opens them all."""
    before, now = home.parent / "before", home.parent / "now"
    with open_runtime(home) as runtime:
        publish(runtime)
    shutil.copytree(home / "lake", before)
    with open_runtime(home) as runtime:
        send(runtime, [paid("emil", event_id="later")])
        publish(runtime)
    shutil.copytree(home / "lake", now)
    brought(before, home / "lake")
    with open_runtime(home) as runtime:
        erase(runtime, "bob")
        withdrawn = runtime.views.ledger.aside()
        assert "people_per_day" in withdrawn
        assert {one.reason for one in withdrawn.values()} == {
            "an older copy of the lake's tables was brought back, which lacks its publication"
        }
        with pytest.raises(LakeBehind):
            publish(runtime)
    brought(now, home / "lake")
    with open_runtime(home) as runtime:
        publish(runtime)
        assert runtime.views.ledger.aside() == {}
        assert runtime.views.as_reported("people_per_day").rows["people"].to_list() == [3]


def brought(copy: Path, to: Path) -> None:
    """A store, in place of what is there."""
    if copy.is_dir():
        shutil.rmtree(to)
        shutil.copytree(copy, to)
    else:
        restore(copy, to)


PAST_THE_GATE = {
    # They show nothing of a person, or mend the gate.
    "version": "no lake",
    "init": "makes a lake",
    "doctor": "says how to open the gate",
    "serve": "its gatekeeper asks for every request",
    "config show": "settings alone",
    "demo": "a lake of its own",
    "receipt show": "content-free",
    "receipt export": "content-free",
    "receipt key": "public keys",
    "receipt verify": "no lake",
    "erase list": "requests, which name nobody",
    "erase status": "the same",
    "erase cancel": "the journal alone; destroys nothing",
    "events register": "event types",
    "events check": "event types",
    "events types": "event types",
    "schema check": "event types",
    "lake snapshots": "counts",
    "lake verify": "counts",
    "lake explain": "counts",
    "views list": "publications, not their rows",
    "views heads": "the same",
    "views history": "publications, not their rows",
    "views runs": "runs of jobs",
}
NEEDS_KAFKA = {"ingest kafka", "lake send", "lake republish"}
ARGUMENTS: dict[str, list[str]] = {
    "lake read": ["--type", "Paid", "--to", "-", "--personal"],
    "lake where": ["bob"],
    "views show": ["balance"],
    "views person": ["balance", "bob"],
    "views rollback": ["balance"],
    "views source": ["balance"],
    "views drop-publications": ["balance", "--all-but-current", "--yes"],
    "lake expire": ["--yes"],
    "erase plan": ["bob"],
    "erase apply": ["--yes", "bob"],
    "erase hold": ["bob", "--why", "court"],
    "erase release": ["bob"],
    "ingest skip": ["--batch", "some-batch"],
    "erase scan": ["bob"],
}


def commands() -> dict[str, Any]:
    """Every command by its words."""
    found: dict[str, Any] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        if isinstance(command, Group):
            for name, one in command.commands.items():
                walk(one, (*words, name))
        else:
            found[" ".join(words)] = command

    walk(get_command(app), ())
    return found


def test_every_command_asks_the_gate_before_it_reads_or_is_named_with_its_reason(home: Path) -> None:
    """With the fence log gone back, Bob is printed by none of them; a new command asks unless it is listed."""
    go_back(home, (LOG,), copied=False)
    asked, others = set[str](), set[str]()
    lines = home.parent / "lines.jsonl"
    lines.write_text("{}")
    for words, command in commands().items():
        if words in PAST_THE_GATE or words.startswith("keys ") or words in NEEDS_KAFKA:
            continue
        needed = [str(lines) for one in command.params if one.required]
        given = ARGUMENTS.get(words, needed)
        done = CliRunner().invoke(app, ["--home", str(home), *words.split(" "), *given])
        assert "bob" not in done.stdout, words
        shut = isinstance(done.exception, RestoreGateClosed)
        (asked if shut else others).add(f"{words}: {done.exception!r}")
    assert others == set()
    assert len(asked) > 10
    assert PAST_THE_GATE.keys() <= commands().keys()


def test_every_route_asks_the_gate_before_it_reads_or_is_named(home: Path) -> None:
    """Health says why; the log holds no personal data; all else is 503."""
    go_back(home, (LOG,), copied=False)
    past = ("/v1/health/", "/v1/log/")
    with open_runtime(home) as runtime, client_of(runtime) as client:
        routes = create_app(runtime).openapi()["paths"]
        assert len(routes) > 12
        for path, methods in routes.items():
            if path.startswith(past):
                continue
            url = path.replace("{", "").replace("}", "").replace("number", "1")
            for method in methods:
                answer = client.request(method, url, json={})
                assert answer.status_code == 503, (method, path, answer.status_code)
