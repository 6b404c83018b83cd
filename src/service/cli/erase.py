"""`shredlake erase`: plan, apply, follow, hold, scan."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from attrs import asdict

from keys import ALL_PURPOSES, ShredlakeError, SubjectId, unexpected
from purge import PurgeError, Request, Scanned, Status, standing_of
from service.cli.boundary import WrongUse
from service.cli.common import (
    GROUP,
    HELD,
    INCOMPLETE,
    Session,
    Yes,
    ask_first,
    emit,
    emit_rows,
    human_bytes,
    opened,
    progress_bar,
    read_subject,
    read_subjects,
    say,
    session,
)
from service.errors import BadInput, ScanIncomplete
from service.runtime import Runtime, open_journal
from service.scanplaces import look_for

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
    with opened(context) as (here, runtime):
        found = runtime.purge.plan(read_subject(subject))
        text = (
            f"{found.events:,} events in {found.blocks:,} blocks ({human_bytes(found.sealed_bytes)} sealed)\n"
            f"days to rewrite: {', '.join(found.days) or 'none'} ({human_bytes(found.rewrite_bytes)})\n"
            f"views to derive anew: {', '.join(found.views) or 'none'} ({found.partitions} partition(s))\n"
            f"estimated: {found.estimated_seconds} s"
            + (
                f"\ndead letters of theirs or that name them: {found.own_letters + found.letters:,}"
                if found.own_letters + found.letters
                else ""
            )
            + (
                f"\nwaiting batches that name them: {found.waiting_batches:,}"
                if found.waiting_batches
                else ""
            )
            + ("\na legal hold stands: it would wait" if found.held else "")
            + "".join(f"\nin clear: {shown_text(one)}" for one in found.shown)
            + "".join(f"\nreveals the erasure: {one}" for one in found.revealing)
            + "".join(f"\nnot covered: {one['text']}" for one in found.uncovered)
            + "".join(f"\nstays open: {open_store_text(one)}" for one in found.open_stores)
        )
        emit(here, asdict(found), text)


def shown_text(one: Mapping[str, Any]) -> str:
    """A column of a published view that can show a personal value, for people."""
    where = "in rows of few people" if one["kind"] == "few" else "in any row"
    said = f" ({one['because']})" if one["because"] else ""
    return f"{one['view']}.{one['column']} can show {', '.join(one['fields'])} {where}{said}"


def open_store_text(store: Mapping[str, str | None]) -> str:
    """A place that an erasure does not reach, for people."""
    until = store["open_until"]
    return f"{store['store']}, {store['means']}: " + (f"until {until}" if until else "never gone by itself")


@app.command()
def apply(
    context: typer.Context,
    subjects: Annotated[
        list[str] | None, typer.Argument(help="ids of people; - reads one id a line from stdin")
    ] = None,
    purpose: Annotated[str, typer.Option(help="one purpose only; default: the whole person")] = ALL_PURPOSES,
    regime: Annotated[RegimeName, typer.Option(help="which law sets the deadline")] = RegimeName.GDPR,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="same as `erase plan`")] = False,
    suppress: Annotated[
        bool, typer.Option("--suppress", help="also of whom nothing is stored: refuse what comes later")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with every request that waits or is not done")
    ] = False,
    yes: Yes = False,
) -> None:
    """Erase people: fence, destroy, derive anew, sweep, verify, attest. Cannot be taken back.

    Several are erased together, each with a receipt of its own; one that cannot be stops no other.
    """
    if resume:
        _resume(context)
        return
    if not subjects:
        raise WrongUse("name a person, or pass --resume")
    if dry_run:
        for one in subjects:
            plan(context, one)
        return
    if "-" in subjects and not yes:
        raise BadInput(
            "nothing was done: this cannot be taken back, and standard input holds the ids",
            next_step="Repeat with --yes.",
        )
    with opened(context) as (here, runtime):
        people = read_subjects(subjects)
        ask_first("Erase this person?" if len(people) == 1 else f"Erase these {len(people):,} people?", yes)
        _apply(here, runtime, people, purpose, regime, suppress)


def _apply(
    here: Session,
    runtime: Runtime,
    people: Sequence[SubjectId],
    purpose: str,
    regime: RegimeName,
    suppress: bool,
) -> None:
    salts: dict[str, str | None] = {}
    failures: dict[str, Exception] = {}
    refused: list[ShredlakeError] = []
    for person in people:
        try:
            asked = runtime.purge.submit(person, purpose=purpose, regime=regime.value, suppress=suppress)
        except PurgeError as error:
            if len(people) == 1:
                raise
            refused.append(error)
            continue
        salts[asked.request.request_id] = salt = asked.salt or runtime.purge.salt(asked.request.request_id)
        if not asked.is_new:
            say("this person's erasure was requested before; going on with that request")
        if salt:  # before anything is destroyed
            say(f"salt for the requester of {asked.request.request_id}: {salt}")
    done = runtime.purge.run_together(list(salts), _say_stage, failures.__setitem__)
    rows = [_row(one) | {"salt": salts[one.request_id]} for one in done]
    if len(people) == 1:
        emit(here, rows[0], f"{done[0].status.value}: receipt {done[0].request_id}")
    else:
        emit_rows(here, rows if here.as_json else [_row(one) for one in done], "erasures")
    sys.stdout.flush()
    for request_id in salts:
        runtime.purge.salt_received(request_id)
    _end(done, failures, refused)


def _end(done: Sequence[Request], failures: Mapping[str, Exception], refused: Sequence[Exception]) -> None:
    """Says what did not go; a single failure is raised, for its own words and exit code."""
    if len(done) + len(refused) == 1 and failures:
        raise next(iter(failures.values()))
    for request_id, error in failures.items():
        say(f"{request_id} waits: {told(error)}")
    for error in refused:
        say(f"refused: {told(error)}")
    if refused or any(request.status is not Status.COMPLETED for request in done):
        raise typer.Exit(INCOMPLETE)


def told(error: Exception) -> str:
    """An error in a sentence; the text of a foreign one may quote a value."""
    if isinstance(error, ShredlakeError):
        return f"{error.message}. {error.next_step}"
    return unexpected(error).message


def _say_stage(stage: str, seconds: float, detail: Mapping[str, object]) -> None:
    say(f"  {stage:<18} {seconds:8.3f} s")


def _resume(context: typer.Context) -> None:
    with opened(context) as (here, runtime):
        runtime.keyring.converge()
        failures: dict[str, Exception] = {}
        done = runtime.purge.resume_all(_say_stage, failures.__setitem__)
        for name in runtime.purge.bring_views_back():
            say(f"view {name} builds again and is published")
        emit_rows(here, [_row(request) for request in done], "resumed")
        _end(done, failures, ())


@app.command("salt")
def show_salt(context: typer.Context, request_id: RequestId) -> None:
    """Print the salt of a receipt's commitment, kept for the requester; printed once, it is destroyed."""
    with opened(context) as (here, runtime):
        found = runtime.purge.salt(request_id)
        if found is None:
            raise BadInput(
                "the salt was delivered already, and is not kept",
                next_step="Ask whoever received it; without it the receipt still verifies.",
            )
        emit(here, {"request": request_id, "salt": found}, found)
        sys.stdout.flush()
        runtime.purge.salt_received(request_id)


@app.command("list")
def list_requests(context: typer.Context) -> None:
    """List requests, the one due first ahead, and count those that wait, are half done, or overdue."""
    here = session(context)
    with open_journal(here.home) as journal:
        requests = journal.all()
        emit_rows(here, [_row(request) for request in requests], "erasure requests")
        count = standing_of(requests, datetime.now(UTC))
        if count.open:
            say(f"{count.words()}; `shredlake erase apply --resume` goes on with them")


@app.command()
def status(context: typer.Context, request_id: RequestId) -> None:
    """Show a request with every stage and its time; exit code 3 while it is not complete."""
    here = session(context)
    with open_journal(here.home) as journal:
        found = journal.get(request_id)
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
    here = session(context)
    with open_journal(here.home) as journal:
        done = journal.cancel(request_id)
        emit(here, _row(done), done.status.value)


@app.command()
def hold(
    context: typer.Context, subject: Subject, why: Annotated[str, typer.Option(help="for the record")] = ""
) -> None:
    """Put a person under legal hold: not destroyed, and readable by no view."""
    with opened(context) as (here, runtime):
        runtime.purge.hold(read_subject(subject), why)
        emit(here, {"held": True}, "held")


@app.command()
def release(context: typer.Context, subject: Subject) -> None:
    """End a legal hold; an erasure that waited for it goes on."""
    with opened(context) as (here, runtime):
        waiting = runtime.purge.release(read_subject(subject))
        if waiting is not None:
            say("an erasure waited for this; going on with it")
            runtime.purge.run(waiting.request_id)
        emit(here, {"held": False}, "released")


@app.command("scan")
def scan_files(context: typer.Context, subject: Subject) -> None:
    """Look for a person in every byte of the lake's files, also behind its keys; exit code 3 if found.

    What is sealed under another person, and longer names that hold the id, are told apart and are no finding.
    """
    with opened(context) as (here, runtime):
        objects, person = runtime.lake.warehouse.objects, read_subject(subject)
        with progress_bar(here, "files", None) as update:
            (found,) = look_for(here.home, runtime.settings, objects, [person], update)
        _tell_scanned(here, found)
        if found.failures:
            raise ScanIncomplete(
                f"{len(found.failures)} file(s) could not be opened, so nothing is said of them"
            )
        if found.findings:
            raise typer.Exit(INCOMPLETE)


def _tell_scanned(here: Session, found: Scanned) -> None:
    if here.as_json:
        emit(
            here,
            {name: value for name, value in asdict(found).items() if name != "opened_values"}
            | {"opened": found.opened_values},
        )
        return
    if found.findings:
        emit_rows(here, [asdict(one) for one in found.findings], "found")
    if found.apart:
        emit_rows(here, [asdict(one) for one in found.apart], "apart: other people's, and longer names")
    if found.failures:
        emit_rows(here, [asdict(one) for one in found.failures], "could not be opened")
    where = "nowhere" if not (found.findings or found.failures) else "looked"
    emit(
        here,
        None,
        f"{where} in {found.files:,} files ({human_bytes(found.bytes)}), "
        f"{found.opened_values:,} sealed values opened",
    )
    say(f"not searched: {'; '.join(found.not_searched)}")
    if found.out_of_reach:
        say(f"out of reach: {'; '.join(found.out_of_reach)}")


def _row(request: Request) -> dict[str, object]:
    return {
        "request": request.request_id,
        "status": request.status.value,
        "stage": request.stage,
        "due": request.due_at.date().isoformat(),
        "regime": request.regime,
        "scope": request.purpose,
    }
