"""`shredlake schema`: schema files in CI, and what is kept in clear."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lake import clear_fields
from service.cli.common import GROUP, emit, emit_rows, opened, opened_past_gate, say, session
from service.schemafiles import Verdict, check_files, folder_types

app = typer.Typer(help="Versions of event types: compatibility, and what is kept in clear.", **GROUP)
SchemaFiles = Annotated[list[Path], typer.Argument(help="JSON Schemas of versions of event types")]


@app.command()
def check(
    context: typer.Context,
    files: SchemaFiles,
    against: Annotated[
        Path | None, typer.Option(help="folder of registered schema files (default: the lake's own)")
    ] = None,
) -> None:
    """Say which schemas could be registered, and why the others could not, for CI; changes nothing.

    With --against it needs no lake. Exit code 1 where any could not.
    """
    if against is not None:
        here, verdicts = session(context), check_files(files, folder_types(against))
    else:
        with opened_past_gate(context) as (here, runtime):
            verdicts = check_files(files, runtime.lake.types.chain)
    emit(
        here,
        [
            {
                "file": one.file,
                "type": one.name,
                "version": one.version,
                "compatibility": one.compatibility,
                "compatible": one.is_compatible,
                "problems": one.problems,
                "notes": one.notes,
            }
            for one in verdicts
        ],
        "\n".join(_told(one) for one in verdicts),
    )
    for one in verdicts:
        for text in one.notes:
            say(f"note: {one.name} version {one.version}: {text}")
    if not all(one.is_compatible for one in verdicts):
        raise typer.Exit(1)


def _told(one: Verdict) -> str:
    which = f"{one.name} version {one.version} ({one.compatibility})" if one.name else one.file
    if one.is_compatible:
        return f"{which}: compatible"
    return "\n".join([f"{which}: refused", *(f"  {text}" for text in one.problems)])


@app.command()
def doctor(context: typer.Context) -> None:
    """List every field that is kept in clear (and after an erasure), why, and what speaks against it.

    The reason is the property's `because`, else its `description`. Older versions count: what they kept
    in clear is still stored.
    """
    with opened(context) as (here, runtime):
        types = runtime.lake.types
        found = [one for name in types.names() for one in clear_fields(types.chain(name))]
        rows = [
            {
                "type": one.event_type,
                "field": one.name,
                "versions": ", ".join(map(str, one.versions)),
                "level": "warning" if one.doubts else "ok",
                "why": one.reason or "",
                "doubts": "; ".join(one.doubts),
            }
            for one in found
        ]
        emit_rows(here, rows, "fields in clear")
        doubtful = sum(1 for one in found if one.doubts)
        if doubtful:
            say(f"{doubtful} of {len(found)} field(s) in clear need a second look")
