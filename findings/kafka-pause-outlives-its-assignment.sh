#!/usr/bin/env bash
# A Kafka consumer that paused a partition never reads it again after it lost the partition and got it back.
#
# Guess: a pause belongs to an assignment. What is assigned anew is read.
# Seen (confluent-kafka 2.16.1, librdkafka 2.16.0, its own mock cluster): consumer A pauses all four partitions; B
#   joins and takes two; A resumes what it has; B leaves and its two come back to A, which reads the two that
#   it resumed and never the two that came back. No error is raised, and `assignment()` lists all four.
# What to do: resume what `on_assign` is given, unless there is a reason to wait.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q --disable-pip-version-check confluent-kafka==2.16.1
env/bin/python - <<'PY'
import time
from confluent_kafka import Consumer, Producer

producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock:1"})
servers = ",".join(f"{b.host}:{b.port}" for b in producer.list_topics(timeout=10).brokers.values())

def consumer():
    made = Consumer({
        "bootstrap.servers": servers, "group.id": "g", "auto.offset.reset": "earliest", "enable.auto.commit": False,
        "partition.assignment.strategy": "cooperative-sticky", "session.timeout.ms": 6000,
        "heartbeat.interval.ms": 300,
    })
    made.subscribe(["t"])
    return made

def poll_until(done, *consumers, seconds=60):
    read, end = set(), time.time() + seconds
    while time.time() < end and not done(read):
        for one in consumers:
            message = one.poll(0.1)
            if message is not None and message.error() is None:
                read.add((message.partition(), message.value()))
    return read

def send(text):
    for partition in range(4):
        producer.produce("t", text, partition=partition)
    producer.flush(10)

send(b"old")
a = consumer()
poll_until(lambda read: len(read) == 4, a)
a.pause(a.assignment())
b = consumer()
poll_until(lambda _: len(a.assignment()) == 2 and len(b.assignment()) == 2, a, b)
stayed = {p.partition for p in a.assignment()}
a.resume(a.assignment())
b.close()
poll_until(lambda _: len(a.assignment()) == 4, a)
send(b"new")
read = {p for p, text in poll_until(lambda _: False, a, seconds=15) if text == b"new"}
print("assigned:", sorted(p.partition for p in a.assignment()), "stayed:", sorted(stayed), "read:", sorted(read))
assert len(a.assignment()) == 4 and read == stayed
a.close()
PY
