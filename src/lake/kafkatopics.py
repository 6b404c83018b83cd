"""What an administrator's view of a cluster says of topics: their ids, ends, retention; and DeleteRecords."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any, Final

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    OffsetSpec,
    ResourceType,
)

from keys import Effects
from lake.errors import TopicGone, TopicUnavailable
from lake.kafkarefusals import made
from lake.topicbook import FeedingTopic

ASK_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 2.0  # for a figure that is shown: nobody waits for it
START_ANEW: Final = {
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError.OFFSET_OUT_OF_RANGE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
    getattr(KafkaError, "UNKNOWN_TOPIC_ID", KafkaError.UNKNOWN_TOPIC_OR_PART),
}
"""Codes that a partition is read anew after."""


class KafkaTopics:
    """Some topics of a cluster.

    Args:
        settings: of librdkafka.
        names: the topics.
        effects: the gate of durable effects; DeleteRecords passes it as `delete-records`.

    Raises:
        TopicUnavailable: the cluster cannot be reached, or a topic does not exist.
        ClientSettingRefused: the client does not take a setting.
    """

    def __init__(
        self, settings: Mapping[str, Any], names: Sequence[str], effects: Effects | None = None
    ) -> None:
        self._settings = dict(settings)
        self._names = list(names)
        self._effects = effects or Effects()
        self._admin = made(AdminClient, self._settings)
        self._ids: dict[str, str] = {}
        self._cluster = ""
        self.look()

    def look(self) -> bool:
        """Reads the topics' ids; whether one was made anew since we looked last.

        Raises:
            TopicGone: a topic does not exist.
            TopicUnavailable: the cluster does not answer.
        """
        try:
            with asking():
                wanted = TopicCollection(self._names)
                asked = self._admin.describe_topics(wanted, request_timeout=ASK_SECONDS)
                found = {name: _topic_id(name, future) for name, future in asked.items()}
                if not self._cluster:
                    self._cluster = str(self._admin.list_topics(timeout=ASK_SECONDS).cluster_id)
        except TopicUnavailable:
            self._admin = made(AdminClient, self._settings)  # an idle one clings to a broker that is gone
            raise
        changed = any(self._ids.get(name, at) != at for name, at in found.items())
        self._ids = found
        return changed

    def source(self, topic: str, partition: int) -> str:
        """What the table knows a partition by; a topic that was made again is another one."""
        return f"kafka:{self._cluster}:{self._ids[topic]}:{partition}"

    def partitions(self) -> list[TopicPartition]:
        """Every partition of the topics. Raises `TopicUnavailable`."""
        with asking():
            found = self._admin.list_topics(timeout=ASK_SECONDS).topics
        return [TopicPartition(name, number) for name in self._names for number in found[name].partitions]

    def ends(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The offset behind the newest message of each, in one call. Raises `TopicUnavailable`."""
        return self._offsets(partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    def readable_ends(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The same without what transactions have not committed yet. Raises `TopicUnavailable`."""
        latest, level = OffsetSpec.latest(), IsolationLevel.READ_COMMITTED  # type: ignore[no-untyped-call]
        return self._offsets(partitions, latest, isolation_level=level)

    def begins(self, partitions: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        """The offset of the oldest message of each, in one call. Raises `TopicUnavailable`."""
        return self._offsets(partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    def _offsets(
        self, partitions: Iterable[tuple[str, int]], which: OffsetSpec, **more: Any
    ) -> dict[tuple[str, int], int]:
        wanted = {TopicPartition(*one): which for one in partitions}
        with asking():
            asked = self._admin.list_offsets(wanted, request_timeout=_LOOK_SECONDS, **more)
            return {
                (one.topic, one.partition): int(future.result(_LOOK_SECONDS).offset)
                for one, future in asked.items()
            }

    def feeding(self, deletes: bool) -> list[FeedingTopic]:
        """For how long the brokers keep what is read. Raises `TopicUnavailable`."""
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in self._names]
        with asking():
            asked = self._admin.describe_configs(resources)
            found = {resource.name: future.result(ASK_SECONDS) for resource, future in asked.items()}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return [self._feeding(name, found[name], deletes, now) for name in self._names]

    def delete_before(self, places: Sequence[TopicPartition]) -> None:
        """Lets the brokers delete what lies before these offsets. Raises `TopicUnavailable`."""
        with asking(), self._effects("delete-records"):
            for future in self._admin.delete_records(list(places)).values():
                future.result(ASK_SECONDS)

    def _feeding(self, name: str, config: Mapping[str, Any], deletes: bool, now: str) -> FeedingTopic:
        retention = int(config["retention.ms"].value)
        for_ever = retention < 0 or "delete" not in config["cleanup.policy"].value
        return FeedingTopic(
            self._cluster,
            self._ids[name],
            name,
            None if for_ever else retention,
            int(config["segment.ms"].value) + int(config["file.delete.delay.ms"].value),
            deletes,
            now,
        )


def _topic_id(name: str, asked: Future[Any]) -> str:
    with asking(name):
        return str(asked.result(ASK_SECONDS).topic_id)


class asking:
    """Turns the client's own errors into ours.

    Args:
        topic: that is asked about, where it is one.
    """

    def __init__(self, topic: str | None = None) -> None:
        self._about = "" if topic is None else f"topic {topic}: "

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KafkaException):
            cause: Any = error.args[0]
            if cause.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise TopicGone(f"{self._about}the broker answers {cause.name()}") from None
            raise TopicUnavailable(f"{self._about}the broker answers {cause.name()}") from None
        if isinstance(error, TimeoutError):
            raise TopicUnavailable("the broker does not answer") from None
