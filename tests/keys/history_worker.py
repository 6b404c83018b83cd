"""A process that provisions, seals, erases and lets return, and writes down what it saw.

`python -m tests.keys.history_worker PLACES SEED LOG`: runs until it is killed.
"""

from __future__ import annotations

import base64
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from keys import InvalidTransition, KeyPlaces, Keyring, Provisioned, SubjectId, embedded_places, open_keys
from keys.errors import PageStoreUnavailable, SubjectErased
from tests.keys.people import BLOCK, context

PEOPLE = 60
PURPOSES = ("service", "marketing")
NEWCOMERS_PER_SECOND = 20


def slot(at_seconds: float) -> int:
    """A moment of the system's monotonic clock: in it, all processes make the same newcomer."""
    return int(at_seconds * NEWCOMERS_PER_SECOND)


def newcomer(number: int) -> str:
    """Somebody of one slot, whom nobody erases: a second key of theirs is still there at the end."""
    return f"newcomer-{number}"


def open_history(places: dict[str, str]) -> Keyring:
    """The keyring of a description: `home`, and `dsn` and `schema` where pages are in PostgreSQL."""
    home = Path(places["home"])
    found = embedded_places(home)
    if "dsn" in places:
        from keys.postgresstore import PostgresPageStore

        found = KeyPlaces(found.custodian, lambda: PostgresPageStore(places["dsn"], places["schema"]))
    return open_keys(found, home)


def step(keyring: Keyring, chance: random.Random) -> dict[str, Any]:
    """One operation on somebody, with its outcome."""
    person = SubjectId(f"person-{chance.randrange(PEOPLE)}")
    kind = chance.choices(["provision", "newcomer", "erase", "return", "batch"], [55, 15, 12, 8, 10])[0]
    (purpose,) = chance.choices(PURPOSES, [3, 1])
    name = person.reveal()
    if kind == "batch":
        some = [SubjectId(f"person-{n}") for n in chance.sample(range(PEOPLE), 12)]
        outcomes = keyring.provision(some, purpose)
        found = [_seen(one.reveal(), purpose, outcome) for one, outcome in zip(some, outcomes, strict=True)]
        return {"kind": "batch", "seen": found}
    if kind == "erase":
        ref = keyring.ref_of(person)
        if ref is None:
            return {"kind": "nothing"}
        fences = keyring.fence([(person, ref)], f"r{chance.getrandbits(40)}")
        keyring.destroy([ref], fences)
        return {"kind": "erase", "person": name, "generation": fences[0].generation}
    if kind == "return":
        try:
            keyring.authorize_return(person, purpose)
        except InvalidTransition:
            return {"kind": "nothing"}
        return {"kind": "return", "person": name}
    if kind == "newcomer":
        name = newcomer(slot(time.monotonic()))
    (outcome,) = keyring.provision([SubjectId(name)], purpose)
    seen = _seen(name, purpose, outcome)
    if isinstance(outcome, Provisioned):
        body = f"{name} {outcome.generation}".encode()
        (sealed,) = keyring.session().seal(context(purpose), [outcome.ref], [BLOCK], [body])
        if isinstance(sealed, bytes):
            seen["sealed"] = base64.b64encode(sealed).decode()
    return {"kind": "batch", "seen": [seen]}


def _seen(name: str, purpose: str, outcome: Provisioned | SubjectErased) -> dict[str, Any]:
    seen = {"person": name, "purpose": purpose}
    if isinstance(outcome, SubjectErased):
        return seen | {"erased": True}
    return seen | {"ref": outcome.ref.hex(), "generation": outcome.generation}


def _opened(places: dict[str, str]) -> Keyring:
    """Tried again, as a supervisor would: the server may be on its way back."""
    while True:
        try:
            return open_history(places)
        except PageStoreUnavailable:
            time.sleep(0.1)


def main() -> None:
    """Runs until killed."""
    places, seed, log = json.loads(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    keyring, chance = _opened(places), random.Random(seed)
    with log.open("a") as out:
        while True:
            began = time.monotonic()
            out.write(json.dumps({"kind": "intent", "began": began}) + "\n")
            out.flush()
            done = step(keyring, chance)
            out.write(json.dumps(done | {"began": began, "ended": time.monotonic()}) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
