"""The client's settings: what exactly-once rests on is ours, the rest is the operator's."""

from __future__ import annotations

from confluent_kafka import Consumer

from lake.subscription import Subscription


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
