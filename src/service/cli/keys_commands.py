"""`shredlake keys`: what the key tree holds, epochs, the restore gate."""

from __future__ import annotations

import typer
from attrs import asdict

from service.cli.common import GROUP, INCOMPLETE, emit, opened

app = typer.Typer(help="Keys, epochs and the restore gate.", **GROUP)


@app.command()
def stats(context: typer.Context) -> None:
    """Count pages, records, fences and root versions."""
    with opened(context) as (here, runtime):
        found = dict(runtime.keyring.stats())
        emit(here, found, "\n".join(f"{name:<20} {value}" for name, value in found.items()))


@app.command()
def gate(context: typer.Context) -> None:
    """Say whether fence log and key pages agree; exit code 3 if not."""
    with opened(context) as (here, runtime):
        found = runtime.keyring.gate()
        text = "open" if found.is_open else "shut: run `shredlake keys converge`"
        emit(here, asdict(found) | {"open": found.is_open}, text)
        if not found.is_open:
            raise typer.Exit(INCOMPLETE)


@app.command()
def converge(context: typer.Context) -> None:
    """After a restore: destroy every fenced subject again, so that the gate opens."""
    with opened(context) as (here, runtime):
        count = runtime.keyring.converge()
        emit(here, {"replayed": count}, f"{count} fence(s) replayed")


@app.command("close-epoch")
def close_epoch(context: typer.Context) -> None:
    """Rotate the root and retire what came before: no older copy of the key pages opens any more."""
    with opened(context) as (here, runtime):
        done = runtime.keyring.close_epoch()
        proof = "an old wrap was tried and refused" if done.old_wrap_refused else "AN OLD WRAP STILL OPENS"
        emit(here, asdict(done), f"root version {done.root_version}, {done.nodes} nodes rewrapped; {proof}")
        if not done.old_wrap_refused:
            raise typer.Exit(1)
