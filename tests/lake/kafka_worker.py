"""A consumer process that kills itself at one of its durable effects, or just runs.

`python -m tests.lake.kafka_worker HOME BOOTSTRAP TOPIC GROUP [KILL_AT before|after]`
"""

from __future__ import annotations

import sys
from pathlib import Path

from keys import Effects
from lake.kafka import KafkaIngest
from lake.messages import CloudEventMessages
from lake.subscription import Subscription
from service.runtime import open_runtime
from tests.crash.crashing import Killer
from tests.lake.topics import SOON


def main() -> None:
    """Follows the topic until it is caught up, killed, or killed by itself."""
    home, bootstrap, topic, group, *rest = sys.argv[1:]
    killer = Killer(int(rest[0]) if rest else None, rest[1] if rest else "")
    with open_runtime(Path(home), effects=Effects(killer)) as runtime:
        subscription = Subscription(bootstrap, (topic,), group)
        types = runtime.lake.types
        consumer = KafkaIngest(
            subscription, CloudEventMessages(types), runtime.lake.ingestor(), runtime.lake.topics.note, SOON
        )
        killer.count = 0
        consumer.run(until_caught_up=True)


if __name__ == "__main__":
    main()
