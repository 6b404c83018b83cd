#!/usr/bin/env bash
# `except click.ClickException` around a Typer command catches none of its errors any more.
#
# Guess: Typer stands on click, so usage errors of its commands are `click.ClickException`, as they were for years.
# Seen (typer 0.29.2 with click 8.5.1): Typer carries a copy of click of its own; a missing option raises
#   `typer._click.exceptions.MissingParameter`, whose bases are Typer's. Handlers for click's errors are skipped in silence.
# What to do: catch `typer.exceptions.TyperException`, or run with `standalone_mode=True` and look at the exit code.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check typer==0.29.2 click==8.5.1
env/bin/python - <<'PY'
import click
import typer

app = typer.Typer()

@app.command()
def run(name: str = typer.Option(...)) -> None: ...

command = typer.main.get_command(app)
try:
    command.main([], standalone_mode=False)
    caught = "nothing was raised"
except click.ClickException as error:
    caught = f"click's {type(error).__name__}"
except Exception as error:
    caught = f"{type(error).__module__}.{type(error).__name__}"
print(f"raised: {caught}; a click command: {isinstance(command, click.Command)}")
assert caught.startswith("typer.") and not isinstance(command, click.Command)
PY
