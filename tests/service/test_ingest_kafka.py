"""`shredlake ingest kafka`: consumer processes as an operator runs them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from infra.kafka import Kafka
from lake import verify
from service.consumers import troubles
from service.crew import Crew, Rate
from service.doctor import examine_home
from service.runtime import Runtime, open_runtime
from tests.command import command
from tests.keys.test_agent import start_agent
from tests.lake.test_kafka import drop, wait_until
from tests.lake.topics import Topic, event, exactly, held
from tests.service.crewwork import begin_slowly, die
from tests.world import VIEWS


@pytest.fixture
def topic(kafka: Kafka) -> Topic:
    """A fresh topic."""
    return Topic(kafka.address()["KAFKA_BOOTSTRAP"])


@pytest.fixture
def home(topic: Topic, world: Runtime) -> Path:
    """A lake whose settings name it."""
    settings = {
        "projections": {"files": [str(VIEWS)]},
        "kafka": {
            "bootstrap": topic.bootstrap,
            "topics": [topic.name],
            "commit_seconds": 0.3,
            # The shortest that a broker takes: until it is over, partitions of a killed consumer are nobody's.
            "client": {"session.timeout.ms": "6000", "heartbeat.interval.ms": "1000"},
        },
    }
    (world.home / "shredlake.toml").write_text(tomli_w.dumps(settings))
    return world.home


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    program = [sys.executable, "-c", "from service.cli import main; main()", "--home", str(home)]
    return subprocess.Popen(
        [*program, "--output", "json", "ingest", "kafka", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_consumers_share_the_topic_and_end_when_they_have_caught_up(topic: Topic, home: Path) -> None:
    """The sum is what the topic holds."""
    topic.send(range(1000))
    done = shredlake(home, "ingest", "kafka", "--workers", "2", "--until-caught-up")
    assert (done["events"], done["lag"], done["workers"]) == (1000, 0, 2)
    with open_runtime(home) as runtime:
        assert held(runtime) == exactly(range(1000))
        assert verify(runtime.lake, deep=True).problems == ()


def test_sigterm_commits_what_was_read_and_ends(topic: Topic, home: Path) -> None:
    """Exit code 0; nothing is read twice afterwards."""
    topic.send(range(200))
    process = start(home)
    with open_runtime(home) as runtime:
        wait_until(lambda: verify(runtime.lake).events >= 200)
        topic.send(range(200, 250))
        process.send_signal(signal.SIGTERM)
        told, complaints = process.communicate(timeout=60)
        assert process.returncode == 0, complaints
        assert json.loads(told)["events"] == verify(runtime.lake).events
    shredlake(home, "ingest", "kafka", "--until-caught-up")
    with open_runtime(home) as runtime:
        assert held(runtime) == exactly(range(250))


def test_what_stops_a_consumer_is_said_with_the_next_step(topic: Topic, home: Path) -> None:
    """And no traceback, no message of a client library."""
    topic.remove()
    done = command(home, "ingest", "kafka")
    assert done.returncode == 1
    assert "UNKNOWN_TOPIC" in done.stderr
    with open_runtime(home) as runtime:
        assert {kind for kind, _ in told_of_consumers(runtime)} == {"ended"}
    assert "→ Make the topic" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_consumer_process_is_started_again(topic: Topic, home: Path) -> None:
    """The parent says so, the other one goes on meanwhile, and nothing is lost or doubled."""
    topic.send(range(100))
    process = start(home, "--workers", "2")
    with open_runtime(home) as runtime:
        wait_until(lambda: verify(runtime.lake).events == 100)
        subprocess.run(["kill", "-9", str(children(process.pid)[0])], check=True)
        topic.send(range(100, 200))
        wait_until(lambda: verify(runtime.lake).events == 200)
        wait_until(lambda: len(children(process.pid)) == 2)
        process.send_signal(signal.SIGTERM)
        _, complaints = process.communicate(timeout=60)
        assert process.returncode == 0, complaints
        assert "ended with code -9; it starts again in 1 s" in complaints
        assert held(runtime) == exactly(range(200))
        assert verify(runtime.lake, deep=True).problems == ()


def test_consumers_end_with_a_parent_that_was_killed(topic: Topic, home: Path) -> None:
    """SIGKILL while they wait for their keys: nobody reads on unseen, and the next run completes."""
    keys_with_the_agent(home)
    agent = start_agent(home)
    topic.send(range(100))
    process = start(home, "--workers", "2")
    with open_runtime(home) as runtime:
        try:
            wait_until(lambda: verify(runtime.lake).events == 100)
            consumers = children(process.pid)
            assert len(consumers) == 2
            agent.kill()
            topic.send(range(100, 200))
            wait_until(lambda: "the batch waits" in log_of(home))
            wait_until(lambda: told_of_consumers(runtime) == {("stuck", "AgentUnavailable")}, 10)
        finally:
            for one in (agent, process):
                one.kill()
                one.communicate()
        wait_until(lambda: not any(Path(f"/proc/{one}").exists() for one in consumers))
        process = start(home, "--until-caught-up")
        wait_until(lambda: "waits for the key agent" in log_of(home))
        wait_until(lambda: told_of_consumers(runtime) == {("waits", "AgentUnavailable")})
        agent = start_agent(home)
        try:
            told, complaints = process.communicate(timeout=120)
        finally:
            agent.terminate()
            agent.communicate(timeout=20)
        assert json.loads(told)["events"] == 100, complaints
        assert held(runtime) == exactly(range(200))
        assert told_of_consumers(runtime) == set()


def told_of_consumers(runtime: Runtime) -> set[tuple[str, str | None]]:
    """What another process of the lake reads of its consumers: what is wrong, and the error."""
    return {(one.kind, one.error) for one in troubles(runtime.lake.consumers.all(), time.time())}


def test_the_doctor_asks_the_brokers_how_far_the_lake_is(topic: Topic, home: Path) -> None:
    """How much is not read yet, what can be read no more, and which topic is gone; each with what to do."""
    topic.send(range(100), in_turn=True)
    assert doctor_on_kafka(home) == ("ok", "100 messages of the topics are not in the table yet")
    shredlake(home, "ingest", "kafka", "--until-caught-up")
    topic.send(range(100, 180), in_turn=True)
    drop(topic, 26)
    level, text = doctor_on_kafka(home)
    assert (level, text.split(". ")[0]) == ("error", "4 messages were dropped before they were read")
    assert "--accept-gaps" in text
    topic.remove()
    level, text = doctor_on_kafka(home)
    assert level == "error"
    assert f"topic {topic.name}: " in text
    assert "Make the topic" in text


def doctor_on_kafka(home: Path) -> tuple[str, str]:
    """Level and text of its finding."""
    (found,) = [one for one in examine_home(home) if one.check == "Kafka"]
    return found.level, found.text


def keys_with_the_agent(home: Path) -> None:
    """A setting."""
    path = home / "shredlake.toml"
    path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | {"keys": {"agent": True}}))


def log_of(home: Path) -> str:
    """What its processes wrote."""
    return (home / "logs" / "shredlake.log").read_text()


def test_a_process_that_hangs_does_not_outlive_its_parent_either(tmp_path: Path) -> None:
    """It is told first, and made to a few seconds later."""
    to = tmp_path / "pid"
    code = f"from tests.service.crewwork import start_and_die; start_and_die({str(to)!r})"
    subprocess.run([sys.executable, "-c", code], check=False)
    pid = to.read_text()
    assert Path(f"/proc/{pid}").exists()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_process_that_dies_again_and_again_ends_the_crew() -> None:
    """After as many starts as there are pauses."""
    said: list[str] = []
    crew = Crew(lambda number: number, die, said.append, pauses_seconds=(0.1, 0.2))
    crew.start(0)
    while crew.is_alive():
        crew.look(0.05)
    assert len(said) == 2
    assert [str(one) for one in crew.failed] == ["a consumer process ended 3 times, now with code -9"]


def test_a_process_that_is_told_to_end_while_it_starts_has_not_failed() -> None:
    """It had read nothing."""
    crew = Crew(lambda number: number, begin_slowly, lambda text: None)
    crew.start(0)
    crew.stop()
    while crew.is_alive():
        crew.look(0.05)
    assert crew.failed == []


@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, 1000)), min_size=2, max_size=200))
def test_the_rate_is_that_of_the_last_seconds(steps: list[tuple[float, int]]) -> None:
    """What came before them does not count, however much it was."""
    rate = Rate(seconds=10)
    now, count, seen = 0.0, 0, [(0.0, 0)]
    rate.at(now, count)
    for waited, more in steps:
        now, count = now + waited, count + more
        seen.append((now, count))
        last = rate.at(now, count)
    since, before = max((one for one in seen if one[0] <= now - 10), default=seen[0])
    assert last == pytest.approx((count - before) / (now - since))


def children(pid: int) -> list[int]:
    """Consumer processes of a parent, without Python's resource tracker."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in found if "spawn_main" in Path(f"/proc/{one}/cmdline").read_text()]


def test_without_a_cluster_in_the_settings_the_command_says_what_to_add(world: Runtime) -> None:
    """Exit code 1."""
    done = command(world.home, "ingest", "kafka")
    assert done.returncode == 1
    assert "[kafka]" in done.stderr


def shredlake(home: Path, *arguments: str, **environment: str) -> Any:
    """A command that succeeds; what it prints as JSON."""
    with mock.patch.dict(os.environ, environment):
        done = command(home, "--output", "json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_sealed_topic_is_no_open_store_and_an_opened_copy_is_one(topic: Topic, home: Path) -> None:
    """Sent, followed, and sent back: receipts name the copy in clear alone."""
    path = home.parent / "events.jsonl"
    path.write_text("\n".join(json.dumps(event(number)) for number in range(100)))
    assert shredlake(home, "lake", "send", str(path), topic.name)["events"] == 100
    sealed = {"SHREDLAKE_KAFKA__FORMAT": "sealed"}
    assert shredlake(home, "ingest", "kafka", "--until-caught-up", **sealed)["events"] == 100
    copy = Topic(topic.bootstrap)
    plan = shredlake(home, "erase", "plan", "person-1")
    assert plan["open_stores"] == []
    done = shredlake(home, "lake", "republish", copy.name, "--opened")
    assert (done["messages"], done["withheld"]) == (100, 0)
    assert shredlake(home, "lake", "republish", copy.name, "--opened")["already"] == 100
    plan = shredlake(home, "erase", "plan", "person-1")
    assert [one["store"] for one in plan["open_stores"]] == [f"Kafka topic {copy.name}"]


def test_a_producer_whose_keys_stay_with_the_agent_seals_and_opens_nothing(topic: Topic, home: Path) -> None:
    """What it sent is followed like any other; the agent counts what it gave."""
    path = home.parent / "events.jsonl"
    path.write_text("\n".join(json.dumps(event(number)) for number in range(50)))
    agent = start_agent(home)
    try:
        assert shredlake(home, "lake", "send", str(path), topic.name, "--agent")["events"] == 50
    finally:
        agent.terminate()
        counts, _ = agent.communicate(timeout=20)
    assert "ingest: provision items" in counts
    assert "opening" not in counts
    sealed = {"SHREDLAKE_KAFKA__FORMAT": "sealed"}
    assert shredlake(home, "ingest", "kafka", "--until-caught-up", **sealed)["events"] == 50
    with open_runtime(home) as runtime:
        assert held(runtime) == exactly(range(50))


def test_a_consumer_s_keys_stay_with_the_agent_that_is_killed_under_load(topic: Topic, home: Path) -> None:
    """However long it is away: nothing lost, nothing doubled; the consumer has no key file open."""
    keys_with_the_agent(home)
    agent = start_agent(home)
    topic.send(range(400))
    process = start(home)
    try:
        with open_runtime(home) as runtime:
            wait_until(lambda: verify(runtime.lake).events == 400)
            (consumer,) = children(process.pid)
            assert open_files(consumer, home / "lake")
            assert open_files(consumer, home / "keys") + open_files(consumer, home / "evidence") == []
            for number in range(2):
                agent.kill()
                agent.communicate()
                topic.send(range(400 + 300 * number, 700 + 300 * number))
                if number:
                    wait_until(lambda: log_of(home).count("the batch waits") >= 2, 90)
                agent = start_agent(home)
            wait_until(lambda: verify(runtime.lake).events == 1000)
            assert children(process.pid) == [consumer]
            process.send_signal(signal.SIGTERM)
            _, complaints = process.communicate(timeout=60)
            assert process.returncode == 0, complaints
            assert held(runtime) == exactly(range(1000))
            assert verify(runtime.lake, deep=True).problems == ()
    finally:
        process.kill()
        agent.terminate()
        counts, _ = agent.communicate(timeout=20)
    assert "ingest: sealing items" in counts
    assert "opening" not in counts


def open_files(pid: int, folder: Path) -> list[str]:
    """What a process has open below a folder."""
    found = []
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(one.readlink()))
    return [path for path in found if path.startswith(str(folder))]


def test_a_setting_that_the_client_refuses_ends_the_command_at_once(topic: Topic, home: Path) -> None:
    """With its sentence and the next step; no process is started again for it."""
    config = tomllib.loads((home / "shredlake.toml").read_text())
    config["kafka"]["client"] = {"nonsense": "1"}
    (home / "shredlake.toml").write_text(tomli_w.dumps(config))
    complaints = command(home, "ingest", "kafka").stderr
    assert 'No such configuration property: "nonsense"' in complaints
    assert "→ Correct `kafka.client`" in complaints
    assert "starts again" not in complaints
    assert "Traceback" not in complaints
