#!/usr/bin/env bash
# Every call of a Typer app replaces `sys.excepthook`, also where pretty exceptions are switched off.
#
# Guess: `pretty_exceptions_enable=False` leaves the interpreter's hook alone, and importing installs one at most once.
# Seen (typer 0.29.2): a hook that was set before `app()` is gone after it, with the option off too; a service that masks
#   tracebacks, or an error reporter, is out of work from the first command on, in silence. Not put back at the end.
# What to do: set the hook inside the command's callback, or save it and put it back around the call.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check typer==0.29.2
env/bin/python - <<'PY'
import sys

import typer


def go() -> None:
    """A command that does nothing."""


def ours(*_: object) -> None:
    """A hook that masks."""


for pretty in (True, False):
    app = typer.Typer(pretty_exceptions_enable=pretty)
    app.command()(go)
    sys.excepthook = ours
    app([], standalone_mode=False)
    print(f"pretty_exceptions_enable={pretty}: our hook is {'kept' if sys.excepthook is ours else 'gone'}")
    assert sys.excepthook is not ours
PY
