"""What cannot be taken back asks first; neither output nor where it goes ever answers."""

from __future__ import annotations

import inspect
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from keys import SubjectId
from service.cli.main import app
from service.runtime import open_runtime
from tests.world import make_world, paid, publish, send

ASKS = {
    "erase apply": ["ann"],
    "keys close-epoch": [],
    "keys adopt-root": [],
    "keys adopt-host": [],
    "keys converge": ["--adopt-log"],
    "lake expire": ["--keep", "1"],
    "ingest intake": ["--give-up"],
    "ingest skip": ["--batch", "some-batch", "--drop"],
    "views drop-publications": ["cents_per_day", "--all-but-current"],
}
"""Commands that ask, with the arguments that make them irreversible."""
HARMLESS = {
    "config": {"show"},
    "demo": {""},
    "doctor": {""},
    "erase": {"plan", "list", "status", "cancel", "hold", "release", "scan", "salt"},
    "events": {"register", "check", "types", "letters", "redrive"},
    "ingest": {"file", "kafka"},
    "init": {""},
    "keys": {
        "drill", "stats", "gate", "verify", "inventory", "export-fences", "import-fences", "rekey", "agent",
        "agent-counts",
    },
    "lake": {
        "snapshots", "verify", "compact", "sweep", "merge", "upkeep", "explain", "where", "read", "send",
        "republish",
    },
    "receipt": {"export", "show", "verify", "key"},
    "schema": {"check", "diff", "doctor", "import"},
    "serve": {""},
    "version": {""},
    "views": {"list", "build", "publish", "rollback", "show", "person", "history", "runs", "heads", "source"},
}  # fmt: skip
"""Everything else. `erase release` and `--resume` carry out what was asked for and confirmed before; sweeping
with a short grace, accepting gaps and sending in clear have an option of their own that says so."""


def commands() -> Iterator[tuple[str, Any]]:
    """Every command of the command line, by its words."""
    root: Any = get_command(app)
    for name, command in root.commands.items():
        for path, one in getattr(command, "commands", {"": command}).items():
            yield f"{name} {path}".strip(), one


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A lake with a person in it."""
    with make_world(tmp_path / "lake") as runtime:
        send(runtime, [paid("ann", event_id="1"), paid("bob", event_id="2")])
        publish(runtime, "cents_per_day")
        send(runtime, [paid("ann", event_id="3")])
        publish(runtime, "cents_per_day")
    return tmp_path / "lake"


def state_of(home: Path) -> tuple[object, ...]:
    """Requests, fences, a person, snapshots, the root's versions."""
    with open_runtime(home) as runtime:
        return (
            runtime.purge.journal.all(),
            runtime.keyring.epoch(),
            runtime.keyring.ref_of(SubjectId("ann")),
            [one.snapshot_id for one in runtime.lake.events.history()],
            runtime.keyring.custodian.status(),
            runtime.views.ledger.dropped(),
        )


def test_every_command_is_known_to_ask_or_to_be_harmless() -> None:
    """A new command has to be put on one of the lists; those that ask do so by the one helper."""
    harmless = {f"{group} {name}".strip() for group, names in HARMLESS.items() for name in names}
    found = dict(commands())
    assert set(found) - set(ASKS) - harmless == set(), "say whether it can be taken back"
    for words in ASKS:
        callback = found[words].callback
        source = inspect.getsource(inspect.unwrap(callback))
        assert "ask_first(" in source, f"{words} does not ask"
        assert "--yes" in [name for one in found[words].params for name in one.opts], words
    for words in set(found) & harmless:
        assert "--yes" not in [name for one in found[words].params for name in one.opts], words


@pytest.mark.parametrize("options", [[], ["-q"], ["--output", "json"], ["-q", "--output", "json"]])
@pytest.mark.parametrize("answer", ["", "n\n", "y\n"], ids=["silence", "no", "yes"])
def test_without_yes_and_without_a_terminal_nothing_is_done(
    home: Path, options: list[str], answer: str
) -> None:
    """Of every command that asks, whatever is piped in and however data is written."""
    before = state_of(home)
    for words, arguments in ASKS.items():
        command = ["--home", str(home), *options, *words.split(), *arguments]
        done = CliRunner().invoke(app, command, input=answer)
        assert done.exit_code != 0, words
        assert "--yes" in str(getattr(done.exception, "next_step", "")), words
    assert state_of(home) == before


def on_terminal(command: list[str], answer: str, stderr: Path) -> tuple[int, str]:
    """Runs a command with a terminal as standard input alone: (exit code, what the terminal showed)."""
    ours, theirs = pty.openpty()
    with stderr.open("wb") as errors:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("shredlake")), *command],
            stdin=theirs,
            stdout=errors,
            stderr=errors,
        )
        os.write(ours, answer.encode())
        code = process.wait(120)
    os.set_blocking(ours, False)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    os.close(theirs)
    return code, shown


@pytest.mark.parametrize("options", [[], ["-q", "--output", "json"]], ids=["text", "json"])
def test_the_answer_no_on_a_terminal_is_heard_wherever_output_goes(
    home: Path, tmp_path: Path, options: list[str]
) -> None:
    """The question is on the terminal, not in the redirected file."""
    before = state_of(home)
    command = ["--home", str(home), *options, "erase", "apply", "ann"]
    code, shown = on_terminal(command, "n\n", tmp_path / "err.log")
    assert code != 0
    assert "cannot be taken back" in shown
    assert state_of(home) == before


def test_ids_on_standard_input_need_yes_and_are_erased_together(home: Path) -> None:
    """Each with a receipt; nobody of the list is named in what is printed."""
    before = state_of(home)
    command = ["--home", str(home), "erase", "apply", "-"]
    refused = CliRunner().invoke(app, command, input="ann\nbob\n")
    assert refused.exit_code != 0
    assert state_of(home) == before
    done = CliRunner().invoke(app, [*command, "--yes"], input="ann\n\nbob\nann\n")
    assert done.exit_code == 0, done.output
    with open_runtime(home) as runtime:
        assert [one.status.value for one in runtime.purge.journal.all()] == ["completed"] * 2


def test_an_unknown_person_of_a_list_stops_no_other_and_is_told(home: Path) -> None:
    """Exit code 3 says that not all was done."""
    command = ["--home", str(home), "erase", "apply", "ann", "nobody-at-all", "--yes"]
    assert CliRunner().invoke(app, command).exit_code == 3
    with open_runtime(home) as runtime:
        assert [one.status.value for one in runtime.purge.journal.all()] == ["completed"]


def test_resume_takes_what_waits_and_list_and_doctor_count_it(home: Path) -> None:
    """Waiting, half done, overdue."""
    with open_runtime(home) as runtime:
        for one in ("ann", "bob"):
            runtime.purge.submit(SubjectId(one))
    listed = CliRunner().invoke(app, ["--home", str(home), "erase", "list"])
    assert "2 waiting, 0 half done, 0 overdue" in listed.output + listed.stderr
    examined = CliRunner().invoke(app, ["--home", str(home), "--output", "json", "doctor"])
    assert "2 waiting" in examined.output
    done = CliRunner().invoke(app, ["--home", str(home), "erase", "apply", "--resume"])
    assert done.exit_code == 0, done.output
    with open_runtime(home) as runtime:
        assert [one.status.value for one in runtime.purge.journal.all()] == ["completed"] * 2
