"""`shredlake keys`: what the key tree holds, epochs, the restore gate."""

from __future__ import annotations

from typing import Annotated

import typer
from attrs import asdict

from keys import Inventory, adopt_host, import_fences
from keys.agentcounts import COUNTS_NAME, read_counts
from keys.hardening import harden
from lake import get_bytes
from service.agent import agent_folder, serve_agent, waiting_for_keys
from service.cli.common import (
    GROUP,
    INCOMPLETE,
    Yes,
    ask_first,
    emit,
    opened_past_gate,
    progress_bar,
    say,
    session,
)
from service.cli.drill_command import drill
from service.errors import BadInput, NotInitialised
from service.jobs import export_fence_copies
from service.keyplaces import key_places
from service.lakeplace import lake_place
from service.runtime import gated_keyring
from service.settings import load_settings

app = typer.Typer(help="Keys, epochs and the restore gate.", **GROUP)
app.command()(drill)


@app.command()
def stats(context: typer.Context) -> None:
    """Count pages, nodes, keys, names, bytes, fences and root versions without opening anything."""
    with opened_past_gate(context) as (here, runtime):
        found = dict(runtime.keyring.stats())
        emit(here, found, "\n".join(f"{name:<20} {value}" for name, value in found.items()))


@app.command()
def gate(context: typer.Context) -> None:
    """Say whether fence log and key pages agree; exit code 3 if not."""
    with opened_past_gate(context) as (here, runtime):
        found = runtime.keyring.gate()
        text = "open" if found.reason is None else f"shut: {found.reason.message}. {found.reason.next_step}"
        emit(here, asdict(found) | {"open": found.is_open}, text)
        if not found.is_open:
            raise typer.Exit(INCOMPLETE)


@app.command()
def converge(
    context: typer.Context,
    adopt_log: Annotated[
        bool,
        typer.Option("--adopt-log", help="go on with this fence log: the lake's own is lost for good"),
    ] = False,
    every_page: Annotated[
        bool,
        typer.Option("--all", help="look at every page: also for what a partial restore has brought back"),
    ] = False,
    yes: Yes = False,
) -> None:
    """After a restore: destroy every fenced subject again, so that the gate opens."""
    if adopt_log:
        ask_first("The erasures that only the lake's own fence log knows are forgotten. Go on?", yes)
    with opened_past_gate(context) as (here, runtime):
        if adopt_log:
            runtime.keyring.bind_fence_log(replace=True)
        count = runtime.keyring.converge(every_page=every_page)
        emit(here, {"replayed": count}, f"{count} fence(s) replayed")


@app.command("close-epoch")
def close_epoch(context: typer.Context, yes: Yes = False) -> None:
    """Rotate the root and retire what came before: no older copy of the key pages opens any more."""
    ask_first("Every backup of the key pages from before becomes unreadable. Close the epoch?", yes)
    with opened_past_gate(context) as (here, runtime):
        done = runtime.keyring.close_epoch()
        proof = "an old wrap was tried and refused" if done.old_wrap_refused else "AN OLD WRAP STILL OPENS"
        emit(here, asdict(done), f"root version {done.root_version}, {done.nodes} nodes rewrapped; {proof}")
        if not done.old_wrap_refused:
            raise typer.Exit(1)


@app.command("adopt-root")
def adopt_root(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="no other lake is wrapped with this root")] = False,
) -> None:
    """Go on with a root that somebody else rotated; closing an epoch then retires what they wrapped."""
    ask_first("Whatever another lake wrapped with this root is lost at the next epoch close. Go on?", yes)
    with opened_past_gate(context) as (here, runtime):
        version = runtime.keyring.adopt_root()
        emit(here, {"root_version": version}, f"root version {version} is this lake's")


@app.command("adopt-host")
def adopt_host_(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="no process of the other host is left")] = False,
) -> None:
    """Keep the leases on this host from now on: an erasure does not wait for processes of another one."""
    ask_first("A process of the other host that still runs reads erased people until it ends. Go on?", yes)
    here = session(context)
    adopt_host(key_places(here.home, load_settings(here.home).keys), here.home / "keys")
    emit(here, {"adopted": True}, "the leases are kept on this host")


@app.command()
def verify(context: typer.Context) -> None:
    """Open every page and compare it with the indexes and the fence log; exit code 3 on problems."""
    with opened_past_gate(context) as (here, runtime):
        with progress_bar(here, "pages", None) as update:
            found = runtime.keyring.check(lambda done, _: update(done))
        for problem in found.problems:
            say(problem)
        verdict = f"{len(found.problems)} problem(s)" if found.problems else "no problem"
        text = (
            f"{found.pages:,} pages, {found.records:,} keys of {found.subjects:,} handles, "
            f"{found.names:,} names, {found.fences:,} fences: {verdict}"
        )
        emit(here, asdict(found), text)
        if found.problems:
            raise typer.Exit(INCOMPLETE)


@app.command()
def inventory(context: typer.Context) -> None:
    """Open everything and count: people, keys by purpose, pages, what wraps each node, the newest fence."""
    with opened_past_gate(context) as (here, runtime):
        found = runtime.keyring.inventory()
        emit(here, asdict(found), _shown(found))


def _shown(found: Inventory) -> str:
    being_replaced = ", being replaced" if found.index_being_replaced else ""
    lines = [
        f"{found.people:,} people with {found.identities:,} further names; {found.handles:,} handles",
        f"{found.records:,} keys in {found.pages:,} pages, {found.fill:.1%} full; "
        f"{found.page_bytes:,} B sealed, {found.total_bytes:,} B with indexes",
        f"index keys: version {found.index_version}{being_replaced}",
        f"fence log: {found.fences:,} fences, newest link {found.fence_head or '-'}",
        "",
        f"{'node':<20} {'pages':>10} {'root version':>21}",
    ]
    for node in found.nodes:
        name = "index keys" if node.node_id < 0 else str(node.node_id)
        lines.append(f"{name:<20} {node.pages:>10,} {node.root_version:>21,}")
    lines += ["", f"{'purpose':<20} {'keys':>10} {'held':>8} {'generations':>12}"]
    lines += [
        f"{one.purpose:<20} {one.records:>10,} {one.held:>8,} {one.highest_generation:>12,}"
        for one in found.purposes
    ]
    return "\n".join(lines)


@app.command("export-fences")
def export(
    context: typer.Context,
    to: Annotated[
        str | None,
        typer.Argument(
            help="file or s3://bucket/key in another failure domain (default: keys.fence_copies, all of them)"
        ),
    ] = None,
) -> None:
    """Copy the fence log, signed by the custodian: what a restore is converged by."""
    with opened_past_gate(context) as (here, runtime):
        told = export_fence_copies(runtime, to)
        count = runtime.keyring.epoch()
        lines = [f"{place}: {what}" for place, what in told.items()]
        emit(here, {"fences": count, "copies": told}, "\n".join([f"{count:,} fences", *lines]))


@app.command("import-fences")
def import_(
    context: typer.Context,
    copy: Annotated[str, typer.Argument(help="file or s3://bucket/key of a copy made by export-fences")],
) -> None:
    """Add the fences of a copy that the log here lacks; run `keys converge` afterwards."""
    with opened_past_gate(context) as (here, runtime):
        keyring = runtime.keyring
        body = get_bytes(copy, lake_place(runtime.settings.lake).properties)
        if body is None:
            raise BadInput(f"there is nothing at {copy}")
        done = import_fences(body, keyring.fences, keyring.custodian.public_keys())
        emit(here, asdict(done), f"{done.added:,} of {done.fences:,} fences were new here")
        if not keyring.gate().is_open:
            say("next: `shredlake keys converge`")


@app.command()
def rekey(
    context: typer.Context,
    pause: Annotated[float, typer.Option(min=0, help="seconds between two steps, to leave room")] = 0.0,
) -> None:
    """Give every page, node and index row a fresh key while everything goes on; a killed run goes on."""
    with opened_past_gate(context) as (here, runtime):
        with progress_bar(here, "re-keying", None) as update:
            done = runtime.keyring.rekey(pause_seconds=pause, progress=lambda what, at, total: update(at))
        say("next: `shredlake keys close-epoch`, so that older copies open nothing")
        emit(here, asdict(done), f"{done.pages:,} pages and {done.names:,} names have fresh keys")


@app.command()
def agent(context: typer.Context) -> None:
    """Serve keys to this host's workers over a Unix socket, each by its role; SIGTERM ends it."""

    here = session(context)
    if not (here.home / "token").exists():
        raise NotInitialised(f"there is no lake in {here.home}")
    settings = load_settings(here.home)

    folder = agent_folder(here.home, settings.keys).path
    missing = [name for name, done in harden().items() if not done]  # before a key is in memory

    def ready() -> None:
        say(f"key agent on {folder}: a socket and a token per role; Ctrl-C ends")
        if missing:
            say(f"the system did not allow: {', '.join(missing)}")

    with waiting_for_keys(lambda: gated_keyring(here.home, settings, "agent"), say) as keyring:
        counts = serve_agent(here.home, settings.keys, keyring, ready)
    emit(here, counts, "\n".join(f"{name:<36} {count:>12,}" for name, count in sorted(counts.items())))


@app.command("agent-counts")
def agent_counts(context: typer.Context) -> None:
    """Sum up what this lake's key agents have handed out, by role and operation: calls and items."""
    here = session(context)
    folder = agent_folder(here.home, load_settings(here.home).keys).path
    found = read_counts(folder / COUNTS_NAME)
    lines = [f"{name:<36} {count:>12,}" for name, count in sorted(found.counts.items())]
    emit(here, asdict(found), "\n".join([f"from {found.since or '-'} until {found.until or '-'}", *lines]))
