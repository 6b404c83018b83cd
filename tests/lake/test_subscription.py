"""The client's settings: what exactly-once rests on is ours, the rest is the operator's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Consumer

from lake.subscription import Subscription, check_client
from service.cli.topic_commands import open_outlet
from service.errors import BadSettings
from service.kafka import open_consumer, partition_source, standing
from service.settings import load_settings


def test_the_operator_tunes_the_client_but_not_what_exactly_once_rests_on() -> None:
    client = {"enable.auto.commit": "true", "fetch.min.bytes": "1000", "heartbeat.interval.ms": "900"}
    tuned = Subscription("here:9092", ("clicks",), client=client).consumer_settings()
    assert tuned["enable.auto.commit"] is False
    assert tuned["isolation.level"] == "read_committed"
    assert (tuned["fetch.min.bytes"], tuned["heartbeat.interval.ms"]) == ("1000", "900")


def test_a_rebalance_is_noticed_within_half_a_second_unless_told_otherwise() -> None:
    settings = Subscription("here:9092", ("clicks",), member="one").consumer_settings()
    assert settings["heartbeat.interval.ms"] <= 500
    assert settings["group.instance.id"] == "one"


def test_a_client_that_takes_longer_messages_fetches_as_much() -> None:
    """The library makes no consumer otherwise."""
    for client, most in (({}, 16 << 20), ({"message.max.bytes": "40000000"}, 40_000_000)):
        settings = Subscription("here:9092", ("clicks",), client=client).consumer_settings()
        assert settings["fetch.max.bytes"] == most
        Consumer(settings).close()
    own = Subscription("here:9092", ("clicks",), client={"fetch.max.bytes": "2000000"})
    assert own.consumer_settings()["fetch.max.bytes"] == "2000000"


BREAKING = [
    "enable.auto.commit", "auto.commit.enable", "auto.commit.interval.ms", "enable.auto.offset.store",
    "auto.offset.reset", "isolation.level", "enable.partition.eof", "partition.assignment.strategy",
    "check.crcs", "group.id", "group.instance.id", "bootstrap.servers", "metadata.broker.list",
    "enable.idempotence", "acks", "request.required.acks", "transactional.id", "offset.store.method",
]  # fmt: skip


@pytest.mark.parametrize("name", [*BREAKING, " Enable.Auto.Commit "])
def test_a_client_setting_that_would_break_a_guarantee_is_refused_by_name_through_every_door(
    name: str, tmp_path: Path
) -> None:
    """Not ignored silently: whoever wrote it believes that it holds. No broker is asked; no value is shown."""
    text = f'[kafka]\nbootstrap = "127.0.0.1:1"\ntopics = ["t"]\n[kafka.client]\n"{name}" = "hunter2"\n'
    (tmp_path / "shredlake.toml").write_text(text)
    settings = load_settings(tmp_path).kafka
    assert settings is not None
    feed: Any = SimpleNamespace(settings=SimpleNamespace(kafka=settings))
    for door in (
        lambda: standing(settings, {}),
        lambda: partition_source(settings, "t", 0),
        lambda: open_outlet(tmp_path, "t"),
        lambda: open_consumer(feed),
    ):
        with pytest.raises(BadSettings) as refused:
            door()
        assert f"`{name.strip().lower()}`" in refused.value.message
        assert "kafka.client" in refused.value.next_step
        assert "hunter2" not in refused.value.message


@pytest.mark.parametrize(
    "name", ["fetch.min.bytes", "heartbeat.interval.ms", "sasl.password", "ssl.ca.location"]
)
def test_how_the_cluster_is_reached_and_how_fast_it_is_read_stays_the_operator_s(name: str) -> None:
    check_client(
        [name, "group.protocol", "group.remote.assignor", "session.timeout.ms", "max.poll.interval.ms"]
    )
