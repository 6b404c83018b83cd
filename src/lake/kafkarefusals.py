"""What the client of a cluster refuses to take, and what a cluster refuses to give it. Pure.

A consumer that is refused lives on, reads nothing and looks healthy: each refusal ends it with an error
that names the setting. Of a static member that another one has replaced the client says a fatal error whose
`fatal()` is false, so codes are looked at and not flags.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from lake.errors import ClientSettingRefused, GroupRefused, MemberFenced, MemberNotReleased, TopicUnavailable

Client = TypeVar("Client")
_NAMED: Final = {
    KafkaError.GROUP_AUTHORIZATION_FAILED: "the log-in may not read as this group (`kafka.group`)",
    KafkaError.INVALID_GROUP_ID: "the brokers do not take this group's name (`kafka.group`)",
    KafkaError.GROUP_MAX_SIZE_REACHED: "the group has as many consumers as the brokers allow"
    " (`kafka.workers`, `kafka.group`)",
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: "the group has members that share partitions by another rule"
    " (`kafka.group`)",
    KafkaError.INVALID_SESSION_TIMEOUT: "the brokers do not take this session timeout"
    " (`session.timeout.ms` in `kafka.client`)",
    KafkaError.UNSUPPORTED_ASSIGNOR: "the brokers have no such assignor (`group.remote.assignor` in"
    " `kafka.client`)",
    KafkaError.UNSUPPORTED_VERSION: "the brokers are too old for this (`group.protocol` in `kafka.client`)",
    KafkaError._UNSUPPORTED_FEATURE: "the brokers are too old for this (`group.protocol` in `kafka.client`)",
}
_LOG_IN: Final = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}
_SECRET_WORDS: Final = ("password", "secret", "pem", "jaas", "oauthbearer", "credential", "token")


def refusal(error: KafkaError) -> TopicUnavailable | GroupRefused | None:
    """What ends a consumer that is told this; None of what the client goes on after by itself."""
    code, sentence = error.code(), error.str()
    if _means(KafkaError.FENCED_INSTANCE_ID, code, sentence):
        return MemberFenced("another consumer joined the group by our name, so we are out of it")
    if _means(KafkaError.UNRELEASED_INSTANCE_ID, code, sentence):
        return MemberNotReleased("another consumer of the group has our name")
    for known, what in _NAMED.items():
        if code == known or (code == KafkaError._FATAL and _means(known, code, sentence)):
            return GroupRefused(what)
    if code in _LOG_IN:
        return TopicUnavailable(f"the broker refuses us: {error.name()}")
    if error.fatal() or code == KafkaError._FATAL:
        return TopicUnavailable(f"the client cannot go on: {sentence}")
    return None


def _means(known: int, code: int, sentence: str) -> bool:
    """By its code, or where a fatal error has it inside by the sentence alone."""
    return code == known or KafkaError(known).str() in sentence


def made(kind: Callable[[dict[str, Any]], Client], settings: Mapping[str, Any]) -> Client:
    """A client of these settings.

    Raises:
        ClientSettingRefused: it does not take one of them; says its sentence, without any secret.
    """
    try:
        return kind(dict(settings))
    except KafkaException as error:
        sentence = error.args[0].str()
    except (TypeError, ValueError) as error:
        sentence = str(error)
    secrets = [str(v) for k, v in settings.items() if any(word in k for word in _SECRET_WORDS)]
    for secret in filter(None, secrets):
        sentence = sentence.replace(secret, "…")
    raise ClientSettingRefused(f"the Kafka client refuses its settings: {' '.join(sentence.split())}")
