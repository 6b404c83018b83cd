"""UUIDs in their text form (RFC 9562, section 4: lower case, with dashes) and in bytes, many at once."""

from __future__ import annotations

import binascii
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa

Array = np.ndarray[Any, np.dtype[Any]]

BYTES: Final = 16
_LENGTH: Final = 36
_DASHES: Final = [8, 13, 18, 23]
_GROUPS: Final = ((0, 8), (9, 13), (14, 18), (19, 23), (24, 36))  # of digits, in the text
_LOWER_CASE: Final = np.uint8(0x20)  # a bit that digits and small letters have, and capitals have not
_PAIRS: Final = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), dtype=np.uint16)


def parse(text: Array, lengths: Array) -> Array | None:
    """Texts one behind the other as bytes, uint8 (n, 16); None unless every one is a UUID."""
    if len(lengths) == 0 or (lengths != _LENGTH).any():
        return None
    characters = text.reshape(-1, _LENGTH)
    if (characters[:, _DASHES] != ord("-")).any():
        return None
    digits = np.concatenate([characters[:, a:b] for a, b in _GROUPS], axis=1)
    if not (digits & _LOWER_CASE).all():
        return None
    try:
        return np.frombuffer(binascii.unhexlify(digits.data), dtype=np.uint8).reshape(-1, BYTES)
    except binascii.Error:
        return None


def texts(packed: Array) -> pl.Series:
    """UUIDs of uint8 (n, 16) as Strings."""
    digits = _PAIRS[packed].view(np.uint8)
    characters = np.full((len(packed), _LENGTH), ord("-"), dtype=np.uint8)
    at = 0
    for a, b in _GROUPS:
        characters[:, a:b] = digits[:, at : at + b - a]
        at += b - a
    bounds = np.arange(0, characters.size + 1, _LENGTH, dtype=np.int64)
    array = pa.LargeStringArray.from_buffers(len(packed), pa.py_buffer(bounds), pa.py_buffer(characters))
    return pl.Series("uuid", pl.from_arrow(array), dtype=pl.String)
