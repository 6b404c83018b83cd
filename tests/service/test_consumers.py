"""What is wrong with consumers of topics is known to other processes: to `doctor` and to readiness."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from keys import CustodianUnavailable, ShredlakeError
from keys.errors import DatabaseUnavailable
from lake.consumerbook import SILENT_SECONDS, ConsumerBook, SaysHowItStands
from lake.errors import CatalogUnavailable
from lake.kafkaprogress import Progress, StuckPartition
from lake.standstill import ASK_SECONDS, Standstill
from service.app import create_app
from service.consumers import troubles
from service.doctor import examine
from service.readiness import Readiness, Watch
from service.runtime import Runtime

WELL = Progress(2, 10, 0, 0, 1, 0, 0, None)


def stuck_since(moment: float) -> StuckPartition:
    """A partition that has not gone on since then."""
    return StuckPartition("clicks", 1, 41, "CatalogUnavailable", moment)


def test_a_stuck_partition_of_another_process_is_in_doctor_and_in_readiness(world: Runtime) -> None:
    """Which one, at which offset, for how long, why and what to do; gone from both when it goes on."""
    says = SaysHowItStands(ConsumerBook(world.home / "lake" / "topics.db"), "one")
    says.progress(evolve(WELL, waits_for="CatalogUnavailable", stuck=(stuck_since(time.time() - 30),)))
    with TestClient(create_app(world)) as client:
        (found,) = client.get("/v1/health/ready").json()["consumers"]
        assert (found["state"], found["error"]) == ("stuck", "CatalogUnavailable")
        assert found["partitions"] == ["clicks/1@41"]
        assert found["seconds"] >= 30
        assert "ingest skip --topic clicks --partition 1 --offset" in found["next_step"]
        (finding,) = [one for one in examine(world) if one.check == "consumers of topics"]
        assert finding.level == "error"
        assert "1 of clicks stuck" in finding.text
        assert "Check the catalog's address" in finding.text
        says.progress(WELL)
        assert client.get("/v1/health/ready").json()["consumers"] == []
        assert "consumers of topics" not in {one.check for one in examine(world)}


def test_a_consumer_that_says_nothing_any_more_or_was_ended_is_told_and_one_that_ended_well_is_not(
    tmp_path: Path,
) -> None:
    """A process that hangs or was killed cannot say so itself."""
    now = [1000.0]
    book = ConsumerBook(tmp_path / "topics.db", lambda: now[0])
    for name in ("hangs", "fails", "ends"):
        SaysHowItStands(book, name).progress(WELL)
    SaysHowItStands(book, "fails").ended(CatalogUnavailable("away"))
    SaysHowItStands(book, "ends").ended()
    assert {one.kind for one in troubles(book.all(), now[0] + SILENT_SECONDS)} == {"ended"}
    assert {one.kind for one in troubles(book.all(), now[0] + SILENT_SECONDS + 1)} == {"ended", "silent"}
    now[0] += 3600
    SaysHowItStands(book, "new").progress(WELL)
    book.forget_dead()
    assert [one.seen_at for one in book.all()] == [now[0]]
    book.close()


def test_the_consumers_of_an_earlier_start_are_forgotten_and_those_that_run_are_not(tmp_path: Path) -> None:
    """By their process, so that a start right after a kill leaves no complaint."""
    book = ConsumerBook(tmp_path / "topics.db")
    book.note("mine", WELL)
    killed = os.fork()
    if killed == 0:
        os._exit(0)
    os.waitpid(killed, 0)
    with book._db.write() as db:
        db.execute(
            "INSERT INTO consumers SELECT 'killed', host, ?, seen_at, waits_for, stuck, ended_by"
            " FROM consumers",
            (killed,),
        )
    assert len(book.all()) == 2
    book.forget_dead()
    assert len(book.all()) == 1
    book.close()


def test_a_book_that_cannot_be_written_stops_no_consumer_and_news_is_written_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That it lives is said every few seconds alone: an idle consumer costs no disk."""
    noted: list[Progress] = []

    class Book:
        def note(self, name: str, progress: Progress) -> None:
            noted.append(progress)
            raise DatabaseUnavailable("topics.db is locked")

    now = [0.0]
    book: Any = Book()
    says = SaysHowItStands(book, "one", lambda: now[0])
    for _ in range(12):
        says.progress(WELL)
        now[0] += 0.5
    assert len(noted) == 2
    stuck = (stuck_since(0),)
    says.progress(evolve(WELL, stuck=stuck))
    assert noted[-1].stuck == stuck
    assert "was not written down" in caplog.text


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.1, ASK_SECONDS * 2), st.booleans()), max_size=20))
def test_a_partition_is_stuck_exactly_while_it_stands_and_the_brokers_have_more(
    steps: list[tuple[int, float, bool]],
) -> None:
    """Noticed within five seconds of standing; one that moves, waits on purpose or is empty never is."""
    one, standstill, now, place, stood = ("t", 0), Standstill(), 0.0, 0, 0.0
    standstill.to_ask({one: place}, now, False)
    for moved, seconds, has_more in steps:
        now, place = now + seconds, place + moved
        stood = 0.0 if moved else stood + seconds
        asked = standstill.to_ask({one: place}, now, False)
        if asked:
            assert stood >= ASK_SECONDS
            standstill.told({one: place + has_more}, now)
            assert bool(standstill.stuck({}, None, now)) == has_more
        if moved:
            assert standstill.stuck({}, None, now) == ()
    standstill.to_ask({one: place}, now + 1, False)
    assert standstill.to_ask({one: place}, now + 1 + ASK_SECONDS, False) == [one]
    standstill.told({one: place + 1}, now)
    since = standstill.stuck({}, None, 100.0)[0].since
    assert standstill.stuck({}, None, 200.0)[0].since == since
    standstill.taken([one])
    assert standstill.stuck({}, None, 300.0) == ()


def test_what_could_not_be_begun_and_what_waits_are_stuck_for_their_own_errors() -> None:
    """The offset of a batch that waits is that of the first message which the table lacks."""
    standstill = Standstill()
    standstill.not_begun({("t", 1): "TopicUnavailable"})
    found = standstill.stuck({("t", 0): 7}, "CatalogUnavailable", 50.0)
    assert [(one.number, one.offset, one.error) for one in found] == [
        (0, 7, "CatalogUnavailable"),
        (1, None, "TopicUnavailable"),
    ]
    standstill.not_begun({})
    assert standstill.stuck({}, None, 60.0) == ()


def test_each_change_of_readiness_is_in_the_log_once_also_where_nobody_asks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The sentence and what to do; and that it answers again."""
    caplog.set_level(logging.INFO)
    away: list[ShredlakeError] = [CustodianUnavailable("the custodian cannot be reached")]
    asked: list[int] = []

    def custodian() -> None:
        asked.append(1)
        if away:
            raise away[0]

    watch = Watch(Readiness({"the custodian": custodian}), 0.01)
    watch.start()
    try:
        _until(lambda: len(asked) > 5)
        told = [one.getMessage() for one in caplog.records if one.name == "shredlake.readiness"]
        assert len(told) == 1
        assert "the custodian: the custodian cannot be reached. Bring the custodian back" in told[0]
        away.clear()
        _until(lambda: "the custodian answers again" in caplog.text)
    finally:
        watch.stop()
    assert len([one for one in caplog.records if one.name == "shredlake.readiness"]) == 2


def _until(reached: Any) -> None:
    until = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.01)
