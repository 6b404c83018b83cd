"""`shredlake events`: event types and dead letters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lake import dead_letters, notes, redrive
from service.cli.common import GROUP, INCOMPLETE, emit, emit_rows, opened, opened_past_gate, say
from service.schemafiles import check_files, read_document

app = typer.Typer(help="Event types and dead letters.", **GROUP)
SchemaFile = Annotated[Path, typer.Argument(help="JSON Schema of one version of an event type")]


@app.command()
def register(context: typer.Context, schema: SchemaFile) -> None:
    """Register a version of an event type; refuses what could not read stored events."""
    document = read_document(schema)
    with opened_past_gate(context) as (here, runtime):
        found = runtime.lake.types.register(document)
        clear = ", ".join(found.clear_fields()) or "none"
        for text in notes(found):
            say(f"note: {text}")
        say(f"kept in clear (and after an erasure): {clear}")
        emit(here, {"name": found.name, "version": found.version}, f"{found.name} version {found.version}")


@app.command()
def check(context: typer.Context, schema: SchemaFile) -> None:
    """Say whether a schema could be registered here, without doing it (`schema check` needs no lake)."""
    with opened_past_gate(context) as (here, runtime):
        (verdict,) = check_files([schema], runtime.lake.types.chain)
        text = "\n".join(verdict.problems) or "compatible"
        emit(here, {"compatible": verdict.is_compatible, "problems": verdict.problems}, text)
        if not verdict.is_compatible:
            raise typer.Exit(1)


@app.command("types")
def list_types(context: typer.Context) -> None:
    """List registered event types."""
    with opened_past_gate(context) as (here, runtime):
        types = runtime.lake.types
        rows = [
            {
                "name": name,
                "versions": ", ".join(map(str, types.versions(name))),
                "fields": len(types.get(name).fields),
                "in clear": ", ".join(types.get(name).clear_fields()),
            }
            for name in types.names()
        ]
        emit_rows(here, rows, "event types")


@app.command()
def letters(
    context: typer.Context,
    raw: Annotated[bool, typer.Option("--raw", help="also show what was sent (personal data)")] = False,
) -> None:
    """List dead letters: events that did not fit, with the rule they broke and where they came from."""
    with opened(context) as (here, runtime):
        rows = []
        for letter in dead_letters(runtime.lake):
            row = {
                "reason": letter.reason,
                "field": letter.at_field or "",
                "source": letter.source[:21],
                "line": letter.line + 1,
            }
            rows.append(row | ({"raw": letter.raw.decode(errors="replace")} if raw else {}))
        emit_rows(here, rows, "dead letters")


@app.command("redrive")
def redrive_letters(
    context: typer.Context,
    reason: Annotated[str | None, typer.Option(help="only letters with this reason")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say how many would be sent")] = False,
) -> None:
    """Send dead letters through ingest again, for instance after registering their event type.

    Only letters that were CloudEvents can pass; lines of a CSV are mended in the file and ingested again.
    """
    with opened(context) as (here, runtime):
        chosen = [x for x in dead_letters(runtime.lake) if reason is None or x.reason == reason]
        if dry_run or not chosen:
            emit(here, {"letters": len(chosen)}, f"{len(chosen)} letter(s) would be sent again")
            return
        done = redrive(runtime.lake, chosen)
        text = f"{done.events:,} of {len(chosen):,} went in, {done.dead:,} are dead letters again"
        if done.already:
            text = f"all {done.already:,} were sent again before"
        emit(here, {"events": done.events, "dead": done.dead, "already": done.already}, text)
        if done.dead:
            raise typer.Exit(INCOMPLETE)
