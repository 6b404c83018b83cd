"""A marketplace out of a seed: orders, payments and rides with two people, late and duplicate events.

usage: python examples/marketplace/generate.py --events 100000 --people 5000 --seed 7 > events.jsonl

One in fifty events comes twice, one in a hundred up to ten days late, one in two hundred is corrected.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

START = datetime(2026, 1, 1, tzinfo=UTC)
CITIES = ("Aarhus", "Brno", "Cork", "Dijon", "Evora", "Faro", "Gdansk", "Haifa")
SECONDS_BETWEEN = 3


def events(count: int, people: int, seed: int) -> Iterator[dict[str, Any]]:
    """`count` CloudEvents; people are chosen with a long tail, as customers are."""
    draw = random.Random(seed)
    made = 0
    while made < count:
        event = _event(draw, made, people)
        yield event
        made += 1
        if made < count and made % 50 == 0:
            yield event
            made += 1
        if made < count and made % 200 == 0:
            yield event | {"revision": 1, "data": event["data"] | {"amount_cents": 1}}
            made += 1


def _event(draw: random.Random, number: int, people: int) -> dict[str, Any]:
    person = int(people * draw.random() ** 2)
    at = START + timedelta(seconds=SECONDS_BETWEEN * number)
    if draw.random() < 0.01:
        at -= timedelta(days=10 * draw.random())
    kind = draw.random()
    amount = int(draw.expovariate(1 / 3000)) + 100
    data: dict[str, Any] = {"amount_cents": amount, "city": draw.choice(CITIES)}
    if kind < 0.5:
        name = "Ordered"
        data |= {"items": draw.randint(1, 9), "address": f"{draw.randint(1, 999)} High Street, flat {person}"}
    elif kind < 0.8:
        name = "Settled"
        data |= {"card": f"**** {draw.randint(1000, 9999)}", "email": f"person{person}@example.org"}
    else:
        name = "RideEnded"
        driver = int(people / 20 * draw.random())
        data |= {
            "metres": draw.randint(500, 30_000),
            "from_address": f"{draw.randint(1, 999)} Low Street",
            "driver": f"driver-{driver}",
            "plate": f"PL {driver:05}",
        }
    return {
        "specversion": "1.0",
        "id": f"e{number}",
        "source": "marketplace",
        "type": name,
        "subject": f"person-{person}",
        "time": at.isoformat(),
        "data": data,
    }


def main() -> None:
    """Writes JSON Lines to stdout."""
    parser = argparse.ArgumentParser(description="Generate marketplace events as JSON Lines.")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--people", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    for event in events(options.events, options.people, options.seed):
        sys.stdout.buffer.write(orjson.dumps(event) + b"\n")


if __name__ == "__main__":
    main()
