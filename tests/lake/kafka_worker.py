"""A consumer process that kills itself at one of its durable effects, or just runs.

`python -m tests.lake.kafka_worker HOME BOOTSTRAP TOPIC GROUP [KILL_AT before|after | follow COMMIT_SECONDS]`

One that may kill itself lets the broker delete what is committed, and prints the name of each effect before it.
One that follows runs until SIGTERM, and prints a line with how much it holds whenever that has changed.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from keys import Effects
from keys.effects import When
from lake.backlog import CommitRule
from lake.kafka import KafkaIngest, Progress
from lake.messages import CloudEventMessages
from lake.subscription import Subscription
from service.runtime import open_runtime
from tests.crash.crashing import Killer
from tests.lake.topics import SOON


def main() -> None:
    """Follows the topic until it is caught up, killed, killed by itself, or told to end."""
    home, bootstrap, topic, group, *rest = sys.argv[1:]
    follow = rest[:1] == ["follow"]
    killer = Killer(int(rest[0]) if rest and not follow else None, rest[1] if rest else "")
    rule = SOON
    if follow:
        rule = CommitRule(seconds=float(rest[1]), idle_seconds=float(rest[1]))
    elif rest:  # one commit, so that there are few effects to be killed at
        rule = CommitRule(seconds=30, idle_seconds=0.2)

    def observe(when: When, name: str) -> None:
        if when == "before" and not follow:
            tell(name)
        killer(when, name)

    with open_runtime(Path(home), effects=Effects(observe)) as runtime:
        lake = runtime.lake
        client = {"session.timeout.ms": "6000"}
        subscription = Subscription(bootstrap, (topic,), group, client, delete_committed=not follow)
        consumer = KafkaIngest(
            subscription,
            CloudEventMessages(lake.types),
            lake.ingestor(),
            lake.topics.note,
            rule,
            effects=lake.effects,
        )
        killer.count = 0
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda received, _: stopped.append(received))
        said = [(-1, -1)]

        def report(now: Progress) -> None:
            if follow and said[-1] != (now.partitions, now.held_bytes):
                said.append((now.partitions, now.held_bytes))
                tell(f"{now.partitions} {now.held_bytes}")

        consumer.run(until_caught_up=not follow, should_stop=lambda: bool(stopped), report=report)


def tell(line: str) -> None:
    """A line that is read at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
