#!/usr/bin/env bash
# `AdminClient(...).create_topics(...)` in one expression fails at once, whatever the broker would have said.
#
# Guess: the futures it returns keep alive what they wait for.
# Seen (confluent-kafka 2.16.0): nothing refers to the client once the call returns, so it is destroyed with its requests
#   in flight, and `result()` raises _DESTROY, "Broker handle destroyed for termination". The same call on a client that
#   has a name waits for its request_timeout and says _TIMED_OUT (no broker listens here).
# What to do: keep the client in a variable until the last future is done.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check confluent-kafka==2.16.0
env/bin/python - <<'PY'
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

NOBODY = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0}


def outcome(future) -> str:
    try:
        return str(future.result())
    except KafkaException as error:
        return error.args[0].name()


dropped = outcome(AdminClient(NOBODY).create_topics([NewTopic("t", 1, 1)], request_timeout=2)["t"])
client = AdminClient(NOBODY)
kept = outcome(client.create_topics([NewTopic("t", 1, 1)], request_timeout=2)["t"])
print(f"without a name: {dropped}; with one: {kept}")
assert (dropped, kept) == ("_DESTROY", "_TIMED_OUT")
PY
