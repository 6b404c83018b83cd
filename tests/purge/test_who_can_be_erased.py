"""Whoever is named anywhere can be erased: known, known by a letter or a waiting batch alone, or not yet."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys import SubjectId
from lake import HttpBatch, Needles, dead_letters
from lake.redaction import torn_records
from purge import Status, UnknownSubject, payload_of, scan
from service.runtime import Runtime
from tests.world import erase, paid, publish, send

ANN = SubjectId("customer-ann-0001")
SPELLINGS = (
    b"1003,customer-ann-0001,a note",
    b'{"who": "customer\\u002dann\\u002D0001"}',
    quote("customer-ann-0001", safe="").replace("-", "%2D").encode(),
    b"customer&#45;ann&#x2d;0001",
    "customer-ann-0001".encode("utf-16-le"),
    b"x " + base64.b64encode(b"a letter of customer-ann-0001 by post"),
    base64.urlsafe_b64encode(b"??" + b"customer-ann-0001"),
    b"customer-ann-0001".hex().upper().encode(),
    b"\xff\xfe customer-ann-0001",
)


def letter(world: Runtime, raw: bytes) -> None:
    """A line that names nobody by what can be read of it."""
    done = world.lake.ingestor().run(HttpBatch([raw], repr(raw), world.lake.types))
    assert done.dead == 1


def wait_in_intake(world: Runtime, *events: dict[str, object]) -> None:
    """Taken over HTTP, not committed yet."""
    world.lake.intake.put(json.dumps(list(events)).encode(), len(events))


@pytest.mark.parametrize("raw", SPELLINGS)
def test_whoever_is_known_by_a_letter_of_nobody_alone_is_erased_with_a_receipt(
    world: Runtime, raw: bytes
) -> None:
    """In every spelling; the letters of others stay, and whatever comes later is refused."""
    letter(world, raw)
    letter(world, b"1004,customer-ann-00011,of somebody else")
    plan = world.purge.plan(ANN)
    assert (plan.letters, plan.events) == (1, 0)
    done = world.purge.journal.get(erase(world, ANN.reveal()))
    assert done.status is Status.COMPLETED
    assert done.receipt is not None
    assert [one.raw for one in dead_letters(world.lake)] == [b"1004,customer-ann-00011,of somebody else"]
    assert send(world, [paid(ANN.reveal(), event_id="later")]).suppressed == 1


def test_whoever_is_known_by_a_batch_that_waits_alone_is_erased_and_nothing_is_committed(
    world: Runtime,
) -> None:
    """The event waits from before the request; after the receipt the lake holds none of it."""
    wait_in_intake(world, paid(ANN.reveal(), event_id="1", note="secret"), paid("bob", event_id="2"))
    assert world.purge.plan(ANN).waiting_batches == 1
    assert world.purge.journal.get(erase(world, ANN.reveal())).status is Status.COMPLETED
    assert world.lake.intake.queue().events == 0
    assert world.keyring.ref_of(ANN) is None
    assert world.keyring.ref_of(SubjectId("bob")) is not None
    assert scan(world.home, ANN).findings == ()


def test_nothing_is_stored_is_said_only_after_looking_and_names_the_way_to_suppress(world: Runtime) -> None:
    """A plan and a request say the same, and neither leaves a trace."""
    letter(world, b"1004,somebody else")
    records = world.keyring.stats()["records"]
    for ask in (world.purge.plan, world.purge.submit):
        with pytest.raises(UnknownSubject, match="nor dead letters, nor batches") as told:
            ask(ANN)
        assert "--suppress" in told.value.next_step
    assert (world.keyring.stats()["records"], world.purge.journal.all()) == (records, [])


def test_whoever_is_not_known_yet_is_suppressed_when_asked(world: Runtime) -> None:
    """A receipt like everybody's; every later event is refused, through the intake too; views go on."""
    send(world, [paid("bob", event_id="0")])
    publish(world)
    submitted = world.purge.submit(ANN, suppress=True)
    done = world.purge.run(submitted.request.request_id)
    assert done.status is Status.COMPLETED
    for name in world.views.registry.names():
        assert world.views.as_reported(name).rows.height
    assert send(world, [paid(ANN.reveal(), event_id="1")]).suppressed == 1
    wait_in_intake(world, paid(ANN.reveal(), event_id="2"))
    world.lake.intake.drain()
    assert world.keyring.ref_of(ANN) is None
    assert not world.purge.submit(ANN, suppress=True).is_new, "once is enough"


def test_a_second_request_for_an_erased_person_looks_again(world: Runtime) -> None:
    """A letter that was stored since goes, with a receipt of its own; without one the first answer stands."""
    send(world, [paid(ANN.reveal(), event_id="1")])
    publish(world)
    first = erase(world, ANN.reveal())
    assert world.purge.submit(ANN).request.request_id == first
    for number in (1, 2):
        letter(world, b"%d,customer-ann-0001,came late" % number)
        again = world.purge.submit(ANN)
        assert again.is_new
        assert again.salt is not None
        done = world.purge.run(again.request.request_id)
        assert done.status is Status.COMPLETED
        assert done.detail("letters_redacted")["letters"] == 1
        assert dead_letters(world.lake) == []
    assert world.purge.journal.get(first).receipt is not None
    assert world.keyring.gate().reason is None


def test_whoever_was_erased_by_a_letter_can_come_back_and_be_erased_again(world: Runtime) -> None:
    """Generations never go down, whatever handle was fenced last."""
    for number in range(3):
        send(world, [paid(ANN.reveal(), event_id=f"e{number}")])
        erase(world, ANN.reveal())
        letter(world, b"%d,customer-ann-0001" % number)
        erase(world, ANN.reveal())
        assert send(world, [paid(ANN.reveal(), event_id=f"no{number}")]).suppressed == 1
        world.keyring.authorize_return(ANN)
    generations = [fence.generation for fence in world.keyring.fences.all()]
    assert generations == sorted(generations)
    assert send(world, [paid(ANN.reveal(), event_id="back")]).events == 1


def test_all_lines_of_a_torn_record_go_and_no_other(world: Runtime) -> None:
    """The later half of a quoted note names nobody, and is still the person's."""
    lines = [b'7,bob,"half of', b'a note",1', b'8,customer-ann-0001,"ring', b"twice", b'gate 4711",1', b"9,x"]
    done = world.lake.ingestor().run(HttpBatch(lines, "torn", world.lake.types))
    assert done.dead == len(lines)
    assert world.purge.plan(ANN).letters == 3
    erase(world, ANN.reveal())
    assert [one.raw for one in dead_letters(world.lake)] == [lines[0], lines[1], lines[5]]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=30))
def test_a_record_is_torn_at_quotes_alone(rows: list[tuple[bool, int]]) -> None:
    """Written as CSV and cut at line breaks, the lines of a record share a number and no two records do."""
    letters, expected = [], []
    for number, (is_quoted, breaks) in enumerate(rows):
        text = f'{number},"' + "x\n" * breaks + '"' if is_quoted else f"{number},x"
        for part in text.split("\n"):
            letters.append(("feed", len(letters), part.encode()))
            expected.append(number)
    found = torn_records(letters)
    assert [found.index(one) for one in found] == [expected.index(one) for one in expected]


@given(st.text(min_size=1, max_size=24).filter(lambda text: text.strip() and text.isprintable()))
def test_letters_name_whoever_stands_in_them_as_json_csv_or_mail(said: str) -> None:
    """Whatever a format does to the characters of an id."""
    needles = Needles(SubjectId(said))
    assert needles.names(json.dumps({"who": said}).encode())
    assert needles.names(json.dumps({"who": json.dumps(said)}, ensure_ascii=False).encode())
    assert needles.names(f"1,{said},2".encode())
    assert needles.names(f"?a={quote(said, safe='')}&b".encode())
    every = "".join(f"\\u{u:04X}" for u in memoryview(said.encode("utf-16-le")).cast("H"))
    assert needles.names(f'{{"who": "{every}"}}'.encode())
    assert needles.names("".join(f"&#{ord(c)};" for c in said).encode())


@pytest.mark.parametrize(
    ("said", "other"),
    [
        ("user-42", "user-421"),
        ("user-42", "xuser-42"),
        ("bob", "bobby"),
        ("42", "421"),
        ("müller", "müllers"),
    ],
)
def test_a_longer_id_is_not_the_person(said: str, other: str) -> None:
    """Neither in clear nor in an encoding."""
    needles = Needles(SubjectId(said))
    for text in (
        other.encode(),
        other.encode("utf-16-le"),
        base64.b64encode(other.encode()),
        json.dumps(other),
    ):
        raw = text if isinstance(text, bytes) else text.encode()
        assert not needles.names(b"1, " + raw + b" ,2"), raw


def test_a_letter_of_a_person_is_counted_as_a_letter_and_not_as_an_event(world: Runtime) -> None:
    """In the plan and in the receipt."""
    send(world, [paid("ann", event_id="1"), paid("ann", event_id="2") | {"data": {"cents": "many"}}])
    plan = world.purge.plan(SubjectId("ann"))
    assert (plan.events, plan.own_letters, plan.letters) == (1, 1, 0)
    receipt = world.purge.journal.get(erase(world, "ann")).receipt
    assert receipt is not None
    touched = payload_of(receipt)["predicate"]["touched"]
    assert (touched["events"], touched["dead_letters"]) == (1, 1)
