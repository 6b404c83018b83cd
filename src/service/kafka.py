"""Consumer processes that follow topics: one parent that starts, watches and stops them."""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, frozen

from keys import AgentUnavailable, ShredlakeError, unexpected
from keys.hardening import harden
from lake import SaysHowItStands, load_mapping, open_consumer_book
from lake.errors import ClientSettingRefused, MemberNotReleased
from lake.messages import CloudEventMessages, MappedMessages, MessageFormat
from lake.patience import Patience
from lake.sealedmessages import SealedMessages
from lake.subscription import Subscription, check_client
from service.consumers import told
from service.crew import Crew, Rate
from service.errors import BadSettings
from service.feed import Feed, open_feed
from service.runtime import log_to_file
from service.settings import Kafka

if TYPE_CHECKING:
    from lake.kafka import KafkaIngest, Progress
    from lake.kafkatopics import KafkaTopics

_LOOK_SECONDS: Final = 0.2
_AGENT_ATTEMPTS: Final = 4  # within a second: who waits for the agent goes on polling and can be stopped
_SESSION_SECONDS: Final = 60.0  # brokers give a member 45 s unless told otherwise
_log = logging.getLogger("shredlake.kafka")
_SUMMED: Final = ("partitions", "events", "dead", "suppressed", "commits", "lag")


@frozen
class Totals:
    """All consumers together.

    Attributes:
        lag: messages that the brokers have and the table has not, over the partitions they own.
        rate: events a second over the last ten seconds.
        committed_at: seconds since the epoch of the newest commit; None before the first.
        waits_for: types of the errors that consumers wait for, each once.
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
    waits_for: tuple[str, ...]

    def line(self) -> str:
        """For people."""
        commit = time.strftime("%H:%M:%S", time.localtime(self.committed_at)) if self.committed_at else "-"
        waits = f", waits: {', '.join(self.waits_for)}" if self.waits_for else ""
        return (
            f"{self.events:,} events, {self.rate:,.0f}/s, lag {self.lag:,}, "
            f"{self.partitions} partition(s), last commit {commit}{waits}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def waiting_text(name: str) -> str:
    """What consumers wait for, by the name of an error of ours: what it is and what to do."""
    return f"the consumers wait ({name}): {told(name)}"


@frozen
class _Order:
    """What a consumer process is told. Plain values: it travels."""

    home: Path
    number: int
    name: str
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
    warn: Callable[[str], None] = lambda text: None,
) -> Totals:
    """Runs consumers until they have caught up or are told to stop; each commits what it has read.

    A process that dies is started again: what it had read and not committed is read again by whoever owns
    its partitions then.

    Args:
        show: told how they stand, a few times a second.
        warn: told of a process that died.

    Raises:
        ShredlakeError: what stopped a consumer; the others were stopped cleanly.
        WorkerFailed: one died again and again.
    """
    crew_name = secrets.token_hex(8)
    _forget_dead(home)

    def order(number: int) -> _Order:
        return _Order(home, number, f"{crew_name}-{number}", until_caught_up, accept_gaps)

    crew = Crew(order, _consume, warn)
    for number in range(workers):
        crew.start(number)
    rate = Rate()
    while crew.is_alive():
        if should_stop() or crew.failed:
            crew.stop()
        crew.look(_LOOK_SECONDS)
        show(_totals(crew.newest(), crew.size(), rate))
    if crew.failed:
        raise crew.failed[0]
    return _totals(crew.newest(), workers, rate)


def _forget_dead(home: Path) -> None:
    try:
        with contextlib.closing(open_consumer_book(home / "lake")) as book:
            book.forget_dead()
    except ShredlakeError as error:
        _log.warning("earlier consumers are still in the book: %s", error.message)


def _totals(newest: Sequence[Progress], workers: int, rate: Rate) -> Totals:
    sums = {name: sum(getattr(one, name) for one in newest) for name in _SUMMED}
    times = [one.committed_at for one in newest if one.committed_at is not None]
    per_second = rate.at(time.monotonic(), sums["events"])
    causes = tuple(sorted({one.waits_for for one in newest if one.waits_for is not None}))
    return Totals(
        workers=workers, rate=per_second, committed_at=max(times, default=None), waits_for=causes, **sums
    )


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
        harden(lock_memory=False)
        log_to_file(order.home)
        with contextlib.closing(open_consumer_book(order.home / "lake")) as book:
            _consume_known(order, SaysHowItStands(book, order.name), lambda: bool(stopped), tell)
    except ShredlakeError as error:
        tell(error)
    except Exception as error:  # its text may quote a message
        _log.error("a consumer process failed: %s", unexpected(error).message)
        sys.exit(1)


def _consume_known(
    order: _Order, says: SaysHowItStands, should_stop: Callable[[], bool], tell: Callable[[object], None]
) -> None:
    """Runs a consumer; other processes of the lake can read how it stands, and what ended it."""

    def report(progress: Progress) -> None:
        says.progress(progress)
        tell(progress)

    try:
        _follow(order, should_stop, report)
    except Exception as error:
        says.ended(error)
        raise
    says.ended()


def _follow(order: _Order, should_stop: Callable[[], bool], tell: Callable[[Progress], None]) -> None:
    """Runs a consumer; until the host's key agent is there it waits as it does when the agent goes later.

    It also waits while the group knows another consumer of our name, for as long as the session of one that
    died may last.
    """
    patience, since = Patience(), time.monotonic()
    while not should_stop():
        try:
            with open_feed(order.home, agent_attempts=_AGENT_ATTEMPTS) as feed:
                consumer = open_consumer(feed, order.number, accept_gaps=order.accept_gaps)
                consumer.run(until_caught_up=order.until_caught_up, should_stop=should_stop, report=tell)
                return
        except AgentUnavailable as error:
            again_at = time.monotonic() + patience.wait(error, time.monotonic())
            _log.warning("consumer %d waits for the key agent", order.number)
            tell(_waiting(error))
        except MemberNotReleased as error:
            if time.monotonic() - since > _SESSION_SECONDS:
                raise
            again_at = time.monotonic() + patience.wait(error, time.monotonic())
            _log.warning("consumer %d waits: %s", order.number, error.message)
            tell(_waiting(error))
        while time.monotonic() < again_at and not should_stop():
            time.sleep(_LOOK_SECONDS)


def _waiting(error: ShredlakeError) -> Progress:
    from lake.kafka import Progress

    return Progress(0, 0, 0, 0, 0, 0, 0, None, type(error).__name__)


def partition_source(settings: Kafka, topic: str, partition: int) -> str:
    """What the table knows a partition by. Raises as `standing`."""
    return _topics(settings, [topic]).source(topic, partition)


def _topics(settings: Kafka, names: Sequence[str]) -> KafkaTopics:
    try:
        from lake.kafkatopics import KafkaTopics
    except ImportError:
        raise BadSettings("[kafka] needs confluent-kafka", next_step="Install `shredlake[kafka]`.") from None
    with settings_checked():
        return KafkaTopics(_subscription(settings).client_settings(), names)


@contextlib.contextmanager
def settings_checked() -> Iterator[None]:
    """What the client does not take is a matter of our settings. Raises `BadSettings`."""
    try:
        yield
    except ClientSettingRefused as error:
        raise BadSettings(error.message, next_step=error.next_step) from None


@frozen
class Standing:
    """How the table stands to the topics.

    Attributes:
        behind: messages that the brokers have and the table has not.
        dropped: messages that the brokers dropped before they were read.
    """

    behind: int
    dropped: int


def standing(settings: Kafka, offsets: Mapping[str, int]) -> Standing:
    """Asks the brokers.

    Args:
        offsets: source → next offset, by the table.

    Raises:
        BadSettings: no client library, or a setting that it does not take.
        TopicUnavailable: the cluster cannot be reached, or a topic does not exist.
    """
    topics = _topics(settings, settings.topics)
    places = [(one.topic, one.partition) for one in topics.partitions()]
    begins, ends = topics.begins(places), topics.ends(places)
    behind = dropped = 0
    for place in places:
        at = offsets.get(topics.source(*place))
        behind += ends[place] - max(at or 0, begins[place])
        dropped += 0 if at is None else max(0, begins[place] - at)
    return Standing(behind, dropped)


def open_consumer(feed: Feed, number: int = 0, *, accept_gaps: bool = False) -> KafkaIngest:
    """The consumer that the settings describe.

    Args:
        number: tells the consumers of one host apart.

    Raises:
        BadSettings: no [kafka], no client library, a setting that it does not take, or no fitting mapping.
        TopicUnavailable: the cluster cannot be reached, or a topic does not exist.
    """
    settings = feed.settings.kafka
    if settings is None:
        raise BadSettings("the settings have no [kafka]")
    try:
        from lake.backlog import CommitRule
        from lake.kafka import KafkaIngest
    except ImportError:
        raise BadSettings("[kafka] needs confluent-kafka", next_step="Install `shredlake[kafka]`.") from None
    subscription = _subscription(settings, number, accept_gaps)
    rule = CommitRule(
        settings.commit_seconds,
        settings.commit_events,
        settings.commit_bytes,
        behind_events=settings.behind_events,
        behind_seconds=settings.behind_seconds,
    )
    # What a sealed topic keeps of a person dies with the key, as in the lake: it is no open store.
    note = (lambda _: None) if settings.format == "sealed" else feed.topics.note
    wanted = _format(feed, settings)
    with settings_checked():
        return KafkaIngest(subscription, wanted, feed.ingestor, note, rule, effects=feed.effects)


def client_of(settings: Kafka) -> dict[str, str]:
    """Further settings of the client. Raises `BadSettings` where one is not theirs to decide."""
    with settings_checked():
        check_client(settings.client)
    return {name: value.get_secret_value() for name, value in settings.client.items()}


def _subscription(settings: Kafka, number: int = 0, accept_gaps: bool = False) -> Subscription:
    return Subscription(
        settings.bootstrap,
        tuple(settings.topics),
        settings.group,
        client_of(settings),
        None if settings.member is None else f"{settings.member}-{number}",
        accept_gaps,
        settings.delete_committed,
    )


def _format(feed: Feed, settings: Kafka) -> MessageFormat:
    found = _plain_format(feed, settings)
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
    except (TypeError, ValueError, OSError) as error:  # the client's checks, which quote some values
        named = ", ".join(f"`{name}`" for name in ("url", *client) if name in str(error))
        raise BadSettings(
            f"the schema registry's client does not take its settings: {named or type(error).__name__}",
            next_step="Correct `kafka.registry` in the settings; `url` begins with http:// or https://.",
        ) from None
    return FramedMessages(registry, found)


def _plain_format(feed: Feed, settings: Kafka) -> MessageFormat:
    if settings.format == "cloudevents":
        return CloudEventMessages(feed.types)
    if settings.format == "sealed":
        return SealedMessages(feed.types, feed.events.metadata().table_uuid.bytes)
    if settings.mapping is None:
        raise BadSettings("kafka.format = mapping needs kafka.mapping")
    mapping = load_mapping(settings.mapping, feed.types)
    if mapping.kind != "json":
        raise BadSettings("kafka.mapping is not of kind `json`")
    return MappedMessages(mapping)
