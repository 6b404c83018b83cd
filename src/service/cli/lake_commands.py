"""`shredlake lake`: snapshots, verification, upkeep."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated

import typer
from attrs import asdict

from lake import Upkeep, privacy_lint, summary_of, verify
from lake.offsets import KIND
from service.cli.common import GROUP, emit, emit_rows, human_bytes, opened, progress_bar, read_subject

app = typer.Typer(help="The events table: snapshots, checks, upkeep.", **GROUP)
DryRun = Annotated[bool, typer.Option("--dry-run", help="only say what would be done")]


@app.command()
def snapshots(context: typer.Context) -> None:
    """List kept snapshots, newest first, with their tags."""
    with opened(context) as (here, runtime):
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
    deep: Annotated[bool, typer.Option("--deep", help="also read the data")] = False,
) -> None:
    """Prove from metadata that every line was ingested exactly once, and lint it for identifiers."""
    with opened(context) as (here, runtime):
        found = verify(runtime.lake, deep)
        lint = privacy_lint(runtime.lake)
        problems = [*found.problems, *lint]
        stored = f", {found.stored:,} stored" if found.stored is not None else ""
        text = "\n".join(problems) or (
            f"{found.events:,} events in {found.ranges:,} ranges of {found.snapshots:,} snapshots{stored}: "
            "no gap, no overlap, no identifier in metadata"
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
    """Merge a day's blocks into one sorted file, drop duplicates, sever erased people's blocks."""
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
) -> None:
    """Forget snapshots that no tag names; their files go with the next sweep."""
    with opened(context) as (here, runtime):
        gone = Upkeep(runtime.lake).expire(keep)
        emit(here, {"expired": len(gone)}, f"{len(gone)} snapshot(s) expired")


@app.command()
def sweep(
    context: typer.Context,
    grace_seconds: Annotated[float, typer.Option(min=0, help="leave younger files alone")] = 3600.0,
    dry_run: DryRun = False,
) -> None:
    """Delete files that no kept snapshot refers to."""
    with opened(context) as (here, runtime):
        found = Upkeep(runtime.lake).sweep(grace_seconds, dry_run)
        size = 0 if not dry_run else sum(one.bytes for one in found)
        verb = "would go" if dry_run else "deleted"
        more = f" ({human_bytes(size)})" if dry_run else ""
        emit(here, {"files": len(found), "dry_run": dry_run}, f"{len(found)} file(s) {verb}{more}")


@app.command()
def where(
    context: typer.Context,
    subject: Annotated[str, typer.Argument(help="the person's id; - reads it from stdin")],
) -> None:
    """Say in which ingest days a person's sealed blocks lie."""
    with opened(context) as (here, runtime):
        ref = runtime.keyring.ref_of(read_subject(subject))
        days = Upkeep(runtime.lake).days_of([ref]) if ref is not None else []
        text = ", ".join(sorted(d.isoformat() for d in days)) or "nowhere"
        emit(here, {"days": [d.isoformat() for d in days]}, text)
