"""Seals events and sends them to a topic: the broker sees no identifier and no personal value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import polars as pl
from attrs import frozen

from keys import WritingKeys
from lake.cloudevents import parse_cloud_events
from lake.kafkaoutlet import KafkaOutlet
from lake.parsed import Parsed
from lake.sealedmessages import encode_blocks
from lake.sealer import Sealer
from lake.typeregistry import TypeRegistry

_SOURCE: Final = "producer"


@frozen
class Sent:
    """What became of events.

    Attributes:
        events: sent; `dead` were sent as dead letters, by `reasons`; `suppressed` belong to erased
            people and were not sent.
    """

    events: int = 0
    dead: int = 0
    suppressed: int = 0
    reasons: tuple[tuple[str, int], ...] = ()

    def __add__(self, other: Sent) -> Sent:
        both = Counter(dict(self.reasons))
        both.update(dict(other.reasons))
        return Sent(
            self.events + other.events,
            self.dead + other.dead,
            self.suppressed + other.suppressed,
            tuple(sorted(both.items())),
        )


class SealingProducer:
    """Sends events to a sealed topic.

    Args:
        keyring: names people and seals: of the process, or of the host's key agent.
        types: registered event types.
        table_uuid: of the lake's events table; the events can be ingested there alone.
        outlet: where messages go.
    """

    def __init__(
        self,
        keyring: WritingKeys,
        types: TypeRegistry,
        table_uuid: bytes,
        outlet: KafkaOutlet,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._types = types
        self._table_uuid = table_uuid
        self._outlet = outlet
        self._clock = clock
        self._sealer = Sealer(keyring, types, table_uuid, one_each=True)

    def send(self, events: Sequence[bytes]) -> Sent:
        """Sends CloudEvents in structured JSON; what does not fit travels as a sealed dead letter.

        Raises:
            KeysError: nothing of these events was sent.
            TopicUnavailable: some may have been sent; send all again.
        """
        return self.send_parsed(parse_cloud_events(list(enumerate(events)), self._types, 0, len(events)))

    def send_parsed(self, parsed: Parsed) -> Sent:
        """Sends lines of any source. Raises as `send`."""
        self._sealer.begin()
        sealed = self._sealer.seal(_SOURCE, parsed, self._clock())
        if sealed.blocks:
            rows = pl.concat(sealed.blocks).sort("source_from", maintain_order=True)
            for event in rows.partition_by("source_from", maintain_order=True):
                blocks = event.to_dicts()
                key = next(block["subject_ref"] for block in blocks if block["primary"])
                self._outlet.put(encode_blocks(self._table_uuid, blocks), key, {})
        self._outlet.flush()
        reasons = Counter(one.flaw.reason for one in parsed.rejected)
        return Sent(
            sealed.span.events, sealed.span.dead, sealed.span.suppressed, tuple(sorted(reasons.items()))
        )
