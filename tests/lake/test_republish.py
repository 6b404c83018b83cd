"""Parts of the lake back to a topic: between snapshots, in little memory, by a command that ends in mid-run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import tomli_w
from attrs import evolve

from infra.kafka import Kafka
from lake import SnapshotGone
from lake.offsets import source_number
from lake.openedevents import OpenedEvents
from lake.replay import Replay
from lake.republish import PLACE, Republisher, Wanted
from lake.selection import Arrival
from service.runtime import Runtime
from tests.lake.test_kafka import wait_until
from tests.lake.test_sealed_topics import RIDE, outlet, read_all
from tests.lake.topics import Topic, event
from tests.world import compact_all, erase, send, shred


@pytest.fixture
def topic(kafka: Kafka) -> Topic:
    """A topic of its own."""
    return Topic(kafka.address()["KAFKA_BOOTSTRAP"])


def commits(world: Runtime, *spans: range) -> list[int]:
    """A commit for each span; returns the snapshots."""
    found = []
    for span in spans:
        send(world, [event(number) for number in span])
        head = world.lake.events.snapshot()
        assert head is not None
        found.append(head.snapshot_id)
    return found


def sent(topic: Topic) -> list[int]:
    """Numbers of the events that the topic has in clear, sorted."""
    return sorted(json.loads(message.value())["data"]["cents"] for message in read_all(topic))


# -- between snapshots -----------------------------------------------------------------------------


def test_only_what_came_between_two_snapshots_is_sent(topic: Topic, world: Runtime) -> None:
    """After the one, up to and with the other; both stay until the run is complete."""
    first, _, third, _ = commits(world, *(range(at, at + 20) for at in range(0, 80, 20)))
    wanted = Wanted(opened=True, after=first)
    stopped = Republisher(world.lake, outlet(topic)).run(wanted, third, should_stop=lambda: True)
    assert stopped.messages == 0
    named = {ref.snapshot_id for name, ref in world.lake.events.metadata().refs.items() if name != "main"}
    assert named == {first, third}
    done = Republisher(world.lake, outlet(topic)).run(wanted, third)
    assert done.messages == 40
    assert sent(topic) == list(range(20, 60))
    assert set(world.lake.events.metadata().refs) == {"main"}


def test_what_upkeep_has_mixed_is_refused_and_nothing_is_sent(topic: Topic, world: Runtime) -> None:
    """No file tells any more what came after the snapshot; guessing would send what was not asked for."""
    first, _ = commits(world, range(20), range(20, 40))
    compact_all(world)
    with pytest.raises(SnapshotGone, match="from before and after"):
        Republisher(world.lake, outlet(topic)).run(Wanted(opened=True, after=first))
    assert read_all(topic) == []


# -- memory ----------------------------------------------------------------------------------------


def test_what_came_as_some_offsets_is_sent_and_gone_on_with(topic: Topic, world: Runtime) -> None:
    """Of one partition and no other; each once, though somebody was erased before the run went on."""
    first, copy = Topic(topic.bootstrap), Topic(topic.bootstrap)
    first.send(range(400), in_turn=True)
    first.consumer(world).run(until_caught_up=True)
    (source,) = [one for one in world.lake.ingestor().offsets() if one.endswith(":1")]
    wanted = Wanted(opened=True, arrival=Arrival(source_number(source), (10, 60)))
    expected = [4 * offset + 1 for offset in range(10, 60)]
    seen: list[int] = []
    done = Republisher(world.lake, outlet(topic)).run(
        wanted, should_stop=lambda: seen.append(1) or len(seen) > 30
    )
    assert 0 < done.messages < 50
    erase(world, "person-9")
    rest = Republisher(world.lake, outlet(topic)).run(wanted)
    assert rest.withheld >= 2
    found = sent(topic)
    assert len(set(found)) == len(found) == done.messages + rest.messages
    assert {n for n in expected if n // 10 != 9} <= set(found) <= set(expected)
    sealed = Republisher(world.lake, outlet(copy)).run(evolve(wanted, opened=False))
    assert 48 <= sealed.events < 110


def test_what_came_in_some_minutes_is_sent_until_its_day_is_sorted(topic: Topic, world: Runtime) -> None:
    """Then the day is sent as a whole or not at all: nothing is guessed."""
    moments = []
    others = [Topic(topic.bootstrap) for _ in range(3)]
    for span in (range(10), range(10, 20), range(20, 30)):
        commits(world, span)
        moments.append(datetime.now(UTC))
    wanted = Wanted(opened=True, arrival=Arrival(since=moments[0], until=moments[1]))
    assert Republisher(world.lake, outlet(topic)).run(wanted).messages == 10
    assert sent(topic) == list(range(10, 20))
    compact_all(world)
    with pytest.raises(SnapshotGone, match="has sorted") as caught:
        Republisher(world.lake, outlet(others.pop())).run(wanted)
    assert "--from" in caught.value.next_step
    begin = moments[0].replace(hour=0, minute=0, second=0, microsecond=0)
    for until, expected in ((begin + timedelta(days=2), 30), (begin, 0)):
        day = Wanted(opened=True, arrival=Arrival(since=begin - timedelta(days=1), until=until))
        assert Republisher(world.lake, outlet(others.pop())).run(day).messages == expected


def test_a_command_takes_offsets_and_moments(topic: Topic, world: Runtime) -> None:
    """As people write them; what is none of them is said so."""
    first = Topic(topic.bootstrap)
    kafka = {"bootstrap": topic.bootstrap, "topics": [first.name]}
    path = world.home / "shredlake.toml"
    path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | {"kafka": kafka}))
    first.send(range(80), in_turn=True)
    first.consumer(world).run(until_caught_up=True)
    command = [sys.executable, "-c", "from service.cli import main; main()", "--home", str(world.home)]
    command += ["lake", "republish", topic.name, "--opened"]
    offsets = ["--offsets", f"{first.name}/3:5..15", "--since", "2026-01-01T00:00Z"]
    subprocess.run([*command, *offsets], check=True)
    assert sent(topic) == [4 * offset + 3 for offset in range(5, 15)]
    for wrong in (["--offsets", "3:5"], ["--until", "noon"]):
        done = subprocess.run([*command, *wrong], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "written like" in done.stderr


def test_events_come_in_one_order_whatever_fits_into_memory(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person at a time, or all at once: the same events, with the parts of other people in them."""
    world.lake.types.register(RIDE)
    rides = [
        {
            "specversion": "1.0",
            "id": f"r{n}",
            "source": "app",
            "type": "Ride",
            "subject": f"rider-{n % 7}",
            "time": "2026-03-01T12:00:00Z",
            "data": {"city": "Köln", "pickup": f"home {n}", "driver": f"driver-{n % 3}", "fare": n + 0.5},
        }
        for n in range(60)
    ]
    send(world, rides[:30])
    send(world, rides[30:])
    shred(world, "rider-2")
    shred(world, "driver-1")
    largest: list[int] = []
    events = Replay.events

    def counted(*arguments: Any, **named: Any) -> Any:
        found = events(*arguments, **named)
        largest.append(found.stored)
        return found

    monkeypatch.setattr(Replay, "events", counted)

    def read(memory_bytes: int) -> list[dict[str, Any] | None]:
        largest.clear()
        ride = world.lake.types.get("Ride")
        return list(OpenedEvents(world.lake.replay(), ride, world.lake.events.files(), memory_bytes).each())

    small = read(1)
    assert max(largest) <= 20, "one person at the most: a rider has 9 rides, a driver 20"
    assert read(1 << 30) == small
    assert max(largest) == 60
    assert small.count(None) == sum(n % 7 == 2 for n in range(60))
    found = {one["id"]: one["data"] for one in small if one is not None}
    assert len(found) == 60 - small.count(None)
    for name, data in found.items():
        n = int(name[1:])
        assert data["pickup"] == f"home {n}"
        assert data.get("fare") == (None if n % 3 == 1 else n + 0.5), "the driver's part, unless erased"


def test_a_run_goes_on_with_another_amount_of_memory(topic: Topic, world: Runtime) -> None:
    """Places do not depend on it: none is missing, none is there twice."""
    commits(world, range(60), range(60, 120))
    seen: list[int] = []

    def should_stop() -> bool:
        seen.append(1)
        return len(seen) > 50

    Republisher(world.lake, outlet(topic), memory_bytes=1).run(Wanted(opened=True), should_stop=should_stop)
    done = Republisher(world.lake, outlet(topic)).run(Wanted(opened=True))
    assert (done.messages, done.already) == (70, 50)
    assert sent(topic) == list(range(120))


# -- the command -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("options", [(), ("--opened",)], ids=["sealed", "opened"])
def test_a_command_that_ends_in_mid_run_is_gone_on_with(
    topic: Topic, world: Runtime, how: signal.Signals, options: tuple[str, ...]
) -> None:
    """Told to stop it says so and ends well; killed it says nothing. Every message is there once after all."""
    commits(world, *(range(at, at + 100) for at in range(0, 300, 100)))
    command = [sys.executable, "-c", "from service.cli import main; main()", "--home", str(world.home)]
    republish = [*command, "--output", "json", "lake", "republish", topic.name, *options]
    kafka = {"SHREDLAKE_KAFKA__BOOTSTRAP": topic.bootstrap, "SHREDLAKE_KAFKA__TOPICS": f'["{topic.name}"]'}
    known = os.environ | kafka
    total, rate = (300, "20") if options else (30, "4")
    process = subprocess.Popen([*republish, "--rate", rate], stdout=subprocess.PIPE, env=known, text=True)
    wait_until(lambda: process.poll() is not None or len(read_all(topic)) > 3)
    process.send_signal(how)
    said, _ = process.communicate(timeout=60)
    if how is signal.SIGTERM:
        assert process.returncode == 0
        assert json.loads(said)["messages"] == len(read_all(topic))
    assert 3 < len(read_all(topic)) < total
    done = subprocess.run(republish, capture_output=True, env=known, text=True, check=True)
    assert 0 < json.loads(done.stdout)["messages"] < total
    places = [int(dict(message.headers())[PLACE].split()[2]) for message in read_all(topic)]
    assert sorted(places) == list(range(total))
