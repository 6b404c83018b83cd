"""`shredlake lake`: snapshots, verification, upkeep."""

from __future__ import annotations

import signal
import threading
from datetime import UTC, date, datetime
from typing import Annotated

import typer
from attrs import asdict

from keys import ShredlakeError
from lake import (
    Housekeeping,
    Step,
    Upkeep,
    check_grace,
    explain,
    privacy_lint,
    summary_of,
    verify,
    whereabouts,
)
from lake.offsets import KIND
from lake.upkeeprules import SWEEP_GRACE_SECONDS
from service.cli.common import (
    GROUP,
    Yes,
    ask_first,
    emit,
    emit_rows,
    human_bytes,
    opened,
    opened_past_gate,
    progress_bar,
    read_subject,
    say,
)
from service.jobs import maintenance, upkeep_policy

app = typer.Typer(help="The events table: snapshots, checks, upkeep.", **GROUP)
DryRun = Annotated[bool, typer.Option("--dry-run", help="only say what would be done")]


@app.command()
def snapshots(context: typer.Context) -> None:
    """List kept snapshots, newest first, with their tags."""
    with opened_past_gate(context) as (here, runtime):
        metadata = runtime.lake.events.metadata()
        tags: dict[int, list[str]] = {}
        for name, ref in metadata.refs.items():
            tags.setdefault(ref.snapshot_id, []).append(name)
        rows = []
        for one in runtime.lake.events.history(metadata):
            summary = summary_of(one)
            rows.append(
                {
                    "snapshot": str(one.snapshot_id),
                    "committed": datetime.fromtimestamp(one.timestamp_ms / 1000, UTC),
                    "kind": summary.get(KIND, ""),
                    "blocks": int(summary.get("total-records", 0)),
                    "files": int(summary.get("total-data-files", 0)),
                    "bytes": int(summary.get("total-files-size", 0)),
                    "tags": ", ".join(tags.get(one.snapshot_id, [])),
                }
            )
        emit_rows(here, rows, "snapshots of lake.events")


@app.command("verify")
def verify_lake(
    context: typer.Context,
    deep: Annotated[bool, typer.Option("--deep", help="also count the events in the data")] = False,
) -> None:
    """Prove from metadata that every line was ingested exactly once, and lint it for identifiers."""
    with opened_past_gate(context) as (here, runtime):
        found = verify(runtime.lake, deep)
        lint = privacy_lint(runtime.lake)
        problems = [*found.problems, *lint]
        more = f" and {found.expired:,} expired" if found.expired else ""
        dropped = f" less {found.superseded:,} duplicates" if found.superseded else ""
        counted = f"; {found.stored:,} stored, as it must be" if found.stored is not None else ""
        ahead = f", {found.future:,} of them dated too far ahead" if found.future else ""
        text = "\n".join(problems) or (
            f"{found.events:,} events{dropped}{ahead} of {found.sources:,} sources in"
            f" {found.snapshots:,} snapshots{more}{counted}: no gap, no overlap, no identifier in metadata"
        )
        emit(here, asdict(found) | {"lint": lint}, text)
        if problems:
            raise typer.Exit(1)


@app.command()
def compact(
    context: typer.Context,
    day: Annotated[str | None, typer.Option(help="ingest day; default: every day")] = None,
    dry_run: DryRun = False,
) -> None:
    """Merge a day's blocks into sorted files, drop duplicates, sever erased people's blocks."""
    with opened(context) as (here, runtime):
        upkeep = Upkeep(runtime.lake)
        days = [date.fromisoformat(day)] if day else sorted(upkeep.days())
        rows = []
        with progress_bar(here, "days", len(days)) as update:
            for number, one in enumerate(days, start=1):
                files = upkeep.days().get(one, [])
                if dry_run:
                    size = sum(f.file_size_in_bytes for f in files)
                    rows.append({"day": one.isoformat(), "files": len(files), "bytes": size})
                else:
                    rows.append(
                        {k: str(v) if k == "day" else v for k, v in asdict(upkeep.compact(one)).items()}
                    )
                update(number)
        emit_rows(here, rows, "would rewrite" if dry_run else "compacted")


@app.command()
def expire(
    context: typer.Context,
    keep: Annotated[int, typer.Option(min=1, help="newest snapshots to keep")] = 100,
    yes: Yes = False,
) -> None:
    """Forget snapshots that no tag names; their files go with the next sweep."""
    ask_first("Nobody can read the lake as it was at the snapshots that go. Forget them?", yes)
    with opened(context) as (here, runtime):
        gone = Housekeeping(runtime.lake).expire(keep)
        emit(here, {"expired": len(gone)}, f"{len(gone)} snapshot(s) expired")


@app.command()
def sweep(
    context: typer.Context,
    grace_seconds: Annotated[
        float, typer.Option(min=0, help="leave younger files alone: a writer may be about to commit them")
    ] = SWEEP_GRACE_SECONDS,
    nobody_writes: Annotated[
        bool, typer.Option("--nobody-writes", help="everything that writes is stopped; any grace will do")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Delete files that no kept snapshot refers to, of the events and of every view."""
    with opened(context) as (here, runtime):
        if not dry_run:
            check_grace(grace_seconds, nobody_writes)
        found = Housekeeping(runtime.lake).sweep(grace_seconds, dry_run)
        size = 0 if not dry_run else sum(one.bytes for one in found)
        verb = "would go" if dry_run else "deleted"
        more = f" ({human_bytes(size)})" if dry_run else ""
        emit(here, {"files": len(found), "dry_run": dry_run}, f"{len(found)} file(s) {verb}{more}")


@app.command()
def merge(
    context: typer.Context,
    files: Annotated[int, typer.Option(min=2, help="leave days with fewer small files alone")] = 32,
) -> None:
    """Put small files of each day together, row by row; opens nothing."""
    with opened(context) as (here, runtime):
        upkeep = Upkeep(runtime.lake)
        rows = []
        for day in sorted(upkeep.days()):
            done = upkeep.merge(day, files)
            if done.files_before:
                rows.append(asdict(done) | {"day": day.isoformat()})
        emit_rows(here, rows, "merged")


@app.command("upkeep")
def do_upkeep(
    context: typer.Context,
    every: Annotated[
        float | None, typer.Option(min=0.1, help="go on, a round every so many minutes, until stopped")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Tag, merge, compact, let letters go, expire and sweep by the settings' [upkeep]; safe beside ingest."""
    with opened(context) as (here, runtime):
        work = maintenance(runtime)
        if dry_run:
            emit_rows(here, [step.as_row() for step in work.plan(runtime.lake.clock())], "would be done")
            return
        stopped = threading.Event()

        def tell(text: str) -> None:
            if not here.quiet:
                say(text)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        while True:
            try:
                done = work.run(runtime.lake.clock(), tell, stopped.is_set)
                emit_rows(here, [step.as_row() for step in done], "done")
            except ShredlakeError as error:
                if every is None or not error.retry_helps:
                    raise
                say(f"{error.message}; the next round tries again")
            except Exception as error:  # its text may quote a value
                if every is None:
                    raise
                say(f"the round failed: {type(error).__name__}; the next one tries again")
            if every is None or stopped.wait(every * 60):
                return


@app.command("explain")
def explain_lake(context: typer.Context) -> None:
    """Say how the table is, what a commit will take, and what upkeep does next."""
    with opened_past_gate(context) as (here, runtime):
        policy = upkeep_policy(runtime.settings.upkeep)
        found = explain(runtime.lake, runtime.lake.clock(), policy)
        levels = ", ".join(f"{count:,} {name}" for name, count in found.by_level.items() if count) or "none"
        if found.next_merge_minutes is None:
            coming = "no ingest in the last hour"
        elif found.next_merge_minutes == 0:
            coming = "today's small files are due now"
        else:
            coming = f"today's small files are due in about {found.next_merge_minutes:,.0f} minutes"
        lines = (
            f"snapshots    {found.snapshots:,} kept, {found.tags:,} tags; "
            f"metadata of {human_bytes(found.metadata_bytes)}",
            f"live files   {found.live_files:,} ({levels}), {human_bytes(found.live_bytes)}",
            f"ingest       {found.events_per_hour:,.0f} events and {found.commits_per_hour:,.0f} commits "
            f"an hour, {found.bytes_per_event:,.0f} bytes an event as committed",
            f"a commit     {1000 * found.commit_seconds:,.0f} ms, without its data and the catalog's answer",
            f"reading      planned by Shredlake from {found.manifests:,} manifest(s) in "
            f"{1000 * found.planning_seconds:,.0f} ms; Polars' own planner is not used (docs/adr/0024)",
            f"next merge   {coming}, and become a file of about {human_bytes(found.next_merge_bytes)}"
            if found.next_merge_bytes
            else f"next merge   {coming}",
            f"next L1      {found.closed_days:,} closed day(s) become about {found.l1_files:,} file(s)",
            f"partitions   by ingest day, for good; the largest is {human_bytes(found.largest_day_bytes)}, "
            "and days are divided by handles instead (docs/adr/0016)",
            *(f"next round   {_in_words(step)}" for step in found.next_round),
        )
        as_rows = [step.as_row() for step in found.next_round]
        emit(here, asdict(found) | {"next_round": as_rows}, "\n".join(lines))


def _in_words(step: Step) -> str:
    """What a round will do, for a person."""
    size, after = human_bytes(step.bytes), max(step.after, 1)
    if step.what in ("merge", "compact"):
        each = human_bytes(step.bytes_after // after)
        return f"{step.what} {step.day}: {step.before:,} files, {size}, become {after:,} of at most {each}"
    if step.what == "tag":
        return f"set {step.after:,} tag(s), take away {step.before:,}"
    if step.what == "letters":
        return f"let {step.before:,} letter(s) of {step.day} go that name nobody"
    if step.what == "expire":
        return f"expire {step.before:,} snapshot(s)"
    return f"sweep {step.before:,} file(s), {size}"


@app.command()
def where(
    context: typer.Context,
    subject: Annotated[str, typer.Argument(help="the person's id; - reads it from stdin")],
) -> None:
    """Say where a person's sealed bytes lie, of the head and of kept snapshots, readable or dead."""
    with opened(context) as (here, runtime):
        found = whereabouts(runtime.lake, read_subject(subject))
        if not found:
            emit(here, [], "nowhere")
        else:
            emit_rows(here, [asdict(one) | {"day": one.day.isoformat()} for one in found], "sealed blocks")
