"""Kafka → sealed → committed exactly once: the offsets lie in the table, in the snapshot of the events.

A consumer group shares the partitions, cooperatively; where to go on is read from the table's head each
time a partition is given to us, so what Kafka believes of our offsets does not matter. A zombie, or two
owners of one partition, prepare the same offsets and one of them is fenced by the commit's guard.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from keys import Effects, ShredlakeError
from keys.quiet import rare_collections
from lake.backlog import Backlog, CommitRule, Partition
from lake.brokerends import BrokerEnds
from lake.brokerkeeps import BrokerKeeps
from lake.carefulmessages import CarefulMessages
from lake.errors import Fenced, TopicGap, TopicUnavailable, Unsealable
from lake.ingest import Ingestor
from lake.kafkaprogress import Progress as Progress
from lake.kafkarefusals import made, refusal
from lake.kafkatopics import ASK_SECONDS, START_ANEW, KafkaTopics, asking
from lake.messageruns import in_runs
from lake.messages import MessageFormat
from lake.patience import Patience
from lake.stallwatch import StallWatch
from lake.subscription import Subscription
from lake.topicbook import FeedingTopic

_log = logging.getLogger("shredlake.kafka")
_AT_ONCE: Final = 1000  # the client's call is slower with more
_POLL_SECONDS: Final = 0.1
_ANEW_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 10.0


class KafkaIngest:
    """One consumer of a group, and the ingestor it feeds.

    Args:
        subscription: what to read.
        message_format: what the messages are.
        ingestor: seals and commits.
        note: told which topics feed the lake before anything is read of them, and once an hour.
        rule: when to commit.
        clock_seconds: monotonic.
        effects: the gate of durable effects.

    Raises:
        TopicUnavailable: the cluster cannot be reached, or a topic does not exist.
        ClientSettingRefused: the client does not take a setting.
    """

    def __init__(
        self,
        subscription: Subscription,
        message_format: MessageFormat,
        ingestor: Ingestor,
        note: Callable[[Sequence[FeedingTopic]], None],
        rule: CommitRule | None = None,
        clock_seconds: Callable[[], float] = time.monotonic,
        effects: Effects | None = None,
    ) -> None:
        self._wanted = subscription
        self._ingestor = ingestor
        self._format = CarefulMessages(message_format, ingestor.asides)
        self._backlog = Backlog(rule or CommitRule(), self._format.parse)
        self._clock = clock_seconds
        self._topics = KafkaTopics(subscription.client_settings(), subscription.topics, effects)
        self._consumer = made(Consumer, subscription.consumer_settings())
        self._ends = BrokerEnds(self._consumer, self._topics, clock_seconds)
        self._targets: dict[str, int] | None = None
        self._failure: Exception | None = None
        self._anew: set[Partition] = set()
        self._anew_at = -math.inf
        self._looked_at = -math.inf
        self._counts = {"events": 0, "dead": 0, "suppressed": 0, "commits": 0}
        self._committed_at: float | None = None
        self._patience = Patience()
        self._keeps = BrokerKeeps(self._topics, note, subscription.delete_committed, clock_seconds)
        self._stalls = StallWatch(self._topics, clock_seconds)

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
            TopicGone: a topic is gone, for a minute by now.
            GroupRefused: the brokers do not let us into the group, or not any more.
            ShredlakeError: what a retry does not help; nothing of the batch in question was written.
        """
        self._targets = self._newest() if until_caught_up else None
        self._keeps.note()
        self._consumer.subscribe(
            list(self._wanted.topics), on_assign=self._given, on_revoke=self._taken, on_lost=self._taken
        )
        try:
            with rare_collections(self._clock) as collect:
                self._follow(until_caught_up, should_stop, report, collect)
            if not self._patience.waits:
                self._commit()
            self._keeps.delete(self._stands())
        finally:
            try:
                last = self.progress()
            finally:
                self._consumer.close()
        report(last)
        return last

    def _follow(
        self,
        until_caught_up: bool,
        should_stop: Callable[[], bool],
        report: Callable[[Progress], None],
        collect: Callable[[], None],
    ) -> None:
        reported_at = self._clock()
        while not should_stop():
            self._read()
            self._begin_anew()
            self._look_again()
            self._look_for_stalls()
            if self._patience.waits and self._backlog.is_empty():
                self._read_on()  # the batch that waited was taken from us
            self._parse_ahead()
            now = self._clock()
            committed = self._backlog.is_due(now, self._unread) and self._commit()
            if committed or now - reported_at >= 1.0:
                reported_at = now
                report(self.progress())
                collect()
            if until_caught_up and self._reached():
                break
            self._keeps.note_again()

    def progress(self) -> Progress:
        """How it stands; the broker is asked, about once a second, for what the client cannot know."""
        places = {one: pending.start for one, pending in self._backlog.owned().items()}
        waiting = self._backlog.waiting() if self._patience.waits else {}
        return Progress(
            partitions=len(places),
            stuck=self._stalls.standstill.stuck(waiting, self._patience.cause, time.time()),
            lag=self._ends.behind(places, paused=self._patience.waits),
            held_bytes=self._backlog.held_bytes(),
            committed_at=self._committed_at,
            waits_for=self._patience.cause,
            **self._counts,
        )

    def _unread(self) -> int:
        return self._ends.seen_behind({one: p.end for one, p in self._backlog.owned().items()})

    # -- reading -----------------------------------------------------------------------------------

    def _read(self) -> None:
        found = self._consumer.consume(_AT_ONCE, _POLL_SECONDS)
        for partition, messages, error in in_runs(found):
            if error is None:
                self._backlog.add(partition, messages, self._clock())
            elif error.code() == KafkaError._PARTITION_EOF:
                self._backlog.reached_end(partition, messages.offsets[0], self._clock())
            else:
                self._mend(error, partition)
        if self._failure is not None:
            raise self._failure

    def _parse_ahead(self) -> None:
        if not self._patience.waits:
            try:
                self._backlog.parse_pieces()
            except ShredlakeError as error:
                self._wait(self._clock(), error)

    def _mend(self, error: KafkaError, partition: Partition) -> None:
        """Goes on where it can; what the client itself retries is left to it."""
        if error.code() in START_ANEW:
            self._leave([partition] if partition[1] >= 0 else self._assigned())
        elif (refused := refusal(error)) is not None:
            raise refused
        else:
            _log.warning("kafka: %s", error.name())

    # -- whose partitions --------------------------------------------------------------------------

    def _given(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            consumer.incremental_assign(self._starts_or_none(partitions) or partitions)
            self._hold_or_read(partitions)
        except Exception as error:
            self._failed_in_callback(error)

    def _starts_or_none(self, partitions: list[TopicPartition]) -> list[TopicPartition] | None:
        try:
            return self._starts(partitions)
        except ShredlakeError as error:
            self._leave((one.topic, one.partition) for one in partitions)
            self._stalls.standstill.not_begun(dict.fromkeys(self._anew, type(error).__name__))
            if not error.retry_helps:
                self._failed_in_callback(error)
            return None

    def _taken(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            taken = [(one.topic, one.partition) for one in partitions]
            self._backlog.disown(taken)
            self._anew.difference_update(taken)
            self._stalls.standstill.taken(taken)
        except Exception as error:
            self._failed_in_callback(error)

    def _failed_in_callback(self, error: Exception) -> None:
        """None may cross the client's callback: the first ends the consumer at its next turn, cleanly."""
        _log.error("a rebalance failed: %s", type(error).__name__)
        self._failure = self._failure or error

    def _assigned(self) -> list[Partition]:
        return [(one.topic, one.partition) for one in self._consumer.assignment()]

    def _leave(self, partitions: Iterable[Partition]) -> None:
        """What was read of these and what comes of them is dropped until they are begun anew."""
        found = list(partitions)
        self._backlog.disown(found)
        self._anew.update(found)

    def _begin_anew(self) -> None:
        """Reads what was left from where the table stands now; tried again while that cannot be known.

        Raises:
            TopicGone, TopicGap: see `run`.
        """
        now = self._clock()
        if not self._anew or now < self._anew_at:
            return
        try:
            self._look()
            mine = [TopicPartition(*one) for one in self._assigned() if one in self._anew]
            starts = self._starts(mine)
        except ShredlakeError as error:
            self._patience.failed(error, now)
            self._leave(self._anew)
            self._stalls.standstill.not_begun(dict.fromkeys(self._anew, type(error).__name__))
            self._anew_at = now + _ANEW_SECONDS
            _log.warning("cannot go on yet: %s: %s", type(error).__name__, error.message)
            return
        self._anew.clear()
        self._stalls.standstill.not_begun({})
        if starts:  # given back and taken again: what was fetched ahead is thrown away with it
            self._consumer.incremental_unassign(mine)
            self._consumer.incremental_assign(starts)
            self._hold_or_read(starts)

    def _look(self) -> bool:
        """Whether a topic was made anew since we looked last; to catch up is then to reach its end."""
        anew = self._topics.look()
        self._looked_at = self._clock()
        self._patience.found()
        if anew:
            self._ends.forget()
            self._stalls.forget()
            self._targets = None
        return anew

    def _look_again(self) -> None:
        """Nothing tells us of a topic that is gone when its partitions were taken from us for it.

        Raises:
            TopicGone: see `run`.
        """
        now = self._clock()
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        try:
            if self._look():
                self._leave(self._assigned())
        except TopicUnavailable as error:
            self._patience.failed(error, now)
            _log.warning("cannot look at the topics: %s: %s", type(error).__name__, error.message)

    def _unanswered(self, error: ShredlakeError, now: float) -> None:
        """Brokers that know no end of a topic do not take back that they have no such topic."""
        if self._patience.cause is None:
            self._patience.failed(error, now)

    def _look_for_stalls(self) -> None:
        """Begins anew what the brokers have more of and nothing has come of for long, whatever the cause."""
        places = {one: pending.end for one, pending in self._backlog.owned().items()}
        stalled = self._stalls.stalled(places, self._patience.waits, self._unanswered)
        if stalled:
            _log.warning("nothing came of %d partition(s) that have more; begun anew", len(stalled))
            self._leave(stalled)

    def _starts(self, partitions: Sequence[TopicPartition]) -> list[TopicPartition]:
        """Each with the offset to read from; from here on it is ours."""
        offsets = self._ingestor.offsets()
        found = []
        for one in partitions:
            source = self._topics.source(one.topic, one.partition)
            start = offsets.get(source, 0)
            try:
                low, high = self._watermarks(one)
            except TopicUnavailable:
                low = high = start  # the broker will say when it has not what we ask for
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

    def _watermarks(self, partition: TopicPartition) -> tuple[int, int]:
        with asking():
            found = self._consumer.get_watermark_offsets(partition, timeout=ASK_SECONDS)
        if found is None:
            raise TopicUnavailable("the broker does not answer")
        return int(found[0]), int(found[1])

    # -- committing --------------------------------------------------------------------------------

    def _commit(self) -> bool:
        """Commits what waits; a failure that passes by is tried again later, with nothing more read."""
        now = self._clock()
        if not self._patience.is_time(now):
            return False
        try:
            ready = self._backlog.ready()
            if not ready:
                return False
            if self._look():
                # Whose offsets these are is not certain any more: read again under the new name.
                self._leave(self._assigned())
                return False
            landed = self._ingestor.land(ready)
        except Unsealable as error:
            for source, lines in error.places.items():
                self._format.set_aside(source, lines)
            self._leave(self._assigned())
            return False
        except Fenced:
            self._leave(self._assigned())
            return False
        except ShredlakeError as error:
            self._wait(now, error)
            return False
        self._after()
        if landed is not None:
            for one in landed[0].ranges:
                self._counts["events"] += one.events
                self._counts["dead"] += one.dead
                self._counts["suppressed"] += one.suppressed
            self._counts["commits"] += 1
            self._committed_at = time.time()
        return True

    def _wait(self, now: float, error: ShredlakeError) -> None:
        """Stops reading for a while; what was read stays. Raises what no waiting helps."""
        if not self._patience.waits:
            self._consumer.pause(self._consumer.assignment())
        pause_seconds = self._patience.wait(error, now)
        _log.warning("the batch waits %.1f s: %s: %s", pause_seconds, type(error).__name__, error.message)

    def _hold_or_read(self, partitions: list[TopicPartition]) -> None:
        """Reads nothing of these while a batch waits: an outage takes no more memory than it began with.

        Else they are resumed: the client keeps a pause of ours while a partition is another member's, and
        gives it back paused.
        """
        (self._consumer.pause if self._patience.waits else self._consumer.resume)(partitions)

    def _read_on(self) -> None:
        if self._patience.waits:
            self._patience.dropped()
            self._consumer.resume(self._consumer.assignment())

    def _after(self) -> None:
        self._backlog.landed()
        self._read_on()
        self._patience.landed()
        with contextlib.suppress(KafkaException):  # for other people's lag monitors alone
            self._consumer.commit(offsets=self._stands(), asynchronous=True)
        if self._keeps.is_time_to_delete():
            self._keeps.delete(self._stands())

    def _stands(self) -> list[TopicPartition]:
        """Where the table is in each of our partitions."""
        return [TopicPartition(*one, pending.start) for one, pending in self._backlog.owned().items()]

    # -- the end -----------------------------------------------------------------------------------

    def _newest(self) -> dict[str, int]:
        """Source → offset behind its newest message."""
        return {
            self._topics.source(one.topic, one.partition): self._watermarks(one)[1]
            for one in self._topics.partitions()
        }

    def _reached(self) -> bool:
        """Whether the table stands at the targets, whoever brought it there."""
        try:
            self._targets = targets = self._targets or self._newest()
        except TopicUnavailable:
            return False  # they were of a topic that is being made anew
        mine = {pending.source: pending.start for pending in self._backlog.owned().values()}
        if any(mine.get(source, end) < end for source, end in targets.items()):
            return False
        offsets = self._ingestor.offsets()
        return all(offsets.get(source, 0) >= end for source, end in targets.items())
