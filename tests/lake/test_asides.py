"""An operator gets past whatever stops ingest, and sees that it is stopped."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from keys import SubjectId
from lake import JsonLinesFile, dead_letters, verify
from lake import intake as intake_module
from lake.asides import AsideBook
from lake.carefulmessages import CarefulMessages
from lake.messages import CloudEventMessages, Message, Messages
from lake.topicbook import FeedingTopic
from service.cli.main import app
from service.doctor import intake_finding
from service.models import QueueView
from service.runtime import Runtime, open_runtime
from tests.world import make_world, paid

LINES = [json.dumps(paid(f"p{at}", at, event_id=f"{at}")).encode() for at in range(5)]


def skip(home: Path, *words: str) -> int:
    """Runs the command; its exit code."""
    return CliRunner().invoke(app, ["--home", str(home), "ingest", "skip", *words]).exit_code


def test_a_batch_that_cannot_be_committed_is_seen_at_once_and_can_be_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first failed commit shows in doctor and readiness; one command, and the intake comes loose."""
    home = tmp_path / "lake"
    world = make_world(home)
    body = b"[" + b",".join(LINES) + b"]"
    stuck, _ = world.lake.intake.put(body, 5)
    sound = intake_module.parse_cloud_events

    def breaks(lines: Any, types: Any, start: int, end: int, aside: Any) -> Any:
        if not set(range(start, end)) <= set(aside):
            raise MemoryError("somebody's value")
        return sound(lines, types, start, end, aside)

    monkeypatch.setattr(intake_module, "parse_cloud_events", breaks)
    with pytest.raises(MemoryError):
        world.lake.intake.drain()
    trouble = world.lake.intake.asides.trouble()
    assert trouble is not None
    assert (trouble.error, trouble.attempts) == ("MemoryError", 1)
    found = intake_finding(world.lake.intake.queue(), time.time(), trouble)
    assert found.level == "error"
    assert "shredlake ingest skip" in found.text
    view = QueueView.of(world.lake.intake.queue(), time.time(), trouble)
    assert (view.failing, view.failed_commits) == ("MemoryError", 1)
    world.close()
    assert skip(home, "--batch", stuck.batch_id, "--because", "too large") == 0
    with open_runtime(home) as again:
        again.lake.intake.drain()
        assert again.lake.intake.queue().batches == 0
        assert again.lake.intake.asides.trouble() is None
        letters = dead_letters(again.lake)
        assert {(one.reason, one.raw) for one in letters} == {("set_aside", line) for line in LINES}
        assert verify(again.lake).problems == ()


@pytest.mark.parametrize("drop", [False, True])
def test_a_line_that_is_set_aside_is_a_letter_and_all_others_go_in(tmp_path: Path, drop: bool) -> None:
    """With its bytes, or without where it is dropped; either way it is accounted for."""
    home = tmp_path / "lake"
    make_world(home).close()
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(LINES))
    assert skip(home, "--file", str(path), "--line", "2", *(["--drop", "--yes"] if drop else [])) == 0
    with open_runtime(home) as world:
        done = world.lake.ingestor().run(JsonLinesFile(path, world.lake.types))
        assert (done.events, done.dead) == (4, 1)
        (letter,) = dead_letters(world.lake)
        assert (letter.reason, letter.raw) == (("dropped", b"") if drop else ("set_aside", LINES[1]))
        assert (world.keyring.ref_of(SubjectId("p1")) is None) == drop


def test_a_message_that_is_set_aside_is_a_letter(world: Runtime, tmp_path: Path) -> None:
    """By its topic, partition and offset."""
    book = AsideBook(tmp_path / "topics.db")
    topic = FeedingTopic("c", "t", "orders", None, 0, False, "2026-01-01T00:00:00Z")
    book.set_message(topic, 3, 7)
    careful = CarefulMessages(CloudEventMessages(world.lake.types), book.of)
    messages = Messages.of(Message(at, LINES[at - 6]) for at in (6, 7, 8))
    assert [one.line for one in careful.parse("kafka:c:t:3", 6, 9, messages).rejected] == [7]
    assert careful.parse("kafka:c:t:4", 6, 9, messages).rejected == ()
    book.close()


@pytest.mark.parametrize("words", [[], ["--line", "3"], ["--batch", "a", "--topic", "t", "--offset", "1"]])
def test_a_place_is_named_whole_and_alone(tmp_path: Path, words: list[str]) -> None:
    """Nothing is guessed."""
    make_world(tmp_path / "lake").close()
    assert skip(tmp_path / "lake", *words) != 0
