"""`shredlake erase`: plan, apply, follow, hold, scan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import typer
from attrs import asdict

from keys import ALL_PURPOSES
from purge import Request, Status, scan
from service.cli.common import (
    GROUP,
    HELD,
    INCOMPLETE,
    emit,
    emit_rows,
    human_bytes,
    opened,
    opened_gate,
    progress_bar,
    read_subject,
    say,
)
from service.keyplaces import key_places

app = typer.Typer(help="Erasure requests and legal holds.", **GROUP)
Subject = Annotated[str, typer.Argument(help="the person's id; - reads it from stdin")]
RequestId = Annotated[str, typer.Argument(help="an erasure request")]


class RegimeName(StrEnum):
    """Which law sets the deadline."""

    GDPR = "gdpr"
    CCPA = "ccpa"
    LGPD = "lgpd"


@app.command()
def plan(context: typer.Context, subject: Subject) -> None:
    """Say what erasing a person would touch; changes nothing."""
    with opened_gate(context) as (here, runtime):
        found = runtime.purge.plan(read_subject(subject))
        text = (
            f"{found.events:,} events in {found.blocks:,} blocks ({human_bytes(found.sealed_bytes)} sealed)\n"
            f"days to rewrite: {', '.join(found.days) or 'none'} ({human_bytes(found.rewrite_bytes)})\n"
            f"views to derive anew: {', '.join(found.views) or 'none'} ({found.partitions} partition(s))\n"
            f"estimated: {found.estimated_seconds} s"
            + (f"\ndead letters that name them: {found.letters:,}" if found.letters else "")
            + (
                f"\nwaiting batches that name them: {found.waiting_batches:,}"
                if found.waiting_batches
                else ""
            )
            + ("\na legal hold stands: it would wait" if found.held else "")
            + "".join(f"\nstays open: {open_store_text(one)}" for one in found.open_stores)
        )
        emit(here, asdict(found), text)


def open_store_text(store: Mapping[str, str | None]) -> str:
    """A place that an erasure does not reach, for people."""
    until = store["open_until"]
    return f"{store['store']}, {store['means']}: " + (f"until {until}" if until else "never gone by itself")


@app.command()
def apply(
    context: typer.Context,
    subject: Annotated[str | None, typer.Argument(help="the person's id; - reads it from stdin")] = None,
    purpose: Annotated[str, typer.Option(help="one purpose only; default: the whole person")] = ALL_PURPOSES,
    regime: Annotated[RegimeName, typer.Option(help="which law sets the deadline")] = RegimeName.GDPR,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="same as `erase plan`")] = False,
    suppress: Annotated[
        bool, typer.Option("--suppress", help="also of whom nothing is stored: refuse what comes later")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with every request that is not done")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Erase a person: fence, destroy, derive anew, sweep, verify, attest. Cannot be taken back."""
    if resume:
        _resume(context)
        return
    if subject is None:
        raise typer.BadParameter("name a person, or pass --resume")
    if dry_run:
        plan(context, subject)
        return
    with opened_gate(context) as (here, runtime):
        person = read_subject(subject)
        if not yes and not here.as_json and not here.quiet:
            typer.confirm("This cannot be taken back. Erase?", abort=True, err=True)
        submitted = runtime.purge.submit(person, purpose=purpose, regime=regime.value, suppress=suppress)
        if not submitted.is_new:
            say("this person's erasure was requested before; going on with that request")
        done = runtime.purge.run(
            submitted.request.request_id,
            lambda stage, seconds, detail: say(f"  {stage:<18} {seconds:8.3f} s"),
        )
        if submitted.salt:
            say(f"salt for the requester (told only now): {submitted.salt}")
        emit(here, _row(done) | {"salt": submitted.salt}, f"{done.status.value}: receipt {done.request_id}")
        if done.status is not Status.COMPLETED:
            raise typer.Exit(INCOMPLETE)


def _resume(context: typer.Context) -> None:
    with opened_gate(context) as (here, runtime):
        runtime.keyring.converge()
        done = runtime.purge.resume_all(lambda stage, seconds, detail: say(f"  {stage:<18} {seconds:8.3f} s"))
        emit_rows(here, [_row(request) for request in done], "resumed")
        if any(request.status is not Status.COMPLETED for request in done):
            raise typer.Exit(INCOMPLETE)


@app.command("list")
def list_requests(context: typer.Context) -> None:
    """List requests, the one due first ahead."""
    with opened(context) as (here, runtime):
        emit_rows(here, [_row(request) for request in runtime.purge.journal.all()], "erasure requests")


@app.command()
def status(context: typer.Context, request_id: RequestId) -> None:
    """Show a request with every stage and its time; exit code 3 while it is not complete."""
    with opened(context) as (here, runtime):
        found = runtime.purge.journal.get(request_id)
        rows = [
            {
                "stage": s.stage,
                "finished": s.finished_at or "",
                "seconds": s.seconds or 0.0,
                "found": json.dumps(dict(s.detail)),
            }
            for s in found.stages
        ]
        emit_rows(here, rows, f"{found.request_id}: {found.status.value}, due {found.due_at.date()}")
        if found.status is Status.HELD:
            raise typer.Exit(HELD)
        if found.status is not Status.COMPLETED:
            raise typer.Exit(INCOMPLETE)


@app.command()
def cancel(context: typer.Context, request_id: RequestId) -> None:
    """Take a request back while nothing is fenced."""
    with opened(context) as (here, runtime):
        done = runtime.purge.journal.cancel(request_id)
        emit(here, _row(done), done.status.value)


@app.command()
def hold(
    context: typer.Context, subject: Subject, why: Annotated[str, typer.Option(help="for the record")] = ""
) -> None:
    """Put a person under legal hold: not destroyed, and readable by no view."""
    with opened_gate(context) as (here, runtime):
        runtime.purge.hold(read_subject(subject), why)
        emit(here, {"held": True}, "held")


@app.command()
def release(context: typer.Context, subject: Subject) -> None:
    """End a legal hold; an erasure that waited for it goes on."""
    with opened_gate(context) as (here, runtime):
        waiting = runtime.purge.release(read_subject(subject))
        if waiting is not None:
            say("an erasure waited for this; going on with it")
            runtime.purge.run(waiting.request_id)
        emit(here, {"held": False}, "released")


@app.command("scan")
def scan_files(context: typer.Context, subject: Subject) -> None:
    """Look for a person in every byte of the lake's files, also behind its keys; exit code 3 if found."""
    with opened(context) as (here, runtime):
        places = key_places(here.home, runtime.settings.keys)
        with progress_bar(here, "files", None) as update:
            objects = runtime.lake.warehouse.objects
            found = scan(here.home, read_subject(subject), update, places, objects)
        rows = [{"path": f.path, "how": f.how, "encoding": f.encoding} for f in found.findings]
        if rows:
            emit_rows(here, rows, "found")
            raise typer.Exit(INCOMPLETE)
        emit(
            here,
            {"findings": [], "files": found.files, "bytes": found.bytes, "opened": found.opened_values},
            f"nowhere in {found.files:,} files ({human_bytes(found.bytes)}), "
            f"{found.opened_values:,} sealed values opened",
        )


def _row(request: Request) -> dict[str, object]:
    return {
        "request": request.request_id,
        "status": request.status.value,
        "stage": request.stage,
        "due": request.due_at.date().isoformat(),
        "regime": request.regime,
        "scope": request.purpose,
    }
