"""Building views in pieces that fit into memory: the same answers, and no reading of everything at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lake import Events, Replay
from projections import Views, open_views
from service.runtime import Runtime
from tests.world import paid, publish, send, shred

NAMES = ("cents_per_day", "people_per_day", "balance", "bands")


@pytest.fixture
def cramped(world: Runtime, tmp_path: Path) -> Iterator[Views]:
    """Views of the same lake whose builds have room for a few people's events."""
    views = open_views(world.lake, tmp_path / "cramped", world.views.registry, bits=2, memory_bytes=60_000)
    yield views
    views.close()


def _sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Events of every read of a replay from now on."""
    sizes: list[int] = []
    original: Callable[..., Events] = Replay.events

    def noted(self: Replay, *args: Any, **kwargs: Any) -> Events:
        found = original(self, *args, **kwargs)
        sizes.append(found.stored)
        return found

    monkeypatch.setattr(Replay, "events", noted)
    return sizes


def _commit(world: Runtime, number: int) -> None:
    events = [paid(f"p{n % 100}", n, event_id=f"{number}-{n % 450}", note="x" * 30) for n in range(500)]
    send(world, events, key=f"{number}")


def test_a_build_in_pieces_is_the_build_at_once(
    world: Runtime, cramped: Views, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First derived, then caught up, with a dead person among them: folds and aggregates alike."""
    _commit(world, 1)
    shred(world, "p7")
    sizes = _sizes(monkeypatch)
    for round_of in range(2):
        publish(world)
        sizes.clear()
        built = cramped.builder.build(NAMES)
        assert len(sizes) > 8, "a bucket comes in several pieces, or a few buckets at a time"
        assert max(sizes) < 250, "never all of the five hundred that are new"
        assert (sum(one.merged for one in built) > 0) == (round_of > 0)
        cramped.publish(built, who="test", why="test")
        for name in ("cents_per_day", "people_per_day", "bands"):
            assert cramped.as_reported(name).rows.equals(world.views.as_reported(name).rows), name
        _commit(world, 2)
