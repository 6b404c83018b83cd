"""Confluent's wire format from a real broker, with the schemas in a real registry."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from confluent_kafka import Producer
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

from infra.kafka import Kafka
from infra.registry import Registry
from keys import SubjectId
from lake import dead_letters, verify
from lake.errors import RegistryRefused, RegistryUnavailable
from lake.mapping import parse_mapping
from lake.messages import CloudEventMessages, MappedMessages, Message
from lake.validate import Flaw
from lake.wireformat import FramedMessages, SchemaRegistry
from service.runtime import Runtime
from tests.lake.topics import Topic, exactly, held
from tests.world import erase, make_world

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
MAPPING = {
    "format": {"kind": "json"},
    "event": {"type": "Paid", "source": "shop", "subject": "{who}", "id": "{number}", "time": "at"},
    "fields": {"cents": "cents", "note": "note"},
}
AVRO = json.dumps(
    {
        "type": "record",
        "name": "Sale",
        "fields": [
            {"name": "who", "type": "string"},
            {"name": "number", "type": "long"},
            {"name": "cents", "type": "long"},
            {"name": "note", "type": ["null", "string"], "default": None},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        ],
    }
)
JSON_SCHEMA = json.dumps(
    {
        "title": "Sale",
        "type": "object",
        "properties": {
            "who": {"type": "string"},
            "number": {"type": "integer"},
            "cents": {"type": "integer"},
        },
        "required": ["who"],
    }
)


@pytest.fixture
def client(registry: Registry) -> SchemaRegistryClient:
    """As a producer has one."""
    return SchemaRegistryClient({"url": registry.address()["SCHEMA_REGISTRY_URL"]})


@pytest.fixture
def topic(kafka: Kafka) -> Topic:
    """A fresh topic."""
    return Topic(kafka.address()["KAFKA_BOOTSTRAP"])


def value_of(serializer: Any, found: Any) -> bytes:
    """A framed value, its schema registered on the way."""
    done: bytes = serializer(found, SerializationContext(f"t-{uuid.uuid4().hex}", MessageField.VALUE))
    return done


def sale_class() -> Any:
    """The class of a message that stands second in its file and uses another one."""
    file = descriptor_pb2.FileDescriptorProto(name="sale.proto", package="shop", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    file.message_type.add(name="Item").field.add(name="cents", number=1, type=3, label=1)
    sale = file.message_type.add(name="Sale")
    sale.enum_type.add(name="Kind").value.add(name="CASH", number=0)
    sale.field.add(name="who", number=1, type=9, label=1)
    sale.field.add(name="number", number=2, type=3, label=1)
    sale.field.add(name="cents", number=3, type=3, label=1)
    sale.field.add(name="at", number=4, type=11, label=1, type_name=".google.protobuf.Timestamp")
    sale.field.add(name="items", number=5, type=11, label=3, type_name=".shop.Item")
    sale.field.add(name="kind", number=6, type=14, label=1, type_name=".shop.Sale.Kind")
    sale.field.add(name="raw", number=7, type=12, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("shop.Sale"))


def sale(number: int) -> dict[str, Any]:
    """What happened."""
    return {"who": f"person-{number % 7}", "number": number, "cents": number, "at": AT}


def avro(client: SchemaRegistryClient) -> Callable[[int], bytes]:
    """Makes Avro messages."""
    serializer = AvroSerializer(client, AVRO)
    return lambda number: value_of(serializer, sale(number) | {"note": f"note {number}"})


def json_schema(client: SchemaRegistryClient) -> Callable[[int], bytes]:
    """Makes messages in JSON Schema."""
    serializer = JSONSerializer(JSON_SCHEMA, client)
    return lambda number: value_of(serializer, sale(number) | {"at": AT.isoformat()})


def protobuf(client: SchemaRegistryClient) -> Callable[[int], bytes]:
    """Makes Protobuf messages."""
    kind = sale_class()
    serializer = ProtobufSerializer(kind, client, {"use.deprecated.format": False})

    def made(number: int) -> bytes:
        found = kind(who=f"person-{number % 7}", number=number, cents=number)
        found.at.FromDatetime(AT)
        return value_of(serializer, found)

    return made


def mapped(world: Runtime, registry: Registry) -> FramedMessages:
    """The format behind a mapping."""
    inner = MappedMessages(parse_mapping(MAPPING, world.lake.types))
    return FramedMessages(SchemaRegistry(registry.address()["SCHEMA_REGISTRY_URL"]), inner)


@pytest.mark.parametrize("kind", [avro, json_schema, protobuf])
def test_each_kind_of_schema_comes_by_a_mapping_exactly_once(
    topic: Topic, world: Runtime, registry: Registry, client: SchemaRegistryClient, kind: Any
) -> None:
    """Also the cents that are Protobuf's default and so are not on the wire."""
    make = kind(client)
    producer = Producer({"bootstrap.servers": topic.bootstrap})
    for number in range(60):
        topic.put(producer, make(number), key=str(number))
    producer.flush()
    consumer = topic.consumer(world, message_format=mapped(world, registry))
    assert consumer.run(until_caught_up=True).events == 60
    assert held(world) == exactly(range(60))
    assert verify(world.lake, deep=True).problems == ()


@pytest.mark.parametrize("kind", [avro, json_schema, protobuf])
@pytest.mark.parametrize("by", ["number", "guid"])
def test_a_schema_that_a_header_names_is_read_as_one_ahead_of_the_body(
    registry: Registry,
    client: SchemaRegistryClient,
    kind: Any,
    by: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the client's own deserializers do: the header goes before, and the value is the body alone.

    This registry has no GUIDs: the client is lent one for the number that it has.
    """
    framed = kind(client)(3)
    reader = SchemaRegistry(registry.address()["SCHEMA_REGISTRY_URL"])
    indexes = 2 if kind is protobuf else 0  # the message's place in its file stays with the id
    place, body = framed[: 5 + indexes], framed[5 + indexes :]
    if by == "guid":
        number, guid = int.from_bytes(place[1:5], "big"), uuid.uuid4()
        known = {str(guid): number}

        def by_guid(asked: str, fmt: str | None = None) -> Schema:
            return reader._client.get_schema(known[asked], fmt=fmt)

        monkeypatch.setattr(reader._client, "get_schema_by_guid", by_guid)
        place = b"\x01" + guid.bytes + place[5:]
    headers = [("other", b"x"), ("__value_schema_id", place), ("__value_schema_id", b"")]
    (ahead,) = reader.as_json([Message(0, framed)])
    assert isinstance(ahead, bytes)
    assert json.loads(ahead)["cents"] == 3
    assert reader.as_json([Message(0, body, headers), Message(1, place + body)]) == [ahead, ahead]
    assert reader.as_json([Message(0, body)]) != [ahead]
    wrong = reader.as_json([Message(0, framed, [("__value_schema_id", b"\x02")])])
    assert wrong == [Flaw("not_in_wire_format")]


def test_an_avro_record_with_attributes_in_headers_is_a_cloud_event(
    topic: Topic, world: Runtime, registry: Registry, client: SchemaRegistryClient
) -> None:
    """The Kafka protocol binding's binary mode with data in Avro."""
    schema = {"type": "record", "name": "D", "fields": [{"name": "cents", "type": "long"}]}
    value = value_of(AvroSerializer(client, json.dumps(schema)), {"cents": 3})
    head = {"specversion": "1.0", "id": "1", "source": "s", "type": "Paid", "subject": "ann"}
    headers = {f"ce_{name}": text for name, text in (head | {"time": AT.isoformat()}).items()}
    producer = Producer({"bootstrap.servers": topic.bootstrap})
    topic.put(producer, value, headers=headers)
    topic.put(producer, None, key="a tombstone")
    producer.flush()
    url = registry.address()["SCHEMA_REGISTRY_URL"]
    form = FramedMessages(SchemaRegistry(url), CloudEventMessages(world.lake.types))
    assert topic.consumer(world, message_format=form).run(until_caught_up=True).events == 1
    assert held(world) == exactly([3])


def test_what_cannot_be_read_is_kept_as_it_was(
    topic: Topic, world: Runtime, registry: Registry, client: SchemaRegistryClient
) -> None:
    """Every byte of it, beside its readable neighbours."""
    good = avro(client)(1)
    bad = {
        "not_in_wire_format": b'{"who": "ann"}',
        "unknown_schema": b"\0\0\x0f\xff\xff" + good[5:],
        "undecodable": good[:5] + b"\x06an",
        "invalid_time": value_of(
            JSONSerializer(JSON_SCHEMA, client), {"who": "ann", "number": 5, "cents": 5}
        ),
    }
    producer = Producer({"bootstrap.servers": topic.bootstrap})
    for value in (*bad.values(), good):
        topic.put(producer, value, partition=0)
    producer.flush()
    done = topic.consumer(world, message_format=mapped(world, registry)).run(until_caught_up=True)
    assert (done.events, done.dead) == (1, 4)
    assert {letter.reason: letter.raw for letter in dead_letters(world.lake)} == bad
    assert verify(world.lake, deep=True).problems == ()


def test_what_cannot_be_read_is_sealed_for_whom_its_headers_name(
    topic: Topic, world: Runtime, registry: Registry
) -> None:
    """The attributes stay with the bytes, and die with that person's key."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": "1",
        "ce_source": "s",
        "ce_type": "Paid",
        "ce_subject": "ann",
    }
    producer = Producer({"bootstrap.servers": topic.bootstrap})
    topic.put(producer, b"\0\0\x0f\xff\xffx", headers=headers)
    producer.flush()
    url = registry.address()["SCHEMA_REGISTRY_URL"]
    form = FramedMessages(SchemaRegistry(url), CloudEventMessages(world.lake.types))
    assert topic.consumer(world, message_format=form).run(until_caught_up=True).dead == 1
    (letter,) = dead_letters(world.lake)
    assert letter.ref == world.keyring.ref_of(SubjectId("ann"))
    assert json.loads(letter.raw)["data_base64"] == "AAAP//94"
    erase(world, "ann")
    assert list(dead_letters(world.lake)) == []


def test_values_that_json_has_no_form_of_are_written_as_text(
    client: SchemaRegistryClient, registry: Registry
) -> None:
    """Decimals exactly, bytes as base64, times with their zone, enumerations by name."""
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    fields = [{"name": "d", "type": decimal}, {"name": "b", "type": "bytes"}]
    fields.append({"name": "t", "type": {"type": "long", "logicalType": "timestamp-millis"}})
    schema = json.dumps({"type": "record", "name": "E", "fields": fields})
    value = value_of(AvroSerializer(client, schema), {"d": Decimal("1.50"), "b": b"\xff", "t": AT})
    kind = sale_class()
    message = kind(who="ann", number=2**62, raw=b"\xff")
    message.items.add(cents=3)
    framed = value_of(ProtobufSerializer(kind, client, {"use.deprecated.format": False}), message)
    reader = SchemaRegistry(registry.address()["SCHEMA_REGISTRY_URL"])
    found = reader.as_json([Message(0, value), Message(1, framed)])
    assert [json.loads(one) for one in found if isinstance(one, bytes)] == [
        {"d": "1.50", "b": "/w==", "t": "2026-03-01T12:00:00+00:00"},
        {"who": "ann", "number": 2**62, "cents": 0, "items": [{"cents": 3}], "kind": "CASH", "raw": "/w=="},
    ]


def test_a_protobuf_schema_that_is_given_as_text_is_said_so(
    client: SchemaRegistryClient, registry: Registry
) -> None:
    """It is the registry's to compile; no message becomes a dead letter for that."""
    text = 'syntax = "proto3"; message Sale { string who = 1; }'
    number = client.register_schema(f"t-{uuid.uuid4().hex}-value", Schema(text, "PROTOBUF"))
    reader = SchemaRegistry(registry.address()["SCHEMA_REGISTRY_URL"])
    with pytest.raises(RegistryRefused, match="as text"):
        reader.as_json([Message(0, b"\0" + number.to_bytes(4, "big") + b"\0\x0a\x03ann")])


def test_a_registry_that_is_away_is_waited_for(topic: Topic, world: Runtime, tmp_path: Path) -> None:
    """What was read stays; nothing becomes a dead letter."""
    away = Registry(tmp_path / "servers")
    url = away.start()["SCHEMA_REGISTRY_URL"]
    try:
        make = avro(SchemaRegistryClient({"url": url}))
        one = make(0)
        producer = Producer({"bootstrap.servers": topic.bootstrap})
        for number in range(30):
            topic.put(producer, make(number), key=str(number))
        producer.flush()
        away.process.kill()
        with pytest.raises(RegistryUnavailable):
            SchemaRegistry(url).as_json([Message(0, one)])
        consumer = topic.consumer(world, message_format=mapped(world, away))
        following = threading.Thread(target=lambda: consumer.run(until_caught_up=True))
        following.start()
        following.join(4)
        assert following.is_alive(), "it waits"
        assert world.lake.events.snapshot() is None
        away.start()
        following.join(60)
        assert held(world) == exactly(range(30))
        assert list(dead_letters(world.lake)) == []
    finally:
        away.stop()


def test_a_settings_file_names_the_registry(
    topic: Topic, registry: Registry, client: SchemaRegistryClient, tmp_path: Path
) -> None:
    """As a user follows such a topic."""
    home = tmp_path / "lake"
    make_world(home).close()
    make = avro(client)
    producer = Producer({"bootstrap.servers": topic.bootstrap})
    for number in range(20):
        topic.put(producer, make(number), key=str(number))
    producer.flush()
    (tmp_path / "sales.toml").write_text(tomli_w.dumps(MAPPING))
    document = {
        "kafka": {
            "bootstrap": topic.bootstrap,
            "topics": [topic.name],
            "format": "mapping",
            "mapping": str(tmp_path / "sales.toml"),
            "registry": {"url": registry.address()["SCHEMA_REGISTRY_URL"]},
        }
    }
    config = home / "shredlake.toml"
    config.write_text(config.read_text() + tomli_w.dumps(document))
    done = json.loads(ingest(home).stdout)
    assert (done["events"], done["lag"]) == (20, 0)
    config.write_text(config.read_text().replace('format = "mapping"', 'format = "sealed"'))
    refused = ingest(home)
    assert refused.returncode != 0
    assert "takes no kafka.registry" in refused.stderr


def ingest(home: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-c", "from service.cli import main; main()", "--home", str(home)]
    arguments = ["--output", "json", "ingest", "kafka", "--until-caught-up"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=120)
