"""One event can cost at most itself, whatever its bytes are and whichever door it comes through."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lake import EventRead, HttpBatch, JsonLinesFile, dead_letters, redrive
from lake.blocks import event_tags
from lake.carefulmessages import CarefulMessages
from lake.intake import lines_of
from lake.messages import CloudEventMessages, Message, Messages
from lake.parsed import Parsed, Rejected
from lake.rawjson import members
from lake.salvage import DROPPED, SET_ASIDE, plain_letter, salvaged
from lake.sealer import Sealer, letter_bytes, letter_text
from lake.validate import Flaw, parse_time
from service.runtime import Runtime
from tests.world import erase, paid, send

OPENED = {
    "name": "Opened",
    "version": 1,
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "x": {"type": "number"},
        "day": {"type": "string", "format": "date"},
        "word": {"type": "string"},
        "more": {"type": "object"},
    },
}
_OPENED = '{"specversion":"1.0","id":%s,"source":"s","type":"Opened","subject":%s,"time":%s,"data":%s}'


def opened(
    event_id: str = '"p"', subject: str = '"poison"', time: str = '"2026-01-01T00:00:00Z"', data: str = "{}"
) -> bytes:
    """An event by the JSON of its parts."""
    return (_OPENED % (event_id, subject, time, data)).encode("utf-8", "surrogatepass")


_DEEP = "[" * 300 + "]" * 300
POISONS = {
    "a time before year 1": opened(time='"0001-01-01T00:00:00+01:00"'),
    "a time after year 9999": opened(time='"9999-12-31T23:59:59-14:00"'),
    "an offset of a day": opened(time='"2026-01-01T00:00:00+24:00"'),
    "a leap second": opened(time='"2016-12-31T23:59:60Z"'),
    "a time to the minute": opened(time='"2026-01-01T00:00Z"'),
    "an offset without minutes": opened(time='"2026-01-01T00:00:00+01"'),
    "nesting that is read and not written": opened(data='{"more":{"a":' + _DEEP + "}}"),
    "nesting at the reader's limit": opened(data='{"more":{"a":' + "[" * 1020 + "]" * 1020 + "}}"),
    "nesting beyond all limits": opened(data='{"more":{"a":' + "[" * 100_000 + "]" * 100_000 + "}}"),
    "nesting in a field that nobody knows": opened(data='{"who":' + _DEEP + "}"),
    "an integer of 30 digits": opened(data='{"n":' + "9" * 30 + "}"),
    "an integer of 5000 digits": opened(data='{"n":' + "9" * 5000 + "}"),
    "a huge exponent": opened(data='{"x":1e999}'),
    "a whole number with a huge exponent": opened(data='{"n":1e300}'),
    "NaN": opened(data='{"x":NaN}'),
    "-Infinity": opened(data='{"more":{"x":-Infinity}}'),
    "a lone surrogate": opened(data='{"word":"\\ud800"}'),
    "a lone surrogate in bytes": opened(data='{"word":"\ud800"}'),
    "bytes that are no UTF-8": opened(data='{"word":"@"}').replace(b"@", b"\xff\xfe"),
    "year 0 as a date": opened(data='{"day":"0000-01-01"}'),
    "a date beyond year 9999": opened(data='{"day":"10000-01-01"}'),
    "a number as a text": opened(data='{"word":1}'),
    "a text that is too long": opened(data='{"word":"' + "x" * 1_100_000 + '"}'),
    "a long name of a field": opened(data='{"' + "x" * 100_000 + '":1}'),
    "what looks like base64": b"base64,no",
    "half a document": b'{"id":"1"',
    "two documents": opened() + opened(),
    "true as an id": opened(event_id="true"),
    "1.0 as an id": opened(event_id="1.0"),
    "a list as an id": opened(event_id="[1]"),
    "null as a person": opened(subject="null"),
    "1.0 as a person": opened(subject="1.0"),
    "false as a person": opened(subject="false"),
    "an object as a person": opened(subject='{"a":1}'),
}
FINE = {
    "a time in year 1": opened(time='"0001-01-01T00:00:00Z"'),
    "a time in year 9999": opened(time='"9999-12-31T23:59:59Z"'),
    "NUL": opened(data='{"word":"\\u0000"}'),
    "a name twice": opened(data='{"n":1,"n":2}'),
    "minus zero": opened(data='{"n":-0,"x":-0.0}'),
    "a digit after all digits": opened(data='{"x":0.1000000000000000055511151231257827}'),
    "numbers of the other form": opened(data='{"x":1}'),
}


def _around(poison: bytes) -> list[bytes]:
    good = [json.dumps(paid(f"g{at}", event_id=f"{at}")).encode() for at in range(4)]
    return [*good[:2], poison, *good[2:]]


@pytest.fixture
def lake(world: Runtime) -> Runtime:
    """A lake with the type of the poisons."""
    world.lake.types.register(OPENED)
    return world


def test_every_poison_in_a_file_or_a_batch_is_one_letter_and_all_else_goes_in(
    lake: Runtime, tmp_path: Path
) -> None:
    """Also all of them at once; with a reason, in the place where it stood, and byte for byte."""
    poisons = list(POISONS.values())
    lines = [line for poison in poisons for line in _around(poison)]
    for at, line in enumerate(lines):
        if b'"Paid"' in line:
            lines[at] = json.dumps(json.loads(line) | {"id": f"good-{at}"}).encode()
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(lines))
    done = lake.lake.ingestor().run(JsonLinesFile(path, lake.lake.types))
    assert (done.events, done.dead) == (4 * len(poisons), len(poisons))
    letters = {letter.line: letter for letter in dead_letters(lake.lake)}
    assert {line: letters[line].raw for line in letters} == {
        5 * at + 2: poison for at, poison in enumerate(poisons)
    }
    assert not [one.reason for one in letters.values() if one.reason.startswith("unprocessable")]
    again = redrive(lake.lake, list(letters.values()))
    assert (again.events, again.dead) == (0, len(poisons))


def _is_taken(raw: bytes) -> bool:
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name, raw in POISONS.items() if _is_taken(raw)])
def test_a_batch_that_waits_never_sticks(lake: Runtime, name: str) -> None:
    """Whatever an array of events held that was taken as JSON: the intake is empty after a commit."""
    body = b"[" + b",".join(_around(POISONS[name])) + b"]"
    batch, _ = lake.lake.intake.put(body, 5)
    lake.lake.intake.drain()
    outcome = lake.lake.intake.get(batch.batch_id).outcome
    assert outcome is not None
    assert (outcome.accepted, outcome.rejected) == (4, 1)
    erase(lake, "g0")


def test_an_erasure_is_not_kept_waiting_by_a_poison_in_the_intake(lake: Runtime) -> None:
    """It drains the intake, poison and all."""
    send(lake, [paid("g1", event_id="before")])
    lake.lake.intake.put(b"[" + b",".join(_around(POISONS["a time before year 1"])) + b"]", 5)
    erase(lake, "g1")
    assert lake.lake.intake.queue().batches == 0


@pytest.mark.parametrize("name", FINE)
def test_what_is_odd_and_right_is_stored(lake: Runtime, name: str) -> None:
    """Strictness is no excuse: these are events."""
    done = lake.lake.ingestor().run(HttpBatch(_around(FINE[name]), name, lake.lake.types))
    assert (done.events, done.dead) == (5, 0), done.reasons


def test_objects_are_kept_as_they_were_sent(lake: Runtime) -> None:
    """Nothing is written anew: no digit is lost, no order changed."""
    sent = '{"z": 123456789012345678901234567890, "a": [1.10, 1e2]}'
    lake.lake.ingestor().run(HttpBatch([opened(data='{"more":' + sent + "}")], "k", lake.lake.types))
    replay = lake.lake.replay()
    head = replay.resolve(None)
    assert head is not None
    rows = replay.events(replay.files(head.snapshot_id), EventRead("Opened", ("more",))).frame
    assert rows["more"].to_list() == [sent]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(found=st.lists(_JSON, max_size=5), indent=st.sampled_from([None, 1]), deep=st.booleans())
@example(found=[{'a"]},{': '\\",]['}], indent=None, deep=True)
def test_the_events_of_an_array_are_the_bytes_that_were_sent(
    found: list[Any], indent: int | None, deep: bool
) -> None:
    """With any parser: one of them gives up where documents are nested deeply."""
    parts = [json.dumps(one, indent=indent).encode() for one in found]
    if deep:
        parts.append(b"[" * 1010 + b'"],"' + b"]" * 1010)
    assert lines_of(b" [ " + b" , ".join(parts) + b" ] ") == parts
    if indent is None and deep and found:
        document = b'{"a\\"b": ' + parts[0] + b' , "deep":' + parts[-1] + b"}"
        assert members(document) == {'a"b': parts[0], "deep": parts[-1]}


@given(size=st.integers(0, 40), poisoned=st.sets(st.integers(0, 39)), holes=st.booleans())
def test_a_parser_that_breaks_costs_only_the_lines_that_break_it(
    size: int, poisoned: set[int], holes: bool
) -> None:
    """Any number of them, anywhere; every line is accounted for."""
    numbers = [3 * at + 1 if holes else at for at in range(size)]
    bad = {numbers[at] for at in poisoned if at < size}
    end = numbers[-1] + 1 if numbers else 0

    def parse(lines: Sequence[tuple[int, bytes]], start: int, end: int) -> Parsed:
        if any(number in bad for number, _ in lines):
            raise pl.exceptions.PanicException("somebody's value")
        return Parsed(start, end, (), (), end - start - len(lines))

    done = salvaged([(at, b"x") for at in numbers], 0, end, parse, plain_letter, holes_are_blank=True)
    assert [one.line for one in done.rejected] == sorted(bad)
    assert {one.flaw for one in done.rejected} <= {Flaw("unprocessable (PanicException)")}
    assert done.blank + len(bad) == end - (size - len(bad))


def test_what_no_line_is_guilty_of_makes_no_letters() -> None:
    """A disk that fails is not a poison."""

    def parse(lines: Sequence[tuple[int, bytes]], start: int, end: int) -> Parsed:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        salvaged([(0, b"x"), (1, b"y")], 0, 2, parse, plain_letter)


@pytest.fixture
def brittle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sealer that breaks on an event of 666 cents, in a way that nobody foresaw."""
    sound = Sealer._seal_type

    def breaks(self: Sealer, event_type: Any, frame: pl.DataFrame, *rest: Any) -> Any:
        if "cents" in frame.columns and (frame["cents"] == 666).any():
            raise OverflowError("somebody's value")
        return sound(self, event_type, frame, *rest)

    monkeypatch.setattr(Sealer, "_seal_type", breaks)


@pytest.mark.usefixtures("brittle")
def test_an_event_that_breaks_the_sealing_is_one_letter_through_every_door(
    world: Runtime, tmp_path: Path
) -> None:
    """A file, a batch, and what waits."""
    lines = [json.dumps(paid(f"p{at}", 666 if at == 3 else at, event_id=f"{at}")).encode() for at in range(9)]
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(lines))
    for source in (JsonLinesFile(path, world.lake.types), HttpBatch(lines, "k", world.lake.types)):
        done = world.lake.ingestor().run(source)
        assert (done.events, done.reasons) == (8, (("unprocessable (OverflowError)", 1),))
    batch, _ = world.lake.intake.put(b"[" + b",".join(lines) + b"]", 9)
    world.lake.intake.drain()
    outcome = world.lake.intake.get(batch.batch_id).outcome
    assert outcome is not None
    assert [(note.at, note.reason) for note in outcome.notes] == [(3, "unprocessable (OverflowError)")]
    assert {letter.raw for letter in dead_letters(world.lake)} == {lines[3]}


def test_messages_that_break_their_format_or_are_set_aside_are_letters(lake: Runtime) -> None:
    """Every offset is accounted for."""

    class Brittle(CloudEventMessages):
        def parse(self, source: str, start: int, end: int, messages: Messages) -> Parsed:
            if b"poison" in messages.values:
                raise RecursionError
            return super().parse(source, start, end, messages)

    one = CarefulMessages(Brittle(lake.lake.types), lambda source: {7: SET_ASIDE, 9: DROPPED})
    good = json.dumps(paid("ann", event_id="1")).encode()
    values = {2: good, 3: b"poison", 5: good, 7: good, 8: None, 9: good}
    parsed = one.parse("kafka:c:t:0", 0, 12, Messages.of(Message(at, raw) for at, raw in values.items()))
    ((_, frame),) = parsed.accepted
    assert sorted(frame["position"]) == [2, 5]
    assert parsed.rejected == (
        Rejected(3, Flaw("unprocessable (RecursionError)"), b"poison"),
        Rejected(7, SET_ASIDE, good, "ann"),
        Rejected(9, DROPPED, b""),
    )
    assert parsed.blank == 12 - 5


@given(raw=st.binary() | st.text().map(str.encode) | st.binary().map(lambda some: b"base64," + some))
@example(raw=b"base64,AAAA")
def test_a_letter_gives_back_the_bytes_that_it_was_made_of(raw: bytes) -> None:
    """Whatever they look like."""
    assert letter_bytes(letter_text(raw)) == raw


@settings(max_examples=200)
@given(
    names=st.lists(
        st.tuples(st.text("a\0\x011", min_size=1, max_size=4), st.text("a\0\x011", min_size=1, max_size=4)),
        min_size=2,
        max_size=8,
        unique=True,
    )
)
@example(names=[("a", "b\0c"), ("a\0b", "c")])
def test_different_sources_and_ids_have_different_tags(names: list[tuple[str, str]]) -> None:
    """Whatever characters they are made of."""
    frame = pl.DataFrame(names, schema=["source", "event_id"], orient="row")
    assert event_tags(frame, [bytes(16)], [len(names)]).n_unique() == len(names)


@given(
    year=st.sampled_from(["0000", "0001", "0002", "1969", "9998", "9999"]),
    rest=st.sampled_from(["-01-01T00:00:00", "-12-31T23:59:59.999999", "-02-29T12:00:00", "-06-30T23:59:60"]),
    zone=st.sampled_from(["Z", "z", "+00:00", "+14:00", "-14:00", "+23:59", "-23:59", "+24:00", "", "+1"]),
)
def test_a_time_is_within_the_years_1_to_9999_of_utc_or_none(year: str, rest: str, zone: str) -> None:
    """Nothing is raised, whatever the offset does."""
    found = parse_time(year + rest + zone)
    assert found is None or 1 <= found.year <= 9999
