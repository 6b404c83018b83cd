"""Messages in Confluent's wire format: the id of a schema in a registry, and a body in it.

The id is in the header `__value_schema_id`, as newer serializers write it, or ahead of the body; what the
header says goes before, as in the client's own deserializers. It is a number or a GUID.

The registry client's own deserializers read Avro, Protobuf and JSON Schema; what they find goes on as JSON
to the format behind (CloudEvents with `ce_` headers, or a mapping). Written as JSON: times as RFC 3339,
decimals as text, bytes as base64, enumerations by name.

Format: Confluent's "Wire format" (schema id in the message's prefix or headers). Encryption rules of a
registry are not applied.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import httpx2
import orjson
from attrs import evolve
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, dual_schema_id_deserializer
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.schema_registry.error import OAuthTokenError, SchemaRegistryError
from confluent_kafka.schema_registry.json_schema import JSONDeserializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer
from confluent_kafka.schema_registry.serde import SchemaId
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf import json_format
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message as ProtobufMessage
from google.protobuf.message_factory import GetMessageClass

from lake.binarymode import event_of
from lake.errors import RegistryRefused, RegistryUnavailable
from lake.messages import Message, MessageFormat, Messages, attributes_of
from lake.parsed import Parsed, Rejected
from lake.validate import Flaw, subject_flaw

_HEADER: Final = "__value_schema_id"
_NUMBER_BYTES: Final = 5
_GUID_BYTES: Final = 17
_ASK_SECONDS: Final = 10
_REFUSED: Final = (401, 403)
_NOT_FOUND: Final = 404
_RETRIES: Final = 1  # whoever reads the topic waits and tries again
_SUBJECTS: Final = {"subject.name.strategy": lambda *_: None}  # a value names its schema by number alone
_Decode = Callable[[bytes, SerializationContext], Any]
_Key = int | UUID
"""What a schema is asked for by."""


class SchemaRegistry:
    """Turns values in wire format into JSON.

    Args:
        url: of the registry, with the path of its interface.
        client: further settings of the registry client: basic.auth.user.info, ssl.ca.location …
    """

    def __init__(self, url: str, client: Mapping[str, str] | None = None) -> None:
        settings = {"url": url, "timeout": _ASK_SECONDS, "max.retries": _RETRIES, **(client or {})}
        self._client = SchemaRegistryClient(settings)
        self._decoders: dict[_Key, _Decode] = {}

    def as_json(self, messages: Iterable[Message]) -> list[bytes | Flaw]:
        """Each value as JSON, or why it cannot be read.

        Raises:
            RegistryUnavailable: it does not answer; a retry helps.
            RegistryRefused: it does not let us in.
        """
        unknown: set[_Key] = set()  # of this call: somebody may register it later
        return [self._one(one, unknown) for one in messages]

    def _one(self, message: Message, unknown: set[_Key]) -> bytes | Flaw:
        value = message.value or b""
        named = _named(message)
        number = _key_of(value if named is None else named)
        if number is None:
            return Flaw("not_in_wire_format")
        if number in unknown:
            return Flaw("unknown_schema")
        context = SerializationContext("", MessageField.VALUE, None if named is None else {_HEADER: named})
        try:
            decode = self._decoders.get(number) or self._decoders.setdefault(number, self._decoder(number))
            found = decode(value, context)
        except SchemaRegistryError as error:
            if error.http_status_code == _NOT_FOUND:
                unknown.add(number)
                return Flaw("unknown_schema")
            if error.http_status_code in _REFUSED:
                raise RegistryRefused("the schema registry does not let us in") from None
            raise RegistryUnavailable(f"the schema registry answers {error.http_status_code}") from None
        except (httpx2.HTTPError, OAuthTokenError) as error:
            raise RegistryUnavailable(f"the schema registry: {type(error).__name__}") from None
        except RegistryRefused:
            raise
        except Exception:  # whatever a decoder makes of broken bytes
            return Flaw("undecodable")
        try:
            written = orjson.dumps(found, default=_as_json)
            # NaN and infinity are written as null
            if b"null" in written and (place := _not_finite(found)) is not None:
                return Flaw("not_finite", place or None)
            return written
        except (TypeError, RecursionError):
            return Flaw("undecodable")

    def _decoder(self, key: _Key) -> _Decode:
        kind = _schema(self._client, key).schema_type
        found: _Decode = (
            _Protobuf(self._client)
            if kind == "PROTOBUF"
            else JSONDeserializer(None, None, self._client, _SUBJECTS)
            if kind == "JSON"
            else AvroDeserializer(self._client, conf=_SUBJECTS)
        )
        return found


def _named(message: Message) -> bytes | None:
    return next((raw for name, raw in message.headers or () if name == _HEADER), None)


def _key_of(place: bytes) -> _Key | None:
    """What a schema id begins with: 0 and four bytes of a number, or 1 and sixteen of a GUID."""
    if len(place) >= _NUMBER_BYTES and place[0] == 0:
        return int.from_bytes(place[1:_NUMBER_BYTES], "big")
    if len(place) >= _GUID_BYTES and place[0] == 1:
        return UUID(bytes=bytes(place[1:_GUID_BYTES]))
    return None


def _schema(client: SchemaRegistryClient, key: _Key, fmt: str | None = None) -> Schema:
    if isinstance(key, int):
        return client.get_schema(key, fmt=fmt)
    return client.get_schema_by_guid(str(key), fmt=fmt)


class FramedMessages:
    """The format of a topic whose values are in wire format.

    Args:
        registry: reads the values.
        inner: takes them as JSON.
    """

    def __init__(self, registry: SchemaRegistry, inner: MessageFormat) -> None:
        self._registry = registry
        self._inner = inner

    def parse(self, source: str, start: int, end: int, messages: Messages) -> Parsed:
        """See `MessageFormat.parse`. Letters hold the value as it was, or a CloudEvent with its attributes.

        Raises:
            RegistryUnavailable, RegistryRefused: see `SchemaRegistry.as_json`.
        """
        framed = [one for one in messages if one.value or (one.value is not None and _named(one) is not None)]
        found = self._registry.as_json(framed)
        json = {one.offset: text for one, text in zip(framed, found, strict=True)}
        unread = [_letter(one, flaw) for one in framed if isinstance(flaw := json[one.offset], Flaw)]
        bare = {one.offset: one.value or b"" for one in framed if not attributes_of(one)}
        read = Messages.of(
            one._replace(value=text)
            for one in messages
            if not isinstance(text := json.get(one.offset, one.value), Flaw)
        )
        parsed = self._inner.parse(source, start, end, read)
        rejected = [*unread, *(evolve(one, raw=bare.get(one.line, one.raw)) for one in parsed.rejected)]
        return evolve(
            parsed,
            rejected=tuple(sorted(rejected, key=lambda one: one.line)),
            blank=parsed.blank - len(unread),
        )


def _letter(message: Message, flaw: Flaw) -> Rejected:
    """Attributes in headers say whose it is; they are kept beside the bytes, as CloudEvents writes them."""
    value, attributes = message.value or b"", attributes_of(message)
    if not attributes:
        return Rejected(message.offset, flaw, value)
    whole = event_of(attributes, value, opaque=True)
    subject = orjson.loads(whole).get("subject")
    usable = subject if subject_flaw(subject) is None else None
    return Rejected(message.offset, flaw, whole, usable)


class _Protobuf:
    """Reads messages of any type: the client's own deserializer wants the type's generated class."""

    def __init__(self, client: SchemaRegistryClient) -> None:
        self._client = client
        self._types = ProtobufDeserializer(Empty, {}, client)
        self._classes: dict[tuple[_Key, tuple[int, ...]], type[ProtobufMessage]] = {}

    def __call__(self, value: bytes, context: SerializationContext) -> dict[str, Any]:
        place = SchemaId("PROTOBUF")
        body = dual_schema_id_deserializer(value, context, place).read()
        at = (place.id if place.guid is None else place.guid) or 0, tuple(place.message_indexes or ())
        message = (self._classes.get(at) or self._classes.setdefault(at, self._class(*at)))()
        message.ParseFromString(body)
        return _fields_of(message)

    def _class(self, key: _Key, at: tuple[int, ...]) -> type[ProtobufMessage]:
        schema = _schema(self._client, key, "serialized")
        try:
            base64.b64decode(schema.schema_str or "", validate=True)
        except ValueError:
            raise RegistryRefused(
                "the schema registry gives a Protobuf schema as text, not as a descriptor",
                next_step="Let the registry answer `format=serialized`, or register the schemas by their"
                " descriptors, as the Python client does.",
            ) from None
        file, pool = self._types._get_parsed_schema(schema)
        return GetMessageClass(self._types._get_message_desc(pool, pool.FindFileByName(file.name), list(at)))


def _fields_of(message: ProtobufMessage) -> dict[str, Any]:
    """Every field by its name in the schema; those without a value that have no presence by their default."""
    return {
        field.name: _value_of(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _value_of(field: Any, value: Any) -> Any:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        inner = kind.fields_by_name["value"]
        return {str(key): _single(inner, value[key]) for key in value}
    if field.is_repeated:
        return [_single(field, one) for one in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        known = field.message_type.full_name.startswith("google.protobuf.")
        return json_format.MessageToDict(value) if known else _fields_of(value)
    if field.enum_type is not None:
        name = field.enum_type.values_by_number.get(value)
        return value if name is None else name.name
    return value


def _not_finite(found: Any) -> str | None:
    """The field, as a path, that holds NaN or infinity; None where there is no such."""
    if isinstance(found, float):
        return None if math.isfinite(found) else ""
    inner: Any = found.items() if isinstance(found, Mapping) else ()
    if isinstance(found, list | tuple):
        inner = enumerate(found)
    for name, value in inner:
        place = _not_finite(value)
        if place is not None:
            return str(name)
    return None


def _as_json(value: object) -> str:
    """What JSON has no form of."""
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError
