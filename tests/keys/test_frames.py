"""Zstandard frames of opened bodies: many at once are what each is alone."""

from __future__ import annotations

from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from keys import EnvelopeFault, MalformedEnvelope, frames
from keys.frames import as_bytes, content, contents

DECOMPRESSOR = zstandard.ZstdDecompressor()
SMALL, LARGE, RAW = b"hello world " * 60, bytes(range(256)) * 1200, bytes(range(256)) * 3
bodies = st.sampled_from([SMALL, LARGE, RAW, b"a" * 300, b"b" * 255]) | st.binary(min_size=1, max_size=600)


def framed(body: bytes, level: int = -1, **more: Any) -> bytes:
    """A frame as a writer makes it."""
    return zstandard.ZstdCompressor(level=level, **more).compress(body)


def outcome(work: Any) -> Any:
    """What it gives, or the fault it is refused for."""
    try:
        return [as_bytes(one) for one in work()]
    except MalformedEnvelope as refused:
        return refused.fault


@given(st.lists(st.tuples(bodies, st.sampled_from([-1, 3])), max_size=6))
def test_frames_come_back_as_what_was_put_into_them(items: list[tuple[bytes, int]]) -> None:
    found = contents([framed(body, level) for body, level in items], DECOMPRESSOR)
    assert [as_bytes(one) for one in found] == [body for body, _ in items]


@given(st.lists(bodies, min_size=1, max_size=4), st.data())
def test_whatever_is_changed_in_a_frame_many_are_refused_as_one_alone(
    items: list[bytes], data: st.DataObject
) -> None:
    made = [bytearray(framed(body)) for body in items]
    for frame in made:
        for at, value in data.draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 255)), max_size=2)):
            frame[min(at, len(frame) - 1)] = value
        frame[:] = data.draw(st.sampled_from([frame, frame[:-1], frame + b"\0", frame + frame, frame[:5]]))
    changed = [bytes(frame) for frame in made]
    alone = outcome(lambda: [content(frame, DECOMPRESSOR) for frame in changed])
    assert outcome(lambda: contents(changed, DECOMPRESSOR)) == alone


def test_what_follows_one_frame_among_many_is_noticed() -> None:
    """The call that takes many does not look at it."""
    usual = [framed(SMALL)] * 3
    for rest in (b"\0", framed(SMALL), b"\x50\x2a\x4d\x18\0\0\0\0"):
        with pytest.raises(MalformedEnvelope) as refused:
            contents([*usual, framed(SMALL) + rest], DECOMPRESSOR)
        assert refused.value.fault is EnvelopeFault.ZSTD_TRAILING


def test_a_frame_that_does_not_decompress_among_many_says_what_it_says_alone() -> None:
    """Its head is as usual; what lies in its block is not."""
    usual = framed(SMALL)
    broken = [usual[:at] + bytes([usual[at] ^ 0xFF]) + usual[at + 1 :] for at in range(10, len(usual))]
    refused = [one for one in broken if outcome(lambda one=one: [content(one, DECOMPRESSOR)]) != [SMALL]]
    found = [outcome(lambda one=one: contents([usual, one], DECOMPRESSOR)) for one in refused]
    assert EnvelopeFault.ZSTD_FRAME in found
    for one, told in zip(refused, found, strict=True):
        assert told == outcome(lambda one=one: [content(frame, DECOMPRESSOR) for frame in (usual, one)])


def test_usual_frames_are_taken_together_and_others_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    alone: list[bytes] = []
    monkeypatch.setattr(frames, "content", lambda frame, by: alone.append(frame) or content(frame, by))
    contents([framed(SMALL), framed(RAW), framed(SMALL, 3)], DECOMPRESSOR)
    assert alone == []
    for odd in (framed(LARGE), framed(b"b" * 255), framed(SMALL, write_checksum=True)):
        alone.clear()
        contents([framed(SMALL), odd], DECOMPRESSOR)
        assert alone == [framed(SMALL), odd]
