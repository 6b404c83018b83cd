"""Consumer processes that follow topics: one parent that starts, watches and stops them."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, frozen

from keys import ShredlakeError
from lake import load_mapping
from lake.messages import CloudEventMessages, MappedMessages, MessageFormat
from lake.sealedmessages import SealedMessages
from service.errors import BadSettings, WorkerFailed
from service.runtime import Runtime, log_to_file, open_runtime
from service.settings import Kafka

if TYPE_CHECKING:
    from lake.kafka import KafkaIngest

_LOOK_SECONDS: Final = 0.2
_SUMMED: Final = ("partitions", "events", "dead", "suppressed", "commits", "lag")


@frozen
class Totals:
    """All consumers together.

    Attributes:
        lag: messages that the brokers have and the table has not, over the partitions they own.
        rate: events a second since the start.
        committed_at: seconds since the epoch of the newest commit; None before the first.
    """

    workers: int
    partitions: int
    events: int
    dead: int
    suppressed: int
    commits: int
    lag: int
    rate: float
    committed_at: float | None

    def line(self) -> str:
        """For people."""
        commit = time.strftime("%H:%M:%S", time.localtime(self.committed_at)) if self.committed_at else "-"
        return (
            f"{self.events:,} events, {self.rate:,.0f}/s, lag {self.lag:,}, "
            f"{self.partitions} partition(s), last commit {commit}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@frozen
class _Order:
    """What a consumer process is told. Plain values: it travels."""

    home: Path
    number: int
    until_caught_up: bool
    accept_gaps: bool


def run_workers(
    home: Path,
    workers: int,
    *,
    until_caught_up: bool,
    accept_gaps: bool,
    should_stop: Callable[[], bool],
    show: Callable[[Totals], None],
) -> Totals:
    """Runs consumers until they have caught up or are told to stop; each commits what it has read.

    Raises:
        ShredlakeError: what stopped a consumer; the others were stopped cleanly.
        WorkerFailed: one died; what it had read and not committed is read again by the next run.
    """
    context = multiprocessing.get_context("spawn")  # Polars keeps threads that do not survive a fork
    crew: dict[Connection, BaseProcess] = {}
    newest: dict[Connection, Any] = {}
    failed: list[ShredlakeError] = []
    for number in range(workers):
        receiver, sender = context.Pipe(duplex=False)
        order = _Order(home, number, until_caught_up, accept_gaps)
        worker = context.Process(target=_consume, args=(order, sender))
        worker.start()
        sender.close()  # so that the end of the process is the end of the pipe
        crew[receiver] = worker
    began, told = time.monotonic(), False
    while crew:
        if (should_stop() or failed) and not told:
            told = True
            for process in crew.values():
                process.terminate()
        for ready in wait(list(crew), _LOOK_SECONDS):
            assert isinstance(ready, Connection)
            try:
                said = ready.recv()
            except (EOFError, OSError):
                process = crew.pop(ready)
                process.join()
                if process.exitcode and not failed:
                    failed.append(WorkerFailed(f"a consumer process ended with code {process.exitcode}"))
                continue
            if isinstance(said, ShredlakeError):
                failed.append(said)
            else:
                newest[ready] = said
        show(_totals(newest, len(crew), began))
    if failed:
        raise failed[0]
    return _totals(newest, workers, began)


def _totals(newest: dict[Connection, Any], workers: int, began: float) -> Totals:
    found = list(newest.values())
    sums = {name: sum(getattr(one, name) for one in found) for name in _SUMMED}
    times = [one.committed_at for one in found if one.committed_at is not None]
    rate = sums["events"] / max(time.monotonic() - began, 1e-9)
    return Totals(workers=workers, rate=rate, committed_at=max(times, default=None), **sums)


def _consume(order: _Order, sender: Connection) -> None:
    """A consumer process; SIGTERM ends it after a last commit."""
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stopped.append(received))

    def tell(what: object) -> None:
        try:
            sender.send(what)
        except OSError:
            stopped.append(signal.SIGTERM)  # the parent is gone

    try:
        log_to_file(order.home)
        with open_runtime(order.home) as runtime:
            runtime.keyring.gate().trusted()
            open_consumer(runtime, order.number, accept_gaps=order.accept_gaps).run(
                until_caught_up=order.until_caught_up, should_stop=lambda: bool(stopped), report=tell
            )
    except ShredlakeError as error:
        tell(error)
    except Exception as error:  # its text may quote a message
        tell(WorkerFailed(f"a consumer process failed: {type(error).__name__}"))


def open_consumer(runtime: Runtime, number: int = 0, *, accept_gaps: bool = False) -> KafkaIngest:
    """The consumer that the settings describe.

    Args:
        number: tells the consumers of one host apart.

    Raises:
        BadSettings: no [kafka], no client library, or no fitting mapping.
        TopicUnavailable: the cluster cannot be reached, or a topic does not exist.
    """
    settings = runtime.settings.kafka
    if settings is None:
        raise BadSettings("the settings have no [kafka]")
    try:
        from lake.backlog import CommitRule
        from lake.kafka import KafkaIngest
        from lake.subscription import Subscription
    except ImportError:
        raise BadSettings("[kafka] needs confluent-kafka", next_step="Install `shredlake[kafka]`.") from None
    subscription = Subscription(
        settings.bootstrap,
        tuple(settings.topics),
        settings.group,
        {name: value.get_secret_value() for name, value in settings.client.items()},
        None if settings.member is None else f"{settings.member}-{number}",
        accept_gaps,
        settings.delete_committed,
    )
    rule = CommitRule(
        settings.commit_seconds,
        settings.commit_events,
        settings.commit_bytes,
        behind_events=settings.behind_events,
        behind_seconds=settings.behind_seconds,
    )
    lake = runtime.lake
    # What a sealed topic keeps of a person dies with the key, as in the lake: it is no open store.
    note = (lambda _: None) if settings.format == "sealed" else lake.topics.note
    return KafkaIngest(subscription, _format(runtime, settings), lake.ingestor(), note, rule)


def _format(runtime: Runtime, settings: Kafka) -> MessageFormat:
    found = _plain_format(runtime, settings)
    if settings.registry is None:
        return found
    if settings.format == "sealed":
        raise BadSettings("kafka.format = sealed takes no kafka.registry: its values have no schema there")
    try:
        from lake.wireformat import FramedMessages, SchemaRegistry
    except ImportError:
        raise BadSettings(
            "[kafka.registry] needs the registry client", next_step="Install `shredlake[registry]`."
        ) from None
    client = {name: value.get_secret_value() for name, value in settings.registry.client.items()}
    try:
        registry = SchemaRegistry(settings.registry.url, client)
    except (TypeError, ValueError) as error:  # the client's checks; they name settings, not values
        raise BadSettings(f"kafka.registry: {error}") from None
    return FramedMessages(registry, found)


def _plain_format(runtime: Runtime, settings: Kafka) -> MessageFormat:
    if settings.format == "cloudevents":
        return CloudEventMessages(runtime.lake.types)
    if settings.format == "sealed":
        return SealedMessages(runtime.lake.types, runtime.lake.events.metadata().table_uuid.bytes)
    if settings.mapping is None:
        raise BadSettings("kafka.format = mapping needs kafka.mapping")
    mapping = load_mapping(settings.mapping, runtime.lake.types)
    if mapping.kind != "json":
        raise BadSettings("kafka.mapping is not of kind `json`")
    return MappedMessages(mapping)
