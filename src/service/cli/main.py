"""The root of the command line and the commands without a noun."""

from __future__ import annotations

import functools
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from keys.hardening import harden
from service.allocation import keep_freed_memory
from service.cli import (
    config_commands,
    erase,
    events,
    ingest,
    keys_commands,
    read_command,
    receipt,
    schema,
    views,
)
from service.cli.boundary import run
from service.cli.common import (
    Output,
    Session,
    emit,
    emit_rows,
    opened_past_gate,
    say,
    session,
)
from service.doctor import examine_home, examine_installation
from service.errors import BadInput
from service.runtime import initialise, open_runtime
from service.settings import find_home

EXAMPLE = Path("examples/cdnow")
app = typer.Typer(
    name="shredlake",
    help="An event lake that can forget.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for name, group in (
    ("ingest", ingest.app),
    ("events", events.app),
    ("schema", schema.app),
    ("views", views.app),
    ("erase", erase.app),
    ("receipt", receipt.app),
    ("keys", keys_commands.app),
    ("lake", read_command.app),
    ("config", config_commands.app),
):
    app.add_typer(group, name=name)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(version("shredlake"))
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    home: Annotated[
        Path | None,
        # A worker of the key agent may enter the folder and not list it.
        typer.Option(readable=False, help="the lake's folder (default: $SHREDLAKE_HOME or ./.shredlake)"),
    ] = None,
    output: Annotated[Output, typer.Option(help="how data is written to stdout")] = Output.TEXT,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_tell_version, help="print the version and end"),
    ] = False,
) -> None:
    """An event lake that can forget."""
    is_log = not sys.stderr.isatty()
    context.obj = Session(find_home(home), output, quiet or is_log, is_log and not quiet)


@app.command()
def init(
    context: typer.Context,
    view_file: Annotated[
        list[Path] | None, typer.Option("--views", help="Python file that defines views; may repeat")
    ] = None,
) -> None:
    """Make a lake: keys, an empty events table, a token for the HTTP API, a settings file."""
    here = session(context)
    made = initialise(here.home, view_file or [])
    with open_runtime(here.home):
        pass
    say(f"{'made' if made else 'there already:'} a lake in {here.home}")
    if made:
        say("next: `shredlake events register SCHEMA.json`, then `shredlake ingest FILE`")
    emit(here, {"home": here.home, "made": made}, str(here.home))


@app.command()
def doctor(context: typer.Context) -> None:
    """Examine the installation and, where there is one, the lake; each finding says what to do."""
    here = session(context)
    if (here.home / "token").exists():
        found = examine_home(here.home)
    else:
        found = examine_installation()
        say(f"there is no lake in {here.home}: only the installation was examined")
    emit_rows(here, [{"check": f.check, "level": f.level, "finding": f.text} for f in found])
    if any(f.level == "error" for f in found):
        raise typer.Exit(1)


@app.command()
def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="address to listen on (default: loopback)")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="port; 0 takes a free one")] = None,
    allow_insecure_bind: Annotated[
        bool, typer.Option("--allow-insecure-bind", help="listen beyond this machine without TLS")
    ] = False,
) -> None:
    """Serve the HTTP API, run the erasure worker and the scheduled jobs."""
    from service.server import make_server  # the web framework: an eighth of a second for this command alone

    harden(lock_memory=False)
    with opened_past_gate(context) as (here, runtime):
        server, listener = make_server(runtime, host, port, allow_insecure_bind)
        address, bound = listener.getsockname()[:2]
        say(f"serving on {address}:{bound}; the token is in {here.home / 'token'}; Ctrl-C ends")
        emit(here, {"address": address, "port": bound}, f"{address}:{bound}")
        sys.stdout.flush()
        server.run(sockets=[listener])


@app.command()
def demo(
    context: typer.Context,
    example: Annotated[Path, typer.Option(help="folder with data, schema, mapping and views")] = EXAMPLE,
    into: Annotated[Path, typer.Option(help="folder for the demo's lake; made anew")] = Path("build/demo"),
) -> None:
    """The whole path on 69,659 real purchases: in, views, an erasure over HTTP, time travel, receipt."""
    from service.demo import run_demo

    if not (example / "mapping.toml").exists():
        raise BadInput(
            f"{example} holds no example",
            next_step="Run it in a checkout, or name the folder with --example.",
        )
    run_demo(example, into.absolute())


@app.command("version")
def show_version(context: typer.Context) -> None:
    """Print the version."""
    emit(session(context), {"version": version("shredlake")}, version("shredlake"))


def main() -> None:
    """Entry point: errors become one sentence and what to do next."""
    keep_freed_memory()
    sys.exit(run(lambda **how: _commands()(**how)))


@functools.cache
def _commands() -> Any:
    """Every command, made once in a process: there are more than sixty, and each takes a millisecond."""
    return typer.main.get_command(app)
