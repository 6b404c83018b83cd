"""Seals events and sends them to a topic: the broker sees no identifier and no personal value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import polars as pl
from attrs import frozen

from keys import WritingKeys
from lake.errors import Unsealable
from lake.kafkaoutlet import KafkaOutlet
from lake.parsed import Parsed
from lake.salvage import UNEXPECTED, guilty, is_of_data
from lake.sealedmessages import encode_blocks
from lake.sealer import Sealed, Sealer
from lake.sources import HttpBatch, Source
from lake.typeregistry import TypeRegistry
from lake.validate import Flaw

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
        return self.send_all(HttpBatch(events, _SOURCE, self._types), max(1, len(events)))

    def send_all(
        self, source: Source, batch_events: int, progress: Callable[[int], None] = lambda lines: None
    ) -> Sent:
        """Sends a whole source; a line that cannot be sealed travels as a letter too. Raises as `send`.

        Args:
            progress: called with the lines done.
        """
        done, start, aside = Sent(), 0, dict[int, Flaw]()
        while True:
            try:
                for parsed in source.read(start, batch_events, aside):
                    done += self.send_parsed(parsed)
                    start = parsed.end
                    progress(start)
                return done
            except Unsealable as error:  # read again, with these lines as letters
                aside |= error.places[_SOURCE]

    def send_parsed(self, parsed: Parsed) -> Sent:
        """Sends lines of any source.

        Raises:
            Unsealable: lines cannot be sealed; nothing was sent. Read them again as letters.
            KeysError, TopicUnavailable: see `send`.
        """
        try:
            sealed = self._seal(parsed)
        except UNEXPECTED as error:
            found = guilty(parsed, self._seal) if is_of_data(error) else {}
            if not found:
                raise
            raise Unsealable({_SOURCE: found}) from None
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

    def _seal(self, parsed: Parsed) -> Sealed:
        self._sealer.begin()
        return self._sealer.seal(_SOURCE, parsed, self._clock())
