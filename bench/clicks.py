"""The event of suite `lake`: a click of 300 bytes, half of it about the person."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import Any, Final

DAYS: Final = 28
# fmt: off
_WORDS: Final = (
    "red", "blue", "green", "winter", "summer", "shoes", "shirt", "coat", "hat", "gloves", "lamp", "chair",
    "table", "garden", "kitchen", "bicycle", "tent", "camera", "phone", "charger", "cable", "book", "map",
    "watch", "ring", "candle", "pillow", "blanket", "knife", "kettle", "cup", "bottle", "cheap", "used",
    "wooden", "leather", "cotton", "small", "large", "light", "heavy", "for", "children", "with",
    "without", "near", "best", "gift", "order",
)
# fmt: on
CLICKED: Final[dict[str, Any]] = {
    "name": "Clicked",
    "version": 1,
    "type": "object",
    "properties": {
        "page": {"type": "string", "anonymous": True},
        "milliseconds": {"type": "integer", "anonymous": True},
        "query": {"type": "string"},
        "address": {"type": "string"},
    },
    "required": ["page"],
}


def person_of(number: int, people: int) -> str:
    """Of `people` consecutive numbers each names another person."""
    return f"person-{number * 7919 % people}"


def clicked(number: int, people: int) -> bytes:
    """A CloudEvent; a person's events come by twos, on days of their own.

    What it says is a hash of its number: values that count up would be next to nothing in a plaintext file
    that a yardstick writes, and no real ones do.
    """
    person, round_of = person_of(number, people), number // people
    noise = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=32).digest()
    second = int.from_bytes(noise[16:20], "big") % 86_400
    day = (round_of // 2 * 3 + number % people) % DAYS + 1
    event = {
        "specversion": "1.0",
        "id": str(uuid.UUID(bytes=noise[:16], version=4)),
        "source": "web",
        "type": "Clicked",
        "subject": person,
        "time": f"2026-03-{day:02d}T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}Z",
        "data": {
            "page": f"/shop/{noise[20] * noise[21] % 500}",
            "milliseconds": noise[22] * noise[23] % 4000,
            "query": " ".join(_WORDS[byte % len(_WORDS)] for byte in noise[24:29]),
            "address": f"10.{noise[29]}.{noise[30]}.{noise[31]}",
        },
    }
    return json.dumps(event).encode()
