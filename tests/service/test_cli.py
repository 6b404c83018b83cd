"""The command line: exit codes, streams, and errors that say what to do next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from service.runtime import Runtime, initialise
from tests.command import command as shredlake
from tests.keys.test_agent import start_agent
from tests.world import PAID, paid, publish, send

ROOT = Path(__file__).parent.parent.parent


def in_a_process_of_its_own(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a shell does; everywhere else a call is the same, a hundred times as fast."""
    return subprocess.run(
        [sys.executable, "-c", "from service.cli import main; main()", "--home", str(home), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "120"},
    )


@pytest.fixture
def home(world: Runtime) -> Path:
    """A lake with two people in it."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2")])
    publish(world)
    return world.home


def test_the_version_is_told_by_option_and_by_command(tmp_path: Path) -> None:
    """Both are what people try."""
    told = {shredlake(tmp_path, *asked).stdout for asked in (("--version",), ("version",))}
    assert told == {f"{version('shredlake')}\n"}


def test_done_is_zero_and_data_is_on_stdout_alone(home: Path) -> None:
    """So that it can be piped."""
    done = in_a_process_of_its_own(home, "--output", "json", "views", "show", "cents_per_day")
    assert done.returncode == 0
    assert json.loads(done.stdout)[0]["cents"] == 12


def test_an_error_is_one_and_says_what_to_do(home: Path, tmp_path: Path) -> None:
    """One sentence, one next step, no trace."""
    done = in_a_process_of_its_own(home, "views", "show", "nope")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cents_per_day" in done.stderr
    assert "→ List the views" in done.stderr
    assert "Traceback" not in done.stderr
    done = shredlake(tmp_path / "none", "views", "list")
    assert (done.returncode, "shredlake init" in done.stderr) == (1, True)


def test_wrong_use_is_two(home: Path) -> None:
    """As everywhere."""
    assert shredlake(home, "views", "show").returncode == 2
    assert in_a_process_of_its_own(home, "surprise").returncode == 2


def test_incomplete_is_three(home: Path, tmp_path: Path) -> None:
    """A dead letter; a request that is not done."""
    path = tmp_path / "x.jsonl"
    path.write_text("{bad\n" + json.dumps(paid("cid", event_id="3")))
    done = shredlake(home, "ingest", str(path))
    assert (done.returncode, "1 events" in done.stdout) == (3, True)
    assert "dead letters: 1 × malformed_json" in done.stderr


def test_blocked_by_a_hold_is_four(home: Path) -> None:
    """And goes on when it is released."""
    assert shredlake(home, "erase", "hold", "ann", "--why", "court").returncode == 0
    assert shredlake(home, "erase", "apply", "ann", "--yes").returncode == 4
    request = json.loads(shredlake(home, "--output", "json", "erase", "list").stdout)[0]
    assert shredlake(home, "erase", "status", request["request"]).returncode == 4
    done = shredlake(home, "erase", "release", "ann")
    assert (done.returncode, "an erasure waited" in done.stderr) == (0, True)
    assert shredlake(home, "erase", "status", request["request"]).returncode == 0


def test_a_dry_run_changes_nothing(home: Path) -> None:
    """The plan, and everybody still there."""
    done = shredlake(home, "erase", "apply", "-", "--dry-run", stdin="ann\n")
    assert (done.returncode, "1 events in 1 blocks" in done.stdout) == (0, True)
    assert json.loads(shredlake(home, "--output", "json", "keys", "stats").stdout)["epoch"] == 0


def test_schema_check_says_what_would_break(home: Path, tmp_path: Path) -> None:
    """For CI: exit code 1 and the reason, nothing registered."""
    changed = PAID | {"version": 2, "properties": PAID["properties"] | {"cents": {"type": "string"}}}  # type: ignore[operator]
    (tmp_path / "s.json").write_text(json.dumps(changed))
    done = shredlake(home, "events", "check", str(tmp_path / "s.json"))
    assert (done.returncode, "changes its type" in done.stdout) == (1, True)
    assert shredlake(home, "events", "register", str(tmp_path / "s.json")).returncode == 1


def test_a_second_init_changes_nothing(tmp_path: Path) -> None:
    """And says so."""
    assert initialise(tmp_path / "lake")
    done = shredlake(tmp_path / "lake", "init")
    assert (done.returncode, "there already" in done.stderr) == (0, True)


def test_make_help_prints_every_target() -> None:
    """Itself included."""
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[1] for line in told.splitlines()} >= {
        "help",
        "demo",
        "test",
        "bench",
        "lock",
        "clean",
    }


def test_views_are_built_through_the_key_agent(home: Path) -> None:
    """By workers that have a lease and no token, and open nothing after the next erasure."""
    agent = start_agent(home)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SHREDLAKE_KEYS__AGENT", "true")
            built = shredlake(home, "views", "build", "--rebuild", "people_per_day")
            assert built.returncode == 0, built.stderr
            erased = shredlake(home, "erase", "apply", "bob", "--yes")
            assert erased.returncode == 0, erased.stderr
            shown = shredlake(home, "--output", "json", "views", "show", "people_per_day")
    finally:
        agent.terminate()
        counts, _ = agent.communicate(timeout=20)
    assert json.loads(shown.stdout)[0]["people"] == 1
    assert "lease: opening items" in counts
    assert "build: lease calls" in counts


def test_events_are_sealed_through_the_key_agent(home: Path, tmp_path: Path) -> None:
    """By a process that opens no key; without an agent the error says how to start one."""
    path = tmp_path / "more.jsonl"
    path.write_text("\n".join(json.dumps(paid(f"p{n}", n, event_id=f"m{n}")) for n in range(9)))
    refused = shredlake(home, "ingest", str(path), "--agent")
    assert refused.returncode == 1
    assert "shredlake keys agent" in refused.stderr
    agent = start_agent(home)
    try:
        done = shredlake(home, "--output", "json", "ingest", str(path), "--agent")
        assert json.loads(done.stdout)["events"] == 9, done.stderr
        again = shredlake(home, "--output", "json", "ingest", str(path), "--agent")
        assert json.loads(again.stdout)["already"] == 9
    finally:
        agent.terminate()
        counts, _ = agent.communicate(timeout=20)
    assert "ingest: provision items" in counts
    assert json.loads(shredlake(home, "--output", "json", "lake", "verify").stdout)["problems"] == []
    assert shredlake(home, "doctor").returncode == 0


def test_the_commands_about_keys_answer(home: Path, tmp_path: Path) -> None:
    """Verify, inventory, a copy of the fence log there and back, a drill."""
    found = json.loads(shredlake(home, "--output", "json", "keys", "verify").stdout)
    assert (found["subjects"], found["names"], found["problems"]) == (found["records"], 2, [])
    inventory = json.loads(shredlake(home, "--output", "json", "keys", "inventory").stdout)
    (service, *_) = inventory["purposes"]
    assert (service["purpose"], service["records"]) == ("service", 2)
    assert (inventory["people"], inventory["identities"], inventory["fence_head"]) == (2, 0, "")
    shown = shredlake(home, "keys", "inventory").stdout
    assert "2 people with 0 further names" in shown
    assert "ann" not in shown
    assert shredlake(home, "erase", "apply", "ann", "--yes").returncode == 0
    copy = tmp_path / "fences.jsonl"
    assert (
        json.loads(shredlake(home, "--output", "json", "keys", "export-fences", str(copy)).stdout)["fences"]
        == 1
    )
    merged = json.loads(shredlake(home, "--output", "json", "keys", "import-fences", str(copy)).stdout)
    assert (merged["fences"], merged["added"]) == (1, 0)
    copy.write_bytes(copy.read_bytes().replace(b"service", b"Service").replace(b'"*"', b'"x"'))
    forged = shredlake(home, "keys", "import-fences", str(copy))
    assert forged.returncode == 1
    assert "cut or edited" in forged.stderr
    drilled = json.loads(
        shredlake(home, "--output", "json", "keys", "drill", "--people", "300", "--erase", "30").stdout
    )
    assert drilled["passed"]
    assert [one["erased_opened"] for one in drilled["attempts"]] == [30, 0, 0, 0, 30]
    assert [one["others_opened"] for one in drilled["attempts"]] == [270, 270, 0, 270, 270]
    assert shredlake(home, "keys", "drill", "--people", "10", "--erase", "10").returncode == 2


def test_a_sweep_that_could_hit_a_commit_under_way_is_refused(home: Path) -> None:
    """With a short grace it deletes only where somebody says that nobody writes; looking is free."""
    litter = home / "lake" / "warehouse" / "lake" / "events" / "data" / f"{'0' * 32}.parquet"
    litter.write_bytes(b"about to be committed")
    refused = shredlake(home, "lake", "sweep", "--grace-seconds", "599")
    assert (refused.returncode, litter.exists()) == (1, True)
    assert "--nobody-writes" in refused.stderr
    told = shredlake(home, "--output", "json", "lake", "sweep", "--grace-seconds", "0", "--dry-run")
    assert (json.loads(told.stdout)["files"], litter.exists()) == (1, True)
    kept = shredlake(home, "--output", "json", "lake", "sweep", "--grace-seconds", "600")
    assert (json.loads(kept.stdout)["files"], litter.exists()) == (0, True)
    swept = shredlake(home, "--output", "json", "lake", "sweep", "--grace-seconds", "0", "--nobody-writes")
    assert (json.loads(swept.stdout)["files"], litter.exists()) == (1, False)


def test_upkeep_can_be_looked_at_planned_and_run(home: Path, tmp_path: Path) -> None:
    """Explain, a dry run that changes nothing, a round, and what is left of a person before and after."""
    path = tmp_path / "more.jsonl"
    path.write_text("\n".join(json.dumps(paid(f"p{n % 3}", n, event_id=f"m{n}")) for n in range(40)))
    assert shredlake(home, "ingest", str(path), "--batch-events", "1").returncode == 0
    before = json.loads(shredlake(home, "--output", "json", "lake", "explain").stdout)
    assert before["by_level"]["ingested"] == 41
    (where, *_) = json.loads(shredlake(home, "--output", "json", "lake", "where", "p1").stdout)
    assert (where["level"], where["sealed_bytes"] > 0) == ("ingested", True)
    planned = json.loads(shredlake(home, "--output", "json", "lake", "upkeep", "--dry-run").stdout)
    assert [step["what"] for step in planned] == ["tag", "merge"]
    assert json.loads(shredlake(home, "--output", "json", "lake", "explain").stdout)["live_files"] == 41
    done = json.loads(shredlake(home, "--output", "json", "lake", "upkeep").stdout)
    assert [step["what"] for step in done] == ["tag", "merge"]
    after = json.loads(shredlake(home, "--output", "json", "lake", "explain").stdout)
    assert (after["by_level"]["ingested"], after["by_level"]["merged"]) == (1, 1)  # a view's input between
    places = json.loads(shredlake(home, "--output", "json", "lake", "where", "p1").stdout)
    assert [(one["level"], one["blocks"]) for one in places if one["held_by"] == "head"] == [("merged", 13)]
    assert all(one["readable"] for one in places)
    assert shredlake(home, "erase", "apply", "p1", "--yes").returncode == 0
    left = json.loads(shredlake(home, "--output", "json", "lake", "where", "p1").stdout)
    assert {(one["held_by"], one["readable"]) for one in left} == {("snapshots", False)}
    assert (
        json.loads(shredlake(home, "--output", "json", "lake", "verify", "--deep").stdout)["problems"] == []
    )
