"""`shredlake lake send` and `shredlake lake republish`: from files and from the lake to Kafka topics."""

from __future__ import annotations

import re
import signal
import threading
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from attrs import asdict

from lake import JsonLinesFile, MappedFile, Source, load_mapping
from lake.offsets import source_number
from lake.selection import Arrival
from service.cli.common import INCOMPLETE, emit, opened, progress_bar, say, session
from service.cli.lake_commands import app as app
from service.errors import BadInput, BadSettings
from service.feed import open_feed
from service.kafka import client_of, partition_source, settings_checked
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from lake.kafkaoutlet import KafkaOutlet

Topic = Annotated[str, typer.Argument(help="topic; it must exist")]


def open_outlet(home: Path, topic: str) -> KafkaOutlet:
    """A topic of the settings' cluster.

    Raises:
        BadInput: the settings name no cluster.
        BadSettings: no client library, or a setting that it does not take.
        TopicUnavailable: see `KafkaOutlet`.
    """
    settings = load_settings(home).kafka
    if settings is None:
        raise BadInput("the settings name no Kafka cluster", next_step="Add [kafka] (docs/kafka.md).")
    try:
        from lake.kafkaoutlet import KafkaOutlet
    except ImportError:
        raise BadSettings("[kafka] needs confluent-kafka", next_step="Install `shredlake[kafka]`.") from None
    client = client_of(settings)
    with settings_checked():
        return KafkaOutlet({"bootstrap.servers": settings.bootstrap, **client}, topic)


@app.command()
def send(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="CloudEvents as JSON Lines, or any CSV with --mapping")],
    topic: Topic,
    mapping: Annotated[Path | None, typer.Option(help="field mapping (TOML) of a CSV file")] = None,
    batch_events: Annotated[int, typer.Option(min=1, max=100_000, help="events sealed at a time")] = 5000,
    agent: Annotated[bool, typer.Option("--agent", help="leave the keys with this host's key agent")] = False,
) -> None:
    """Seal a file's events and send them to a topic; the broker sees nobody's name or data."""
    here = session(context)
    with open_feed(here.home, agent=agent) as feed:
        from lake.sealingproducer import SealingProducer

        types = feed.types
        source: Source = (
            JsonLinesFile(file, types) if mapping is None else MappedFile(file, load_mapping(mapping, types))
        )
        uuid = feed.events.metadata().table_uuid.bytes
        producer = SealingProducer(feed.keys, types, uuid, open_outlet(here.home, topic))
        with progress_bar(here, "sealing", None) as update:
            done = producer.send_all(source, batch_events, update)
        for reason, count in done.reasons:
            say(f"dead letters: {count:,} × {reason}")
        text = f"{done.events:,} events sealed and sent"
        if done.suppressed:
            text += f"; {done.suppressed:,} of erased people were not sent"
        emit(here, asdict(done) | {"reasons": dict(done.reasons)}, text)
        if done.dead:
            raise typer.Exit(INCOMPLETE)


@app.command()
def republish(
    context: typer.Context,
    topic: Topic,
    first: Annotated[str | None, typer.Option("--from", help="first ingest day, 2026-03-01")] = None,
    last: Annotated[str | None, typer.Option("--to", help="last ingest day")] = None,
    event_type: Annotated[
        list[str] | None, typer.Option("--type", help="event type; may be repeated")
    ] = None,
    in_clear: Annotated[
        bool, typer.Option("--opened", help="as CloudEvents in clear instead of sealed blocks")
    ] = False,
    snapshot: Annotated[
        int | None, typer.Option(help="of lake.events; default: go on, else the head")
    ] = None,
    after: Annotated[
        int | None, typer.Option(help="only what was ingested after this snapshot of lake.events")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="only what was ingested at or after it, 2026-03-01T12:00Z")
    ] = None,
    until: Annotated[str | None, typer.Option(help="only what was ingested before it")] = None,
    offsets: Annotated[
        str | None, typer.Option(help="only what came as these offsets, TOPIC/PARTITION:FROM..TO without TO")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.1, help="messages a second at the most")] = None,
) -> None:
    """Send a range of the lake back to a topic; when interrupted, the same command goes on."""
    from lake.republish import Republisher, Wanted

    moments = _moment(since), _moment(until)
    days = _day(first), _day(last)
    with opened(context) as (here, runtime):
        outlet = open_outlet(here.home, topic)
        arrival = _arrival(runtime.settings, offsets, *moments)
        wanted = Wanted(*days, tuple(event_type or ()), in_clear, after, arrival)
        for name in wanted.types:
            runtime.lake.types.get(name)
        if in_clear:
            # From now on the topic is a place where people can be read: receipts say so.
            runtime.lake.topics.note(outlet.retention())
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        with progress_bar(here, "sending", None) as update:
            memory_bytes = runtime.settings.replay.memory_bytes
            done = Republisher(runtime.lake, outlet, rate, memory_bytes=memory_bytes).run(
                wanted, snapshot, lambda messages, events: update(messages), stopped.is_set
            )
    text = f"{done.messages:,} messages with {done.events:,} events of snapshot {done.snapshot_id}"
    if done.already:
        text += f"; {done.already:,} were there already"
    if done.withheld:
        text += f"; {done.withheld:,} of erased people were not sent"
    if stopped.is_set():
        text += "; stopped, the same command goes on"
    emit(here, asdict(done), text)


def _day(text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise BadInput("a day is written like 2026-03-01") from None


def _moment(text: str | None) -> datetime | None:
    try:
        found = None if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise BadInput("a moment is written like 2026-03-01T12:00:00Z") from None
    return found if found is None or found.tzinfo is not None else found.replace(tzinfo=UTC)


def _arrival(
    settings: Settings, offsets: str | None, since: datetime | None, until: datetime | None
) -> Arrival | None:
    if offsets is None:
        return None if since is None and until is None else Arrival(since=since, until=until)
    asked = re.fullmatch(r"(.+)/(\d+):(\d+)\.\.(\d+)", offsets)
    if asked is None:
        raise BadInput("offsets are written like purchases/0:1000..2000")
    assert settings.kafka is not None, "the topic to send to was found"
    source = partition_source(settings.kafka, asked[1], int(asked[2]))
    return Arrival(source_number(source), (int(asked[3]), int(asked[4])), since, until)
