"""`shredlake ingest FILE`, `shredlake ingest kafka` and `shredlake ingest intake`."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from attrs import asdict
from typer.core import TyperGroup

from service.cli.common import (
    INCOMPLETE,
    Yes,
    ask_first,
    emit,
    human_bytes,
    opened,
    progress_bar,
    say,
    session,
)
from service.errors import BadInput
from service.feed import open_feed
from service.kafka import Totals, run_workers, waiting_text
from service.settings import load_settings


class _FileByDefault(TyperGroup):
    """What is no command is a file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["file", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_FileByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Seal events and append them exactly once: `ingest FILE`, `ingest kafka` or `ingest intake`.",
)


@app.command("file")
def ingest_file(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="CloudEvents as JSON Lines, or any CSV with --mapping")],
    mapping: Annotated[Path | None, typer.Option(help="field mapping (TOML) of a CSV file")] = None,
    batch_events: Annotated[int | None, typer.Option(min=1, max=1_000_000, help="events per commit")] = None,
    agent: Annotated[bool, typer.Option("--agent", help="leave the keys with this host's key agent")] = False,
) -> None:
    """Seal the events of a file and append them exactly once; the same file again changes nothing."""
    from lake import JsonLinesFile, MappedFile, Source, load_mapping, with_read_ahead

    here = session(context)
    with open_feed(here.home, agent=agent) as feed:
        types = feed.types
        source: Source = (
            JsonLinesFile(file, types) if mapping is None else MappedFile(file, load_mapping(mapping, types))
        )
        size = batch_events or feed.settings.ingest.batch_events
        with progress_bar(here, "sealing", None) as update:
            done = feed.ingestor.run(
                with_read_ahead(source), batch_events=size, progress=lambda lines, stored: update(lines)
            )
    text = (
        f"{done.events:,} events in {done.blocks:,} blocks, {human_bytes(done.stored_bytes)}, "
        f"{len(done.snapshots)} snapshot(s)"
    )
    if done.already:
        text += f"; {done.already:,} lines were ingested before"
    if done.suppressed:
        text += f"; {done.suppressed:,} of erased people refused"
    if done.future:
        text += f"; {done.future:,} dated further ahead than their type's `future_days`"
    for reason, count in done.reasons:
        say(f"dead letters: {count:,} × {reason}")
    if done.dead:
        say("see `shredlake events letters`; nothing of them is lost")
    emit(
        here,
        {
            "source": done.source,
            "events": done.events,
            "blocks": done.blocks,
            "stored_bytes": done.stored_bytes,
            "dead": done.dead,
            "suppressed": done.suppressed,
            "blank": done.blank,
            "already": done.already,
            "future": done.future,
            "snapshots": list(done.snapshots),
            "reasons": dict(done.reasons),
        },
        text,
    )
    if done.dead:
        raise typer.Exit(INCOMPLETE)


@app.command("kafka")
def ingest_kafka(
    context: typer.Context,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="consumer processes that share the partitions")
    ] = None,
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="end when what the topics hold now is in the table")
    ] = False,
    accept_gaps: Annotated[
        bool, typer.Option("--accept-gaps", help="go on behind messages that the broker has dropped")
    ] = False,
) -> None:
    """Follow the topics of the settings' [kafka] until stopped; what was read by then is committed."""
    here = session(context)
    settings = load_settings(here.home).kafka
    if settings is None:
        raise BadInput("the settings name no Kafka cluster", next_step="Add [kafka] (docs/kafka.md).")
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stopped.append(received))
    said_at = 0.0
    waited_for: tuple[str, ...] = ()

    def show(totals: Totals) -> None:
        nonlocal said_at, waited_for
        if totals.waits_for != waited_for:  # on a terminal or off it, quiet or not
            waited_for = totals.waits_for
            for name in waited_for or ("",):
                say(waiting_text(name) if name else "the consumers go on")
        if not here.quiet and time.monotonic() - said_at >= 1:
            said_at = time.monotonic()
            say(totals.line())

    done = run_workers(
        here.home,
        workers or settings.workers,
        until_caught_up=until_caught_up,
        accept_gaps=accept_gaps,
        should_stop=lambda: bool(stopped),
        show=show,
        warn=say,
    )
    text = f"{done.events:,} events in {done.commits:,} commit(s), {done.lag:,} behind"
    if done.suppressed:
        text += f"; {done.suppressed:,} of erased people refused"
    if done.dead:
        say(f"{done.dead:,} dead letter(s): see `shredlake events letters`; nothing of them is lost")
    emit(here, done.as_dict(), text)
    if done.dead:
        raise typer.Exit(INCOMPLETE)


@app.command("intake")
def ingest_intake(
    context: typer.Context,
    give_up: Annotated[
        bool, typer.Option("--give-up", help="first drop what waits under keys that a restore has lost")
    ] = False,
    yes: Yes = False,
) -> None:
    """Commit once what came over HTTP and waits: for when no server runs."""
    if give_up:
        ask_first("Batches that were accepted and cannot be opened are dropped. Go on?", yes)
    with opened(context) as (here, runtime):
        if give_up:
            say(f"{runtime.lake.intake.give_up()} batch(es) could not be opened and were dropped")
        done = runtime.lake.intake.drain()
        left = runtime.lake.intake.queue()
        text = f"{done.events:,} events of {done.batches:,} batch(es)"
        if left.batches:
            text += f"; {left.batches:,} came meanwhile and wait"
        emit(here, asdict(done) | {"waiting": left.batches}, text)


@app.command("skip")
def skip(
    context: typer.Context,
    batch: Annotated[str | None, typer.Option(help="id of a batch that came over HTTP and waits")] = None,
    file: Annotated[Path | None, typer.Option(help="a file, with --line")] = None,
    line: Annotated[int | None, typer.Option(min=1, help="number of a line of the file, from 1")] = None,
    topic: Annotated[str | None, typer.Option(help="a Kafka topic, with --partition and --offset")] = None,
    partition: Annotated[int, typer.Option(min=0, help="of the topic")] = 0,
    offset: Annotated[int | None, typer.Option(min=0, help="of the message")] = None,
    drop: Annotated[bool, typer.Option("--drop", help="keep nothing of it in its dead letter")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    because: Annotated[str | None, typer.Option(help="why; kept with the decision, so name nobody")] = None,
) -> None:
    """Get past a batch, line or message that stops ingest: it becomes a dead letter without being looked at.

    Nothing else is changed; what is in the table already stays. A running `ingest kafka` takes it up at once.
    """
    from lake import file_source

    chosen = (
        (batch is not None)
        + (file is not None and line is not None)
        + (topic is not None and offset is not None)
    )
    if chosen != 1:
        raise BadInput("name one place: --batch, --file with --line, or --topic with --offset")
    if drop:
        ask_first("Nothing of it will be kept. Drop it?", yes)
    with opened(context) as (here, runtime):
        book, how = runtime.lake.intake.asides, "dropped" if drop else "set aside"
        if batch is not None:
            if runtime.lake.intake.get(batch).state != "waiting":
                raise BadInput("the batch does not wait any more")
            book.set_batch(batch, drop=drop, because=because)
            place = f"batch {batch}"
        elif file is not None and line is not None:
            book.set(file_source(file), line - 1, drop=drop, because=because)
            place = f"line {line} of the file"
        else:
            known = [one for one in runtime.lake.topics.all() if one.name == topic]
            if not known or offset is None:
                raise BadInput("no topic of this name has fed the lake")
            for one in known:
                book.set_message(one, partition, offset, drop=drop, because=because)
            place = f"offset {offset} of partition {partition}"
        emit(here, {"place": place, "dropped": drop}, f"{place}: {how} when it is read next")
