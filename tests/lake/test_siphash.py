"""SipHash of many texts is that of each, and that of the paper."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lake import siphash as many
from lake.siphash import siphashes
from tests.lake.siphash import siphash

PAPER_KEY = bytes(range(16))
PAPER = {0: "310e0edd47db6f72", 1: "fd67dc93c539f874", 8: "6224939a79f5f593", 15: "e545be4961ca29a1"}
"""Length of a text of 0, 1, 2, … and its hash: appendix A of the paper, and the vectors of its authors' code."""


def hashed(messages: list[bytes], keys: list[bytes]) -> list[bytes]:
    halves = np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, 2)
    bounds = np.cumsum([0, *map(len, messages)])
    text = np.frombuffer(b"".join(messages), dtype=np.uint8)
    return [int(one).to_bytes(8, "little") for one in siphashes(halves, text, bounds)]


def test_the_hashes_of_the_paper_come_out() -> None:
    for length, expected in PAPER.items():
        message = bytes(range(length))
        assert siphash(message, PAPER_KEY).hex() == expected
        assert hashed([message], [PAPER_KEY])[0].hex() == expected


MESSAGE = st.binary(max_size=40) | st.integers(250, 300).map(lambda size: b"x" * size)


@given(pairs=st.lists(st.tuples(MESSAGE, st.binary(min_size=16, max_size=16)), max_size=12))
def test_many_at_once_are_each_of_them(pairs: list[tuple[bytes, bytes]]) -> None:
    expected = [siphash(message, key) for message, key in pairs]
    assert hashed([message for message, _ in pairs], [key for _, key in pairs]) == expected


def test_more_than_are_hashed_at_a_time() -> None:
    count = many._AT_ONCE + 3
    messages = [str(number).encode() for number in range(count)]
    found = hashed(messages, [PAPER_KEY] * count)
    assert len(set(found)) == count
    for at in (0, 9, 10, many._AT_ONCE - 1, many._AT_ONCE, count - 1):
        assert found[at] == siphash(messages[at], PAPER_KEY)
