"""Every door of a lake, and what must hold of whatever comes through it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from confluent_kafka.schema_registry import Schema
from confluent_kafka.schema_registry._sync.mock_schema_registry_client import MockSchemaRegistryClient
from starlette.exceptions import HTTPException

from lake import EventRead, Ingestor, JsonLinesFile, MappedFile
from lake.carefulmessages import CarefulMessages
from lake.cloudevents import parse_cloud_events
from lake.errors import Unsealable
from lake.eventtypes import DEAD_LETTER, EventType
from lake.intake import lines_of
from lake.mapping import Mapping as FieldMapping
from lake.messages import CloudEventMessages, MappedMessages, Message, MessageFormat, Messages
from lake.parsed import Parsed, joined
from lake.replay import Replay
from lake.salvage import NOTHING, Aside
from lake.sealedmessages import SealedMessages
from lake.sealer import letter_bytes
from lake.sealingproducer import SealingProducer
from lake.typeregistry import TypeRegistry
from lake.validate import Flaw
from lake.wireformat import FramedMessages, SchemaRegistry
from service.batches import posted
from service.runtime import Runtime

GOOD = [
    json.dumps(
        {"specversion": "1.0", "id": f"good-{at}", "source": "s", "type": "Paid", "subject": f"g{at}"}
        | {"time": "2026-03-01T12:00:00Z", "data": {"cents": at, "note": "n"}}
    ).encode()
    for at in range(3)
]
"""Neighbours: whatever is beside them, they are stored."""


def among(lines: Sequence[bytes]) -> list[bytes]:
    """Lines between their neighbours."""
    return [GOOD[0], *lines[:1], GOOD[1], *lines[1:], GOOD[2]]


@frozen
class Came:
    """What came through a door: the lines that were sent, and what they became."""

    sent: Mapping[int, bytes]
    parsed: Parsed


class Doors:
    """The doors of an open lake.

    Args:
        types: registered in a folder of their own, where a lake is shared by many trials.
    """

    def __init__(self, world: Runtime, types: TypeRegistry) -> None:
        self._world = world
        self._types = types
        self._uuid = world.lake.events.metadata().table_uuid.bytes

    # -- the doors ---------------------------------------------------------------------------------

    def file(self, lines: Sequence[bytes]) -> Came:
        """A file of CloudEvents; a line that has a line break in it is several."""
        return self._file(lines, lambda path: JsonLinesFile(path, self._types))

    def mapped_file(self, lines: Sequence[bytes], mapping: FieldMapping) -> Came:
        """A file and a mapping."""
        return self._file(lines, lambda path: MappedFile(path, mapping))

    def _file(self, lines: Sequence[bytes], made: Callable[[Path], Any]) -> Came:
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"\n".join(lines))
            file.flush()
            source = made(Path(file.name))
            parsed = joined(list(source.read(0, 10)))
            sent = b"\n".join(lines).removeprefix(b"\xef\xbb\xbf").split(b"\n")
        return Came(
            {at: raw.rstrip(b"\r\n") for at, raw in enumerate(sent) if raw or at < len(sent) - 1}, parsed
        )

    def http(self, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> Came | None:
        """A request; None where it is refused as a whole."""
        try:
            taken = posted(headers, body)
        except HTTPException as refused:
            if refused.status_code not in range(400, 500):
                raise
            return None
        lines = lines_of(taken.body)
        assert len(lines) == taken.events, "the two readers of an array see as many events"
        parsed = parse_cloud_events(list(enumerate(lines)), self._types, 0, len(lines))
        return Came(dict(enumerate(lines)), parsed)

    def kafka(
        self, messages: Sequence[Message], way: MessageFormat | None = None, aside: Aside = NOTHING
    ) -> Came:
        """A partition, with the offsets as they are."""
        end = messages[-1].offset + 1
        careful = CarefulMessages(way or CloudEventMessages(self._types), lambda source: aside)
        parsed = careful.parse("kafka:c:t:0", 0, end, Messages.of(messages))
        values = {one.offset: one.value or b"" for one in messages}
        return Came({at: values.get(at, b"") for at in range(end)}, parsed)

    def mapped_kafka(self, messages: Sequence[Message], mapping: FieldMapping) -> Came:
        """The same by a mapping of kind `json`."""
        return self.kafka(messages, MappedMessages(mapping))

    def framed(
        self, messages: Sequence[Message], schemas: Sequence[tuple[str, str]], inner: MessageFormat
    ) -> Came:
        """The same, framed; schemas as (text, kind) have the ids from 1 on."""
        registry = SchemaRegistry("http://127.0.0.1:9")
        client = MockSchemaRegistryClient({"url": "mock://"})
        for at, (text, kind) in enumerate(schemas):
            client.register_schema(f"s{at}", Schema(text, kind))
        registry._client = client
        return self.kafka(messages, FramedMessages(registry, inner))

    def sealed(self, values: Sequence[bytes | None]) -> Came:
        """A sealed topic."""
        messages = [Message(at, value) for at, value in enumerate(values)]
        way = SealedMessages(self._types, self._uuid)
        came = self.kafka(messages, way)
        aside: dict[int, Flaw] = {}
        while True:
            try:
                self._ingestor()._prepare([("kafka:c:t:0", came.parsed)])
                return came
            except Unsealable as error:  # as a consumer does: read again, with these as letters
                aside |= error.places["kafka:c:t:0"]
                came = self.kafka(messages, way, aside)

    def sealing(self, lines: Sequence[bytes]) -> list[bytes]:
        """What a sealing producer makes of lines."""
        found: list[bytes] = []

        class Outlet:
            def put(self, value: bytes, key: bytes, headers: Any) -> None:
                found.append(value)

            def flush(self) -> None: ...

        outlet: Any = Outlet()
        sent = SealingProducer(self._world.keyring, self._types, self._uuid, outlet).send(lines)
        assert sent.events + sent.dead + sent.suppressed == sum(bool(line.strip()) for line in lines)
        return found

    # -- what must hold ----------------------------------------------------------------------------

    def check(self, came: Came) -> None:
        """Every line is an event, one letter, or blank; and all of it is written, and read again."""
        parsed, lines = came.parsed, set(came.sent)
        assert (parsed.start, parsed.end) == (0, len(lines))
        accepted = [at for _, frame in parsed.accepted for at in frame["position"]]
        accepted += [] if parsed.sealed is None else parsed.sealed.filter("primary")["source_from"].to_list()
        letters = [one.line for one in parsed.rejected]
        assert len({*accepted, *letters}) == len(accepted) + len(letters), "one outcome each"
        assert lines >= {*accepted, *letters}
        assert parsed.blank == len(lines) - len(accepted) - len(letters)
        for one in parsed.rejected:
            assert not one.flaw.reason.startswith("unprocessable"), one.flaw
        self._check_written(came, accepted)

    def _ingestor(self) -> Ingestor:
        lake = self._world.lake
        return Ingestor(lake.events, self._world.keyring, self._types, lake.clock)

    def _check_written(self, came: Came, accepted: Sequence[int]) -> None:
        world = self._world
        prepared = self._ingestor()._prepare([("http:trial", came.parsed)])
        (span,) = prepared.ranges
        assert span.events + span.dead + span.suppressed + span.blank == len(came.sent)
        replay = Replay(world.lake.events, world.keyring, self._types)
        kinds = {kind.name: kind for kind, _ in came.parsed.accepted}
        if came.parsed.sealed is not None:
            kinds = {
                name: self._types.get(name)
                for name in came.parsed.sealed["event_type"].unique()
                if name != DEAD_LETTER
            }
        try:
            stored = sum(_read(replay, prepared.files, kind) for kind in kinds.values())
            fields = ("reason", "raw", "line")
            letters = replay.events(prepared.files, EventRead(DEAD_LETTER, fields), settled=False).frame
            assert (stored, letters.height) == (span.events, span.dead)
            sent = {one.line: one.raw for one in came.parsed.rejected}
            if came.parsed.sealed is None:
                assert {
                    row["line"]: letter_bytes(row["raw"]) for row in letters.iter_rows(named=True)
                } == sent
        finally:
            for file in prepared.files:
                world.lake.events.load().io.delete(file.file_path)


def _read(replay: Replay, files: Any, kind: EventType) -> int:
    """How many events of a type are read again, with all that they hold."""
    found = 0
    for facet in kind.facets:
        fields = tuple(one.name for one in kind.fields if one.anonymous or one.facet == facet)
        head = ("event_id", "occurred_at", "subject", "source")
        rows = replay.events(files, EventRead(kind.name, (*fields, *head), facet), settled=False)
        if facet == kind.facets[0]:
            found = rows.frame.height
    return found


def outcomes(came: Came) -> dict[int, str]:
    """What became of each line: the type of the event, or the letter's reason."""
    found = {at: kind.name for kind, frame in came.parsed.accepted for at in frame["position"]}
    return found | {one.line: f"!{one.flaw.reason}" for one in came.parsed.rejected}


def neighbours(came: Came) -> set[str]:
    """Ids of the good ones that were taken."""
    ids = [frame["event_id"].to_list() for kind, frame in came.parsed.accepted if kind.name == "Paid"]
    return {one for some in ids for one in some if one.startswith("good-")}
