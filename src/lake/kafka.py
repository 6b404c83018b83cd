"""Kafka → sealed → committed exactly once: the offsets lie in the table, in the snapshot of the events.

A consumer group shares the partitions, cooperatively; where to go on is read from the table's head each
time a partition is given to us, so what Kafka believes of our offsets does not matter. A zombie, or two
owners of one partition, prepare the same offsets and one of them is fenced by the commit's guard.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from attrs import field, frozen
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from keys import ShredlakeError
from lake.backlog import Backlog, CommitRule, Partition, Pending
from lake.cloudevents import Parsed
from lake.errors import Fenced, TopicGap, TopicUnavailable
from lake.ingest import Ingestor
from lake.messages import Message, MessageFormat

_log = logging.getLogger("shredlake.kafka")
_AT_ONCE: Final = 1000  # the client's call is slower with more
_POLL_SECONDS: Final = 0.1
_ASK_SECONDS: Final = 5.0
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 10.0
_OUR_SETTINGS: Final = {
    "enable.auto.commit": False,
    "auto.offset.reset": "error",  # the table says where to read, nobody else
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
    "partition.assignment.strategy": "cooperative-sticky",
    "queued.max.messages.kbytes": 65_536,
    "fetch.queue.backoff.ms": 50,
    "check.crcs": True,
}
_START_ANEW: Final = {
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError.OFFSET_OUT_OF_RANGE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
    getattr(KafkaError, "UNKNOWN_TOPIC_ID", KafkaError.UNKNOWN_TOPIC_OR_PART),
}

_REFUSED: Final = {KafkaError._AUTHENTICATION, KafkaError.TOPIC_AUTHORIZATION_FAILED}


@frozen
class Subscription:
    """What to read.

    Attributes:
        client: further settings of librdkafka: security.protocol, sasl.*, ssl.*; may hold secrets.
        member: a name of this consumer that stays the same over restarts (static membership), or None.
        accept_gaps: go on behind messages that the broker has dropped before we read them.
    """

    bootstrap: str
    topics: tuple[str, ...]
    group: str = "shredlake"
    client: Mapping[str, str] = field(factory=dict, repr=False)
    member: str | None = None
    accept_gaps: bool = False


@frozen
class Progress:
    """How a consumer stands.

    Attributes:
        lag: messages that the broker has and the table has not, over our partitions.
        committed_at: seconds since the epoch of the last commit; None before the first.
    """

    partitions: int
    events: int
    dead: int
    suppressed: int
    commits: int
    lag: int
    committed_at: float | None


class KafkaIngest:
    """One consumer of a group, and the ingestor it feeds.

    Args:
        subscription: what to read.
        message_format: what the messages are.
        ingestor: seals and commits.
        rule: when to commit.
        clock_seconds: monotonic.

    Raises:
        TopicUnavailable: the cluster cannot be reached, or a topic does not exist.
    """

    def __init__(
        self,
        subscription: Subscription,
        message_format: MessageFormat,
        ingestor: Ingestor,
        rule: CommitRule | None = None,
        clock_seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wanted = subscription
        self._format = message_format
        self._ingestor = ingestor
        self._backlog = Backlog(rule or CommitRule())
        self._clock = clock_seconds
        common: dict[str, Any] = {
            **subscription.client,
            "bootstrap.servers": subscription.bootstrap,
            "log_level": 2,
        }
        self._common = common
        self._admin = AdminClient(common)
        self._cluster = ""
        self._topic_ids: dict[str, str] = {}
        self._look_at_topics()
        member = {} if subscription.member is None else {"group.instance.id": subscription.member}
        self._consumer = Consumer({**common, "group.id": subscription.group, **member, **_OUR_SETTINGS})
        self._failure: ShredlakeError | None = None
        self._counts = {"events": 0, "dead": 0, "suppressed": 0, "commits": 0}
        self._committed_at: float | None = None
        self._pause_seconds = 0.0
        self._again_at: float | None = None

    def run(
        self,
        *,
        until_caught_up: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> Progress:
        """Reads and commits until told to stop; what was read by then is committed first.

        Args:
            until_caught_up: end when the table holds everything that the topics held at the start.
            report: called after every commit and about once a second.

        Raises:
            TopicGap: messages are gone that were never read, and gaps are not accepted.
            TopicUnavailable: a topic is gone.
            ShredlakeError: what a retry does not help; nothing of the batch in question was written.
        """
        targets = self._ends() if until_caught_up else None
        self._consumer.subscribe(
            list(self._wanted.topics), on_assign=self._given, on_revoke=self._taken, on_lost=self._taken
        )
        reported_at = self._clock()
        try:
            while not should_stop():
                self._read()
                now = self._clock()
                committed = self._backlog.is_due(now) and self._commit()
                if committed or now - reported_at >= 1.0:
                    reported_at = now
                    report(self.progress())
                if targets is not None and self._reached(targets):
                    break
            if self._again_at is None:
                self._commit()
        finally:
            last = self.progress()
            self._consumer.close()
        report(last)
        return last

    def progress(self) -> Progress:
        """How it stands, by what the client knows."""
        lag = 0
        for (topic, number), pending in self._backlog.owned().items():
            with contextlib.suppress(KafkaException):
                _, high = self._consumer.get_watermark_offsets(TopicPartition(topic, number), cached=True)
                lag += max(0, high - pending.start)
        return Progress(
            partitions=len(self._backlog.owned()), lag=lag, committed_at=self._committed_at, **self._counts
        )

    # -- reading -----------------------------------------------------------------------------------

    def _read(self) -> None:
        found: dict[Partition, list[Message]] = {}
        messages: list[Any] = self._consumer.consume(_AT_ONCE, _POLL_SECONDS)  # their types say None to all
        for message in messages:
            partition = (message.topic(), message.partition())
            error = message.error()
            if error is None:
                one = Message(message.offset(), message.value(), tuple(message.headers() or ()))
                found.setdefault(partition, []).append(one)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._backlog.add(partition, found.pop(partition, ()), self._clock())
                self._backlog.reached_end(partition, message.offset(), self._clock())
            else:
                self._mend(error, partition)
        now = self._clock()
        for partition, read in found.items():
            self._backlog.add(partition, read, now)
        if self._failure is not None:
            raise self._failure

    def _mend(self, error: KafkaError, partition: Partition) -> None:
        """Goes on where it can; what the client itself retries is left to it."""
        if error.code() in _START_ANEW:
            self._look_at_topics()
            self._go_on([TopicPartition(*partition)] if partition[1] >= 0 else self._consumer.assignment())
        elif error.fatal() or error.code() in _REFUSED:
            raise TopicUnavailable(f"the broker refuses us: {error.name()}")
        else:
            _log.warning("kafka: %s", error.name())

    # -- whose partitions --------------------------------------------------------------------------

    def _given(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            consumer.incremental_assign(self._starts(partitions))
        except ShredlakeError as error:
            self._failure = error  # an error must not cross the client's callback
            consumer.incremental_assign(partitions)

    def _taken(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._backlog.disown((one.topic, one.partition) for one in partitions)

    def _go_on(self, partitions: Sequence[TopicPartition]) -> None:
        """Reads these from where the table stands now."""
        self._backlog.disown((one.topic, one.partition) for one in partitions)
        owned = {(one.topic, one.partition) for one in self._consumer.assignment()}
        mine = [one for one in partitions if (one.topic, one.partition) in owned]
        if mine:  # given back and taken again: what was fetched ahead is thrown away with it
            self._consumer.incremental_unassign(mine)
            self._consumer.incremental_assign(self._starts(mine))

    def _starts(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        """Each with the offset to read from; from here on it is ours."""
        offsets = self._ingestor.offsets()
        found = []
        for one in partitions:
            source = self._source(one.topic, one.partition)
            start = offsets.get(source, 0)
            low, high = self._watermarks(one)
            known = source in offsets
            if known and low > start and not self._wanted.accept_gaps:
                raise TopicGap(
                    f"partition {one.partition} begins at offset {low}, the lake has read up to {start}"
                )
            if start > high:
                raise TopicGap(f"partition {one.partition} ends at {high}, the lake has read up to {start}")
            self._backlog.own((one.topic, one.partition), source, start)
            found.append(TopicPartition(one.topic, one.partition, max(start, low)))
        return found

    def _source(self, topic: str, partition: int) -> str:
        return f"kafka:{self._cluster}:{self._topic_ids[topic]}:{partition}"

    def _watermarks(self, partition: TopicPartition) -> tuple[int, int]:
        with _asking():
            found = self._consumer.get_watermark_offsets(partition, timeout=_ASK_SECONDS)
        if found is None:
            raise TopicUnavailable("the broker does not answer")
        return int(found[0]), int(found[1])

    def _look_at_topics(self) -> bool:
        """Reads the topics' ids; whether one was made anew since we looked last."""
        try:
            return self._ask_for_topics()
        except TopicUnavailable:
            self._admin = AdminClient(self._common)  # an idle one clings to a broker that is gone
            raise

    def _ask_for_topics(self) -> bool:
        with _asking():
            wanted = TopicCollection(list(self._wanted.topics))
            asked = self._admin.describe_topics(wanted, request_timeout=_ASK_SECONDS)
            found = {name: str(future.result(_ASK_SECONDS).topic_id) for name, future in asked.items()}
            if not self._cluster:
                self._cluster = str(self._admin.list_topics(timeout=_ASK_SECONDS).cluster_id)
        changed = any(self._topic_ids.get(name, at) != at for name, at in found.items())
        self._topic_ids = found
        return changed

    # -- committing --------------------------------------------------------------------------------

    def _commit(self) -> bool:
        """Commits what waits; a failure that passes by is tried again later, with nothing more read."""
        now = self._clock()
        if self._again_at is not None and now < self._again_at:
            return False
        ready = self._backlog.ready()
        if not ready:
            return False
        try:
            if self._look_at_topics():
                # Whose offsets these are is not certain any more: read again under the new name.
                self._go_on(self._consumer.assignment())
                return False
            landed = self._ingestor.land([(one.source, self._parsed(one)) for one in ready])
        except Fenced:
            self._go_on(self._consumer.assignment())
            return False
        except ShredlakeError as error:
            if not error.retry_helps:
                raise
            self._wait(now, error)
            return False
        self._after(landed is not None)
        if landed is not None:
            for one in landed[0].ranges:
                self._counts["events"] += one.events
                self._counts["dead"] += one.dead
                self._counts["suppressed"] += one.suppressed
            self._counts["commits"] += 1
            self._committed_at = time.time()
        return True

    def _parsed(self, pending: Pending) -> Parsed:
        return self._format.parse(pending.source, pending.start, pending.end, pending.messages)

    def _wait(self, now: float, error: ShredlakeError) -> None:
        """Stops reading for a while; what was read stays."""
        if self._again_at is None:
            self._consumer.pause(self._consumer.assignment())
        self._pause_seconds = min(max(_FIRST_PAUSE_SECONDS, 2 * self._pause_seconds), _LONGEST_PAUSE_SECONDS)
        self._again_at = now + self._pause_seconds
        _log.warning(
            "the batch waits %.1f s: %s: %s", self._pause_seconds, type(error).__name__, error.message
        )

    def _after(self, committed: bool) -> None:
        self._backlog.landed()
        self._pause_seconds = 0.0
        if self._again_at is not None:
            self._again_at = None
            self._consumer.resume(self._consumer.assignment())
        places = [
            TopicPartition(topic, number, pending.start)
            for (topic, number), pending in self._backlog.owned().items()
        ]
        with contextlib.suppress(KafkaException):  # for other people's lag monitors alone
            self._consumer.commit(offsets=places, asynchronous=True)

    # -- the end -----------------------------------------------------------------------------------

    def _ends(self) -> dict[str, int]:
        """Source → offset behind its newest message."""
        with _asking():
            found = self._admin.list_topics(timeout=_ASK_SECONDS).topics
        partitions = [TopicPartition(name, n) for name in self._wanted.topics for n in found[name].partitions]
        return {self._source(one.topic, one.partition): self._watermarks(one)[1] for one in partitions}

    def _reached(self, targets: dict[str, int]) -> bool:
        """Whether the table stands there, whoever brought it there."""
        mine = {pending.source: pending.start for pending in self._backlog.owned().values()}
        if any(mine.get(source, end) < end for source, end in targets.items()):
            return False
        offsets = self._ingestor.offsets()
        return all(offsets.get(source, 0) >= end for source, end in targets.items())


class _asking:
    """Turns the client's own errors into ours."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KafkaException):
            cause: Any = error.args[0]
            raise TopicUnavailable(f"the broker answers {cause.name()}") from None
        if isinstance(error, TimeoutError):
            raise TopicUnavailable("the broker does not answer") from None
