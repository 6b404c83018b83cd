"""`shredlake config`: what is set."""

from __future__ import annotations

from typing import Any

import typer

from service.cli.common import emit, session
from service.settings import describe, load_settings

app = typer.Typer(help="Settings.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def show(context: typer.Context) -> None:
    """Show every setting with its value, from file, environment and defaults."""
    here = session(context)
    found = describe(load_settings(here.home))
    emit(here, found, "\n".join(_lines(found, "")))


def _lines(value: Any, prefix: str) -> list[str]:
    if isinstance(value, dict):
        return [line for k, v in value.items() for line in _lines(v, f"{prefix}.{k}" if prefix else k)]
    return [f"{prefix} = {value!r}"]
