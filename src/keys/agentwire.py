"""How the key agent and its workers talk: frames of MessagePack on a Unix socket.

A frame is its length as u32, big endian, and one MessagePack map. A request names an operation; the
answer holds `ok` or `error`. Fixed-size values of a batch travel as one byte string.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

import msgpack

from keys import errors
from keys.errors import AgentUnavailable, EnvelopeError, EnvelopeFault, KeysError
from keys.subjects import Shredded

MAX_FRAME_BYTES: Final = 512 * 1024 * 1024
_LENGTH: Final = struct.Struct(">I")
_KNOWN: Final = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Writes one frame."""
    body = msgpack.packb(message)
    connection.sendall(_LENGTH.pack(len(body)) + body)


def receive(connection: socket.socket, limit_bytes: int = MAX_FRAME_BYTES) -> dict[str, Any] | None:
    """Reads one frame of at most so many bytes; None where the other side has hung up between two.

    Raises:
        AgentUnavailable: it hung up inside one, or sent something else.
    """
    head = _exactly(connection, _LENGTH.size)
    if not head:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > limit_bytes:
        raise AgentUnavailable("a frame is longer than any of ours")
    try:
        message = msgpack.unpackb(_exactly(connection, length), strict_map_key=True)
    except (ValueError, msgpack.UnpackException):
        raise AgentUnavailable("a frame is not one of ours") from None
    if not isinstance(message, dict):
        raise AgentUnavailable("a frame is not one of ours")
    return message


def error_message(error: KeysError) -> dict[str, Any]:
    """An error for the wire: our own errors hold no identifier."""
    about = {"type": type(error).__name__, "message": error.message, "next_step": error.next_step}
    if isinstance(error, EnvelopeError):
        about["fault"] = error.fault.value
    return {"error": about}


def error_of(message: dict[str, Any]) -> KeysError:
    """The error that `error_message` wrote; a `KeysError` where another version of the agent wrote it."""
    kind = _KNOWN.get(str(message.get("type")), KeysError)
    text, next_step = str(message.get("message")), str(message.get("next_step"))
    fault = str(message.get("fault"))
    if issubclass(kind, EnvelopeError) and fault in set(EnvelopeFault):
        return kind(text, fault=EnvelopeFault(fault), next_step=next_step)
    if not issubclass(kind, KeysError) or issubclass(kind, EnvelopeError):
        kind = KeysError
    return kind(text, next_step=next_step)


def split(body: bytes, size: int) -> list[bytes]:
    """Fixed-size values out of one byte string."""
    return [body[at : at + size] for at in range(0, len(body), size)]


def shredded_message(found: Sequence[object]) -> dict[str, Any]:
    """Where a batch holds `Shredded`, and which erasure it was."""
    return {str(n): [one.receipt_id, one.epoch] for n, one in enumerate(found) if isinstance(one, Shredded)}


def _exactly(connection: socket.socket, count: int) -> bytes:
    """`count` bytes; nothing where the other side hung up before the first."""
    parts = bytearray()
    while len(parts) < count:
        got = connection.recv(min(count - len(parts), 1 << 20))
        if not got:
            if parts:
                raise AgentUnavailable("the key agent hung up in the middle of an answer")
            return b""
        parts += got
    return bytes(parts)
