"""`shredlake views`: build, publish, read, time travel."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from lake import Nearest
from projections import Dropped, revealing
from service.cli.boundary import WrongUse
from service.cli.common import (
    GROUP,
    Yes,
    ask_first,
    emit,
    emit_frame,
    emit_rows,
    opened,
    opened_past_gate,
    parse_moment,
    progress_bar,
    read_subject,
    say,
)
from service.errors import NearestRefused
from service.runtime import Runtime, shredded_text

app = typer.Typer(help="Views: build, publish, read, time travel.", **GROUP)
Names = Annotated[list[str] | None, typer.Argument(help="views; all where none is named")]
Name = Annotated[str, typer.Argument(help="a view")]
AsOf = Annotated[str | None, typer.Option("--as-of", help="a moment, e.g. 2026-01-31T10:00+01:00")]
Certified = Annotated[
    Nearest | None,
    typer.Option("--nearest", help="of `lake read` alone: what was published is never another moment's"),
]
Why = Annotated[str, typer.Option(help="why, for the record")]


class Mode(StrEnum):
    """The three answers about the past that are never mixed."""

    AS_REPORTED = "as_reported"
    AS_RECOMPUTED = "as_recomputed"
    RECONCILE = "reconcile"


@app.command("list")
def list_views(context: typer.Context) -> None:
    """List views and what readers see of them."""
    with opened_past_gate(context) as (here, runtime):
        release = runtime.views.ledger.current()
        personal = set(runtime.views.personal_names())
        rows = []
        for name in runtime.views.registry.names():
            entry = release.entries.get(name) if release else None
            seen = runtime.views.ledger.publication(entry) if entry else None
            rows.append(
                {
                    "view": name,
                    "personal": name in personal,
                    "version": seen.version if seen else "not published",
                    "rows": seen.rows if seen else 0,
                    "events": seen.events_counted if seen else 0,
                    "epoch": seen.epoch if seen else 0,
                }
            )
        emit_rows(here, rows, "views")


@app.command()
def build(
    context: typer.Context,
    names: Names = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="derive every bucket anew")] = False,
    as_of: AsOf = None,
    nearest: Certified = None,
    publish: Annotated[bool, typer.Option("--publish", help="switch readers to the result")] = False,
    accept_changed: Annotated[
        bool, typer.Option("--accept-changed", help="keep a result that is another one over the same input")
    ] = False,
    older: Annotated[
        bool, typer.Option("--older", help="publish an older input over the newer one that readers see")
    ] = False,
    why: Why = "",
) -> None:
    """Build views beside what readers see: first build, catch-up or rebuild, whichever is due."""
    if older and not publish:
        raise WrongUse("--older says what may be published: give --publish with it")
    with opened(context) as (here, runtime):
        moment = _exact(as_of, nearest)
        snapshot = runtime.lake.replay().as_of(moment).commit if moment else None
        with progress_bar(here, "deriving", None) as update:
            wanted = names or runtime.views.registry.names()
            options: dict[str, Any] = {
                "snapshot_id": snapshot.snapshot_id if snapshot else None,
                "rebuild": rebuild,
                "accept_changed": accept_changed,
                "who": "cli",
                "why": why,
                "progress": lambda what, done, total: update(done, total, what),
            }
            release = None
            if publish:
                built, release = runtime.views.bring_up_to_date(wanted, older=older, **options)
            else:
                built = runtime.views.build(wanted, **options)
        rows = [
            {
                "view": one.publication.view,
                "version": one.publication.version,
                "derived": one.derived,
                "merged": one.merged,
                "reused": one.reused,
                "rows": one.publication.rows,
                "events": one.publication.events_counted,
                "shredded": one.publication.events_shredded,
            }
            for one in built
        ]
        emit_rows(here, rows, "built (buckets derived, merged, reused)")
        if release is not None:
            runtime.purge.log_publications()
            say(f"published as release {release.release_id}")


@app.command("publish")
def publish_views(context: typer.Context, names: Names = None, why: Why = "") -> None:
    """Bring views up to date and switch readers to them in one commit."""
    with opened(context) as (here, runtime):
        for found in revealing(runtime.views.registry.all(), runtime.lake.types):
            if not found.because:
                say(f"warning: {found.text}")
        wanted = names or runtime.views.registry.names()
        _, release = runtime.views.bring_up_to_date(wanted, who="cli", why=why)
        runtime.purge.log_publications()
        emit(here, {"release": release.release_id}, f"release {release.release_id}")


@app.command("rollback")
def roll_back(context: typer.Context, name: Name, why: Why = "") -> None:
    """Switch a view back to the publication before, in one commit; never brings a person back."""
    with opened(context) as (here, runtime):
        release = runtime.views.roll_back(name, who="cli", why=why)
        emit(here, {"release": release.release_id}, f"release {release.release_id}")


@app.command()
def show(
    context: typer.Context,
    name: Name,
    as_of: AsOf = None,
    nearest: Certified = None,
    mode: Annotated[Mode, typer.Option(help="which answer about that moment")] = Mode.AS_REPORTED,
    limit: Annotated[int, typer.Option(min=1, help="rows to show")] = 20,
) -> None:
    """Show a view's rows: as reported then, as recomputed today, or their difference explained."""
    with opened(context) as (here, runtime):
        moment = _exact(as_of, nearest)
        if mode is Mode.RECONCILE:
            found = runtime.views.reconcile(name, moment)
            erased = "not told" if found.erased_events is None else f"{found.erased_events:,}"
            say(f"events of people erased since: {erased}; unexplained: {found.residual}")
            _say_withheld(found.withheld)
            emit_frame(here, found.differences, limit, f"{name}: rows that differ")
            return
        ask = runtime.views.as_reported if mode is Mode.AS_REPORTED else runtime.views.as_recomputed
        answer = ask(name, moment)
        p = answer.publication
        say(
            f"version {p.version}, input snapshot {p.input_snapshot}, epoch {p.epoch}, built {p.built_at}"
            + (f", source sha256:{p.source}" if p.source else "")
            + (f", {answer.shredded} row(s) shredded" if answer.shredded else "")
        )
        _say_withheld(answer.withheld)
        if answer.stale:
            say(f"stale: {answer.stale}")
        emit_frame(here, answer.rows, limit, f"{name} {mode.value}")


def _say_withheld(rows: int) -> None:
    if rows:
        say(f"{rows:,} row(s) withheld: subtracting them from earlier ones would single out erased people")


@app.command()
def person(
    context: typer.Context,
    name: Name,
    subject: Annotated[str, typer.Argument(help="the person's id; - reads it from stdin")],
    as_of: AsOf = None,
    nearest: Certified = None,
) -> None:
    """Show all rows of one person, or the receipt that says why there are none."""
    with opened(context) as (here, runtime):
        found = runtime.views.person(name, read_subject(subject), _exact(as_of, nearest))
        if found.shredded is not None:
            receipt = found.shredded.receipt_id
            emit(here, {"shredded": True, "receipt": receipt}, shredded_text(runtime.purge.journal, receipt))
        elif found.held:
            emit(here, {"held": True}, "held: a legal hold stands over this person, and no row is shown")
        elif found.row is None:
            emit(here, None, "no row of this person")
        else:
            emit_rows(here, list(found.rows), name)


@app.command()
def history(context: typer.Context, name: Name) -> None:
    """List a view's publications with their inputs and code."""
    with opened_past_gate(context) as (here, runtime):
        dropped = runtime.views.ledger.dropped()
        rows = [
            {
                "publication": p.publication_id,
                "built at": p.built_at,
                "version": p.version,
                "input snapshot": str(p.input_snapshot),
                "epoch": p.epoch,
                "rows": p.rows,
                "source": p.source[:12],
                "commit": p.git_sha[:12] + ("+changes" if p.git_dirty else ""),
                "why": p.why,
                "dropped": _dropped_text(dropped.get(p.publication_id)),
            }
            for p in runtime.views.ledger.history(name)
        ]
        emit_rows(here, rows, f"publications of {name}")


@app.command()
def source(
    context: typer.Context,
    name: Name,
    publication: Annotated[
        int | None, typer.Option("--publication", help="of `views history`; default: what readers see")
    ] = None,
) -> None:
    """Show the code that made a publication, byte for byte, verified against the digest on record."""
    with opened(context) as (here, runtime):
        found, files = runtime.views.source(name, publication)
        texts = {one.path.name: one.body.decode(errors="replace") for one in files}
        said = {
            "view": name,
            "publication": found.publication_id,
            "version": found.version,
            "source": found.source,
            "holds_ids": found.holds_ids,
            "files": texts,
        }
        say(f"version {found.version}, source sha256:{found.source}, verified")
        emit(here, said, "\n".join(f"# {file}\n{text}" for file, text in texts.items()))


@app.command("drop-publications")
def drop_publications(
    context: typer.Context,
    name: Name,
    before: Annotated[str | None, typer.Option("--before", help="those built before a moment")] = None,
    keep: Annotated[int | None, typer.Option("--keep", min=1, help="all but so many of the newest")] = None,
    all_but_current: Annotated[
        bool, typer.Option("--all-but-current", help="all but what readers see")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list them; change nothing")] = False,
    yes: Yes = False,
    why: Why = "",
) -> None:
    """Drop old publications of a view for good: rows, files, snapshots; the record says when and why.

    What readers see stays, and so does the newest publication of a view with a floor of people: the next one
    is compared with it.
    """
    if (before is not None) + (keep is not None) + all_but_current != 1:
        raise WrongUse("say which: --before MOMENT, --keep N, or --all-but-current")
    with opened(context) as (here, runtime):
        dropping = runtime.views.dropping
        if not runtime.views.ledger.history(name):
            runtime.views.registry.get(name)
        chosen = dropping.choose(name, before=parse_moment(before), keep=keep)
        rows = [
            {"publication": p.publication_id, "built at": p.built_at, "version": p.version, "rows": p.rows}
            for p in chosen.publications
        ]
        if chosen.compared is not None:
            say(f"publication {chosen.compared.publication_id} stays: the next one is compared with it")
        owed = [one for one in dropping.owed() if one.view == name]
        if dry_run or not (rows or owed):
            emit_rows(here, rows, "publications to drop")
            return
        ask_first(f"Drop {len(rows):,} publication(s) of {name}?", yes)
        with progress_bar(here, "dropping", len(rows)) as update:
            gone = dropping.drop(chosen.publications, why=why or "asked for", step=update)
        runtime.purge.log_publications()
        emit_rows(here, rows, f"dropped publications of {name}")
        say(f"{len(gone):,} publication(s) dropped")


@app.command()
def heads(
    context: typer.Context,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="move those back that somebody else has moved"),
    ] = False,
) -> None:
    """List the tables that other engines read: the head of each, and whether it is what is published."""
    with (opened if repair else opened_past_gate)(context) as (here, runtime):
        found = runtime.views.heads.look()
        if repair:
            runtime.views.heads.repair([one.table for one in found if one.state in ("waits", "foreign")])
            found = runtime.views.heads.look()
        rows = [
            {
                "table": one.table,
                "shows": one.state,
                "snapshot": str(one.snapshot_id or ""),
                "publication": one.publication_id or "",
                "epoch": one.epoch,
            }
            for one in found
        ]
        emit_rows(here, rows, "tables of views")


@app.command()
def runs(context: typer.Context) -> None:
    """List past runs of scheduled jobs."""
    with opened_past_gate(context) as (here, runtime):
        emit_rows(here, _runs(runtime), "scheduled runs")


def _dropped_text(one: Dropped | None) -> str:
    return "" if one is None else f"{one.at.isoformat(timespec='seconds')}: {one.reason}"


def _exact(as_of: str | None, nearest: Nearest | None) -> datetime | None:
    if nearest is not None:
        raise NearestRefused
    return parse_moment(as_of)


def _runs(runtime: Runtime) -> list[dict[str, object]]:
    from service.jobs import job_scheduler

    return [
        {"job": r.job, "due": r.due_at, "started": r.started_at, "outcome": r.outcome, "missed": r.missed}
        for r in job_scheduler(runtime).history()
    ]
