"""Dead letters of nobody's: a key for each ingest day, kept for so long, and gone with every byte that opens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from attrs import define
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from keys import Effects, KeysError
from lake import (
    HttpBatch,
    Ingestor,
    LetterRedaction,
    LetterRetention,
    Maintenance,
    UpkeepPolicy,
    dead_letters,
    first_kept,
    verify,
)
from lake.letterkeys import letter_keys_of
from lake.nobodysletters import LETTERS_OF_ALL
from lake.selection import some_rows
from lake.table import summary_of
from service.doctor import examine
from service.runtime import Runtime, open_runtime
from tests.world import Clock, compact_all, erase, make_world, paid, send

NUMBERS = itertools.count()
"""Of batches: a name that came once is not taken twice."""
POLICY = UpkeepPolicy(merge_files=3, keep_snapshots=2, keep_seconds=0, letter_days=10)


def letter(runtime: Runtime, text: str, ingestor: Ingestor | None = None) -> None:
    """A line that names no subject becomes a letter."""
    line = f'{{"broken": "{text}"'.encode()
    (ingestor or runtime.lake.ingestor()).run(HttpBatch([line], f"{next(NUMBERS)}", runtime.lake.types))


def texts(runtime: Runtime) -> list[str]:
    """What the letters in the head say."""
    return sorted(one.raw.decode().split('"')[3] for one in dead_letters(runtime.lake))


def keys_in_head(runtime: Runtime) -> dict[date, set[bytes]]:
    """Ingest day → handles of its letters."""
    table = runtime.lake.events
    rows = some_rows(table, table.files(), LETTERS_OF_ALL, ("subject_ref", "ingested_at"))
    found: dict[date, set[bytes]] = {}
    for ref, at in rows.select("subject_ref", "ingested_at").iter_rows():
        found.setdefault(at.date(), set()).add(ref)
    return found


def every_letter_that_opens(runtime: Runtime) -> set[str]:
    """What a thief of the folder reads: letters of all data files there, by today's keys."""
    looking = LetterRedaction(runtime.lake)
    parts = [
        looking._letters_in(runtime.lake.events.kept_files()),
        looking._letters_at(list(looking._looked_at(looking._abandoned()))),
    ]
    found = looking._nobodys(looking._living(pl.concat(one for one in parts if one.height)))
    return {raw.split('"')[3] for raw in found["raw"]}


def redact(runtime: Runtime, text: str) -> int:
    """Takes out what holds a text, as an erasure does."""
    in_use = runtime.lake.intake.letters_in_use()
    return LetterRedaction(runtime.lake, sleep=lambda seconds: None).run(
        lambda raw: text.encode() in raw, in_use
    )


def test_the_letters_of_a_day_share_one_key_whoever_takes_them_in(slow_world: Runtime, clock: Clock) -> None:
    """Two writers and the HTTP intake; the next day has another."""
    others = slow_world.lake.ingestor()
    for number in range(3):
        letter(slow_world, f"a{number}")
        letter(slow_world, f"b{number}", others)
    slow_world.lake.intake.put(b'[{"no": "subject"}]', 1)
    slow_world.lake.intake.drain()
    assert [len(refs) for refs in keys_in_head(slow_world).values()] == [1]
    clock.forward(days=1)
    letter(slow_world, "next")
    first, second = keys_in_head(slow_world).values()
    assert len(first) == len(second) == 1
    assert first != second


def test_a_letter_that_lands_beside_a_redaction_is_neither_lost_nor_kept_readable_by_the_old_key(
    world: Runtime,
) -> None:
    """No fence comes between: the day's key was replaced, so the batch is sealed again."""
    letter(world, "ann")
    letter(world, "bob")
    ingestor = world.lake.ingestor()
    prepare, raced = ingestor._prepare, []

    def overtaken(parts: Any) -> Any:
        prepared = prepare(parts)
        if not raced:
            raced.append(redact(world, "ann"))
        return prepared

    ingestor._prepare = overtaken  # type: ignore[method-assign]
    letter(world, "cid", ingestor)
    assert raced == [1]
    assert texts(world) == ["bob", "cid"]
    assert every_letter_that_opens(world) == {"bob", "cid"}
    assert [len(refs) for refs in keys_in_head(world).values()] == [1]


class Killed(BaseException):
    """As by kill -9."""


@define
class Trap:
    """Kills before or after the nth durable effect from when it is set."""

    left: int | None = None
    after: bool = False
    only: str = ""

    def __call__(self, when: str, name: str) -> None:
        if self.left is None or (when == "after") != self.after or not name.startswith(self.only):
            return
        self.left -= 1
        if self.left < 0:
            self.left = None
            raise Killed


def redacted(runtime: Runtime) -> None:
    """As an erasure of whom the letters call ann."""
    redact(runtime, "ann")


def kept_up(runtime: Runtime) -> None:
    """A round of upkeep."""
    Maintenance(runtime.lake, POLICY).run(runtime.lake.clock())


def taken_in(runtime: Runtime) -> None:
    """A letter that will have to go."""
    letter(runtime, "ann-late")


ACTS: dict[str, Callable[[Runtime], None]] = {"redact": redacted, "upkeep": kept_up, "ingest": taken_in}


@pytest.fixture(scope="module")
def crashing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, Clock, Trap]]:
    """A lake whose process can be killed at every effect; nobody else is about to commit."""
    patched = pytest.MonkeyPatch()
    patched.setattr("lake.nobodysletters._IN_FLIGHT_SECONDS", 0.0)
    clock, trap = Clock(), Trap()
    runtime = make_world(tmp_path_factory.mktemp("crash") / "lake", clock=clock, effects=Effects(trap))
    yield runtime, clock, trap
    runtime.close()
    patched.undo()


@settings(max_examples=3, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@example(acts=[("ingest", 0, False)], days=0)
@example(acts=[("redact", 3, True), ("upkeep", 2, False)], days=11)
@given(
    acts=st.lists(
        st.tuples(st.sampled_from(sorted(ACTS)), st.integers(0, 8), st.booleans()), min_size=1, max_size=3
    ),
    days=st.integers(0, 12),
)
def test_whatever_is_killed_where_a_redacted_letter_opens_nowhere_and_no_other_is_lost(
    crashing: tuple[Runtime, Clock, Trap], acts: list[tuple[str, int, bool]], days: int
) -> None:
    """Ingest, redactions and upkeep, killed at any effect; then a redaction and a round that are not."""
    runtime, clock, trap = crashing
    clock.forward(days=30)  # what examples before have left goes by age
    kept_up(runtime)
    assert every_letter_that_opens_or_none(runtime) == set()
    letter(runtime, "ann")
    letter(runtime, "bob")
    clock.forward(days=days)
    letter(runtime, "cid")
    for name, left, after in acts:
        trap.left, trap.after = left, after
        try:
            ACTS[name](runtime)
        except Killed:
            pass
        finally:
            trap.left = None
    redacted(runtime)
    kept_up(runtime)
    alive = {"cid"} if days > POLICY.letter_days else {"bob", "cid"}
    assert set(texts(runtime)) == alive
    assert every_letter_that_opens_or_none(runtime) == alive
    assert verify(runtime.lake, deep=True).problems == ()
    assert all(len(refs) == 1 for refs in keys_in_head(runtime).values())


def every_letter_that_opens_or_none(runtime: Runtime) -> set[str]:
    """The same, where there may be no letter at all."""
    return every_letter_that_opens(runtime) if runtime.lake.events.snapshot() is not None else set()


def test_letters_of_a_killed_ingest_under_the_day_s_key_are_reached(tmp_path: Path) -> None:
    """The file belongs to no snapshot, and its key is that of letters that stay."""
    trap = Trap()
    with make_world(tmp_path / "lake", effects=Effects(trap)) as world:
        letter(world, "bob")
        trap.left, trap.only = 0, "commit:lake"
        with pytest.raises(Killed):
            letter(world, "ann")
    with open_runtime(tmp_path / "lake") as world:
        assert every_letter_that_opens(world) == {"ann", "bob"}
        assert redact(world, "ann") == 0
        assert every_letter_that_opens(world) == {"bob"}
        assert texts(world) == ["bob"]


def one_key_each(runtime: Runtime) -> Ingestor:
    """A writer as releases before had it: a key for each batch, and nothing in the summary."""
    ingestor = runtime.lake.ingestor()
    ingestor._letter_key = lambda day: None  # type: ignore[method-assign,assignment,return-value]
    return ingestor


def test_letters_go_when_their_days_are_over_those_of_older_releases_too(
    slow_world: Runtime, clock: Clock
) -> None:
    """With their keys; foretold to the last commit, counted, and done once. Letters of people stay."""
    older = one_key_each(slow_world)
    letter(slow_world, "old-a", older)
    letter(slow_world, "old-b", older)
    letter(slow_world, "new")
    send(slow_world, [paid("ann", event_id="1"), paid("ann", event_id="2") | {"data": {"cents": "no"}}])
    refs = set.union(*keys_in_head(slow_world).values())
    assert len(refs) == 4
    compact_all(slow_world)
    work = Maintenance(slow_world.lake, POLICY)
    clock.forward(days=10)
    letter(slow_world, "today")
    assert "letters" not in {one.what for one in work.run(clock())}
    assert len(texts(slow_world)) == 4 + 1
    clock.forward(days=1)
    told = [one for one in work.plan(clock()) if one.what in ("letters", "expire")]
    done = [one for one in work.run(clock()) if one.what in ("letters", "expire")]
    assert told == done
    assert next((one.what, one.before) for one in done) == ("letters", 3)
    left = [one for one in dead_letters(slow_world.lake) if b"broken" in one.raw]
    assert [one.raw for one in left] == [b'{"broken": "today"']
    assert len(dead_letters(slow_world.lake)) == 2, "and the one of a person"
    assert every_letter_that_opens(slow_world) == {"today"}
    alive = {ref for ref in refs if slow_world.keyring.purposes_of(ref)}
    assert len(alive) == 1, "the person's"
    checked = verify(slow_world.lake, deep=True)
    assert checked.problems == ()
    assert "letters" not in {one.what for one in work.run(clock())}
    (person,) = alive
    with pytest.raises(KeysError):
        slow_world.keyring.resident.deks(list(refs - {person}), "service")


def test_a_lake_that_goes_on_with_letters_of_an_older_release_redacts_them(world: Runtime) -> None:
    """Each lies under the key of its batch, on a day that has a key by now."""
    older = one_key_each(world)
    letter(world, "ann-old", older)
    letter(world, "bob-old", older)
    letter(world, "cid")
    assert redact(world, "ann") == 1
    assert every_letter_that_opens(world) == {"bob-old", "cid"}
    assert texts(world) == ["bob-old", "cid"]


def test_doctor_tells_fourteen_days_before_letters_go(slow_world: Runtime, clock: Clock) -> None:
    """And afterwards, as long as nobody lets them go."""

    def told() -> tuple[str, str]:
        (found,) = [one for one in examine(slow_world) if one.check == "letters of nobody"]
        return found.level, found.text

    letter(slow_world, "a")
    letter(slow_world, "b")
    assert told()[0] == "ok"
    clock.forward(days=90 - 14)
    assert told()[0] == "ok"
    clock.forward(days=1)
    level, text = told()
    assert (level, text.split()[0]) == ("warning", "2")
    assert (clock().date().toordinal() - date(2026, 3, 1).toordinal()) == 77
    assert "2026-05-31" in text
    clock.forward(days=14)
    assert told()[1].startswith("2 are older than 90 days")
    Maintenance(slow_world.lake).run(clock())
    assert told()[0] == "ok"


def test_a_retention_that_was_killed_before_the_keys_died_is_finished_by_the_next_round(
    slow_world: Runtime, clock: Clock
) -> None:
    """Though the day has no file left."""
    letter(slow_world, "a")
    clock.forward(days=11)
    retention = LetterRetention(slow_world.lake)
    before = first_kept(clock().date(), 10)
    (day,) = retention.due(before)
    assert retention.remove(day) == 1
    assert retention.due(before) == []
    assert every_letter_that_opens(slow_world) == {"a"}
    kept_up(slow_world)
    assert every_letter_that_opens_or_none(slow_world) == set()


def test_summaries_that_are_ours_alone_say_the_days_keys(slow_world: Runtime, clock: Clock) -> None:
    """Three days at the most, and an erasure of whoever is named by none leaves them as they are."""
    for number in range(5):
        letter(slow_world, f"l{number}")
        clock.forward(days=1)
    send(slow_world, [paid("ann", event_id="1")])
    head = slow_world.lake.events.snapshot()
    assert head is not None
    before = letter_keys_of(summary_of(head)).keys
    assert [day.day for day in before] == [3, 4, 5]
    erase(slow_world, "ann")
    head = slow_world.lake.events.snapshot()
    assert head is not None
    assert letter_keys_of(summary_of(head)).keys == before
