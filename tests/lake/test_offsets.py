"""Whether a batch may land: a pure decision."""

from __future__ import annotations

import zlib

import pytest

from lake.blocks import L1_SOURCE
from lake.errors import EpochMoved, Fenced
from lake.offsets import AlreadyLanded, Range, ingest_summary, offsets_of, ranges_of, source_number


def span(start: int, end: int, source: str = "file:a") -> Range:
    """A range whose lines are all events."""
    return Range(source, start, end, end - start, 0, 0, 0)


def landed(*spans: Range) -> list[dict[str, str]]:
    """A history, newest first."""
    history: list[dict[str, str]] = []
    for one in spans:
        history.insert(0, ingest_summary(history, [one], sealed_epoch=0, epoch=0))
    return history


def test_ranges_land_one_after_the_other() -> None:
    """Each batch starts where the last one ended."""
    history = landed(span(0, 10), span(10, 15))
    assert offsets_of(history[0]) == {"file:a": 15}
    assert ranges_of(history[0])[0].start == 10


def test_a_zombie_that_starts_behind_is_fenced() -> None:
    """A batch of lines that another writer took does not land."""
    with pytest.raises(Fenced):
        ingest_summary(landed(span(0, 10)), [span(5, 12)], sealed_epoch=0, epoch=0)


def test_a_gap_is_fenced() -> None:
    """A batch that would skip lines does not land."""
    with pytest.raises(Fenced):
        ingest_summary(landed(span(0, 10)), [span(11, 12)], sealed_epoch=0, epoch=0)


def test_the_same_batch_is_known_again_behind_other_commits() -> None:
    """A repeated batch is done, however many commits came since."""
    history = landed(span(0, 10), span(0, 4, "file:b"), span(10, 12))
    with pytest.raises(AlreadyLanded):
        ingest_summary(history, [span(0, 10)], sealed_epoch=0, epoch=0)


def test_a_batch_sealed_before_an_erasure_is_sealed_again() -> None:
    """Whoever was erased meanwhile must not slip in."""
    with pytest.raises(EpochMoved):
        ingest_summary([], [span(0, 3)], sealed_epoch=4, epoch=5)


def test_other_sources_keep_their_place() -> None:
    """Offsets of untouched sources are carried on from the newest head."""
    history = landed(span(0, 10), span(0, 4, "file:b"))
    assert offsets_of(history[0]) == {"file:a": 10, "file:b": 4}


def test_no_source_has_the_number_of_what_was_sealed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks with that number are taken as settled."""
    monkeypatch.setattr(zlib, "crc32", lambda name: 0x80000000)
    assert source_number("file:0") != L1_SOURCE
