"""Zstandard frames (RFC 8878) that lie in opened bodies, many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import zstandard

from keys.errors import EnvelopeFault, malformed

MAX_CONTENT_BYTES: Final = 64 * 1024 * 1024
"""A frame that claims more is not opened."""
Body = bytes | zstandard.BufferSegment
"""What was opened; a segment is a view, to be copied or joined like bytes."""
_HEAD: Final = b"\x28\xb5\x2f\xfd\x60"
"""Of a frame in one segment that states its size in two bytes: 256 to 65,791."""
_HEADER_BYTES: Final = len(_HEAD) + 2
_BEGIN_BYTES: Final = _HEADER_BYTES + 3
_LAST: Final = 1
"""Bit of a block's header that no other follows. The next two are its type: raw and compressed blocks, 0 and
2, say how many bytes they take."""
_AT_ONCE: Final = "multi_decompress_to_buffer" in zstandard.backend_features


def contents(frames: Sequence[bytes], decompressor: zstandard.ZstdDecompressor) -> list[Body]:
    """What each frame holds.

    Those that are nothing but one block are decompressed in one call; it does not look at what follows a
    frame, so this is looked at before.

    Raises:
        MalformedEnvelope: see `content`.
    """
    if not _AT_ONCE or not _are_one_block_each(frames):
        return [content(frame, decompressor) for frame in frames]
    try:
        segments = decompressor.multi_decompress_to_buffer(list(frames))
    except zstandard.ZstdError:
        return [content(frame, decompressor) for frame in frames]  # says what is wrong
    return [segments[at] for at in range(len(segments))]


def as_bytes(body: Body) -> bytes:
    """A body of its own."""
    return body if isinstance(body, bytes) else body.tobytes()


def _are_one_block_each(frames: Sequence[bytes]) -> bool:
    """Whether each consists of a usual header and one block, and nothing behind it."""
    sizes = np.fromiter(map(len, frames), dtype=np.int64, count=len(frames))
    if not frames or sizes.min() < _BEGIN_BYTES:
        return False
    begins = b"".join([frame[:_BEGIN_BYTES] for frame in frames])
    heads = np.frombuffer(begins, dtype=np.uint8).reshape(-1, _BEGIN_BYTES)
    blocks = heads[:, _HEADER_BYTES:] @ np.array([1, 1 << 8, 1 << 16])
    return bool(
        (heads[:, : len(_HEAD)] == np.frombuffer(_HEAD, dtype=np.uint8)).all()
        and (blocks & _LAST).all()
        and (blocks >> 1 & 1 == 0).all()
        and (blocks >> 3 == sizes - _BEGIN_BYTES).all()
    )


def content(frame: bytes, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """What one frame holds; the size it states bounds the memory it takes.

    Raises:
        MalformedEnvelope: no frame, without a size or with an impossible one, or something follows it.
    """
    try:
        size = zstandard.frame_content_size(frame)
    except zstandard.ZstdError:
        raise malformed(EnvelopeFault.ZSTD_FRAME, "the opened body is no zstd frame") from None
    if size < 0:
        raise malformed(EnvelopeFault.ZSTD_SIZE_ABSENT, "a compressed body does not state its size")
    if size == 0:  # nobody compresses nothing, and the library would not look at what follows
        raise malformed(EnvelopeFault.ZSTD_SIZE_ZERO, "a compressed body states that it is empty")
    if size > MAX_CONTENT_BYTES:
        most = f"a compressed body may have at most {MAX_CONTENT_BYTES} bytes"
        raise malformed(EnvelopeFault.ZSTD_SIZE_OVER, most)
    try:
        return decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError:
        raise malformed(*_why_not(frame, decompressor)) from None


def _why_not(frame: bytes, decompressor: zstandard.ZstdDecompressor) -> tuple[EnvelopeFault, str]:
    try:
        decompressor.decompress(frame)
    except zstandard.ZstdError:
        return EnvelopeFault.ZSTD_FRAME, "the opened body does not decompress"
    return EnvelopeFault.ZSTD_TRAILING, "something follows the compressed body"
