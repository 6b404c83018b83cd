"""A consumer process that kills itself at one of its durable effects, or just runs.

`python -m tests.lake.kafka_worker HOME BOOTSTRAP TOPIC GROUP [KILL_AT before|after | follow COMMIT_SECONDS]`

One that follows runs until SIGTERM, and prints a line with how much it holds whenever that has changed.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from keys import Effects
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
    rule = CommitRule(seconds=float(rest[1]), idle_seconds=float(rest[1])) if follow else SOON
    with open_runtime(Path(home), effects=Effects(killer)) as runtime:
        subscription = Subscription(bootstrap, (topic,), group, {"session.timeout.ms": "6000"})
        types = runtime.lake.types
        consumer = KafkaIngest(
            subscription, CloudEventMessages(types), runtime.lake.ingestor(), runtime.lake.topics.note, rule
        )
        killer.count = 0
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda received, _: stopped.append(received))
        said = [(-1, -1)]

        def report(now: Progress) -> None:
            if said[-1] != (now.partitions, now.held_bytes):
                said.append((now.partitions, now.held_bytes))
                sys.stdout.write(f"{now.partitions} {now.held_bytes}\n")
                sys.stdout.flush()

        consumer.run(until_caught_up=not follow, should_stop=lambda: bool(stopped), report=report)


if __name__ == "__main__":
    main()
