"""Every command in README and docs is run, from top to bottom, as a reader would.

A fenced block behind `<!-- file: NAME -->` is written to that file. Every line of a `console` block that
starts with `$ ` is run and must exit with 0, or with N behind `<!-- exit: N -->`. `make` targets, servers
and what needs a person are marked `<!-- not run: WHY -->`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from typer.main import get_command

from infra.errors import InfraError
from infra.servers import SERVERS, get
from service.cli import app
from tests.servers import CHOSEN

ROOT = Path(__file__).parent.parent
DOCUMENTS = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if p.exists()]
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>file|exit|not run): (?P<value>[^>]+?) -->\n+)?```(?P<kind>\w*)\n(?P<body>.*?)```",
    re.DOTALL,
)
HELP = re.compile(r"shredlake(?: --?[\w-]+(?: [^\s-]\S*)?)*? (?P<noun>[a-z]\w*)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_runs(document: Path, tmp_path: Path) -> None:
    """In an empty folder that holds the examples."""
    text = document.read_text()
    for name in " ".join(re.findall(r"^\$ python -m infra up ([\w ]+)", text, re.MULTILINE)).split():
        _need(name)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SHREDLAKE")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["COLUMNS"] = "120"
    environment["PYTHONPATH"] = str(ROOT)  # readers stand in the repository's root
    environment["TMPDIR"] = tempfile.mkdtemp(prefix="shredlake-docs-")
    Path(environment["TMPDIR"]).chmod(0o755)  # PostgreSQL runs as another user
    try:
        _run_blocks(text, tmp_path, environment)
    finally:
        for name in SERVERS:
            SERVERS[name](Path(environment["TMPDIR"]) / "shredlake-servers").stop()
        shutil.rmtree(environment["TMPDIR"], ignore_errors=True)


def _need(name: str) -> None:
    try:
        if name not in os.environ.get(CHOSEN, name).split(","):
            pytest.skip(f"{name} was not chosen in {CHOSEN}")
        get(name)
    except InfraError as missing:
        pytest.skip(str(missing))


def _run_blocks(text: str, tmp_path: Path, environment: dict[str, str]) -> None:
    for block in BLOCK.finditer(text):
        if block["mark"] == "file":
            target = tmp_path / block["value"]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block["body"])
        if block["kind"] != "console" or block["mark"] == "not run":
            continue
        expected = int(block["value"]) if block["mark"] == "exit" else 0
        for line in block["body"].splitlines():
            if line.startswith("$ "):
                done = subprocess.run(
                    ["bash", "-c", line[2:]],
                    cwd=tmp_path,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=120,
                )
                assert done.returncode == expected, f"{line}\n{done.stdout}\n{done.stderr}"


def test_every_command_is_documented() -> None:
    """A command nobody reads about does not exist: docs/commands.md is made from the help texts."""
    assert (ROOT / "docs" / "commands.md").read_text() == render_commands()


def render_commands() -> str:
    """docs/commands.md: every command with its help and options."""
    lines = ["# Commands", "", "Made from the help texts by `python -m tests.test_docs`.", ""]
    root = get_command(app)
    for name, command in sorted(root.commands.items()):  # type: ignore[attr-defined]
        for path, one in sorted(getattr(command, "commands", {"": command}).items()):
            lines += [
                f"## `shredlake {name} {path}".rstrip() + "`",
                "",
                (one.help or "").split("\f")[0].strip(),
                "",
            ]
            for parameter in one.params:
                text = getattr(parameter, "help", "") or ""
                label = (
                    ", ".join(parameter.opts) if parameter.opts[0].startswith("-") else parameter.name.upper()
                )
                if parameter.name != "help":
                    lines.append(f"- `{label}`: {text}".rstrip(": "))
            lines.append("")
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "commands.md").write_text(render_commands())
