"""What a consumer reads, and the client settings that this takes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import field, frozen

from lake.errors import ClientSettingRefused

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

_OTHERWISE: Final = {
    "bootstrap.servers": "kafka.bootstrap",
    "metadata.broker.list": "kafka.bootstrap",
    "group.id": "kafka.group",
    "group.instance.id": "kafka.member",
}
_NOBODYS: Final = frozenset(
    {
        *_OUR_SETTINGS,
        "acks",
        "auto.commit.enable",
        "auto.commit.interval.ms",
        "enable.auto.offset.store",
        "enable.idempotence",
        "log_level",
        "offset.store.method",
        "offset.store.path",
        "plugin.library.paths",
        "request.required.acks",
        "transactional.id",
    }
)
"""What exactly-once rests on, each under every name that the client knows it by."""

_CLASSIC: Final = ("partition.assignment.strategy", "heartbeat.interval.ms")
"""Settings that brokers decide under `group.protocol = consumer`; the client refuses them then."""

_FETCH_BYTES: Final = 16 * 1024 * 1024
_DEFAULTS: Final = {"heartbeat.interval.ms": 500, "max.partition.fetch.bytes": _FETCH_BYTES}
"""A rebalance is noticed at a heartbeat; with the client's three seconds a second consumer begins late.

Where there is much to read an answer of a broker is of one partition, not a little of each: messages are
mostly partitioned by person, so a commit has more of fewer people, and their blocks are longer (ADR 39).
"""


def check_client(client: Iterable[str]) -> None:
    """Refuses what is not up to `kafka.client`: it would be ignored, or break what the lake promises.

    Args:
        client: names of settings.

    Raises:
        ClientSettingRefused: names each, and the setting that decides it where there is one.
    """
    refused = []
    for name in client:
        plain = name.strip().lower()
        if plain in _OTHERWISE:
            refused.append(f"`{plain}` (set {_OTHERWISE[plain]} instead)")
        elif plain in _NOBODYS:
            refused.append(f"`{plain}`")
    if refused:
        raise ClientSettingRefused(
            f"kafka.client may not set {', '.join(sorted(refused))}: the lake decides it, since every event"
            " being stored exactly once rests on it",
            next_step="Take it out of `kafka.client`; nothing was read.",
        )


@frozen
class Subscription:
    """What to read.

    Attributes:
        client: further settings of librdkafka: security.protocol, sasl.*, ssl.*; may hold secrets.
        member: a name of this consumer that stays the same over restarts (static membership), or None.
        accept_gaps: go on behind messages that the broker has dropped before we read them.
        delete_committed: let the broker delete what is in the table.
    """

    bootstrap: str
    topics: tuple[str, ...]
    group: str = "shredlake"
    client: Mapping[str, str] = field(factory=dict, repr=False)
    member: str | None = None
    accept_gaps: bool = False
    delete_committed: bool = False

    def client_settings(self) -> dict[str, Any]:
        """For librdkafka: how the cluster is reached."""
        return {**self.client, "bootstrap.servers": self.bootstrap, "log_level": 2}

    def consumer_settings(self) -> dict[str, Any]:
        """For librdkafka's consumer; what exactly-once rests on is not up to anybody."""
        member = {} if self.member is None else {"group.instance.id": self.member}
        ours = {"group.id": self.group, **member, **_OUR_SETTINGS}
        defaults = {**_DEFAULTS, "fetch.max.bytes": self._answer_bytes()}
        if self.client.get("group.protocol", "classic").lower() == "consumer":
            ours = {name: value for name, value in ours.items() if name not in _CLASSIC}
            defaults = {name: value for name, value in defaults.items() if name not in _CLASSIC}
        return {**defaults, **self.client_settings(), **ours}

    def _answer_bytes(self) -> int:
        """The client refuses less than a message may have."""
        longest = self.client.get("message.max.bytes", "")
        return max(_FETCH_BYTES, int(longest)) if longest.isdigit() else _FETCH_BYTES
