"""When the cyclic collector may run."""

from __future__ import annotations

import gc
import weakref

from keys.quiet import COLLECT_SECONDS, no_collections, rare_collections


class Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def knot() -> weakref.ref[Knot]:
    return weakref.ref(Knot())


def make_garbage() -> None:
    for _ in range(5000):
        Knot()


def test_nothing_is_collected_inside_and_everything_is_as_before_behind() -> None:
    assert gc.isenabled()
    with no_collections():
        dead = knot()
        with no_collections():
            make_garbage()
        assert not gc.isenabled()
        assert dead() is not None
    assert gc.isenabled()
    make_garbage()
    assert dead() is None


def test_a_long_loop_collects_every_ten_seconds_when_it_asks() -> None:
    now = [0.0]
    with rare_collections(lambda: now[0]) as collect:
        dead = knot()
        make_garbage()
        collect()
        assert dead() is not None
        now[0] += COLLECT_SECONDS
        collect()
        assert dead() is None
        dead = knot()
        collect()
        assert dead() is not None
        now[0] += COLLECT_SECONDS
        collect()
        assert dead() is None
    assert gc.isenabled()
