"""Ingest as its users see it: exactly once, and nothing lost."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import resource
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path

import polars as pl
import pytest

from keys import SubjectId
from lake import (
    EventRead,
    HttpBatch,
    JsonLinesFile,
    MappedFile,
    MappingError,
    Parsed,
    ReadAhead,
    ReadAheadProcess,
    Source,
    StorageFailed,
    UnreadableInput,
    dead_letters,
    load_mapping,
    privacy_lint,
    redrive,
    verify,
    with_read_ahead,
)
from lake.ingest import Part
from lake.salvage import NOTHING, Aside
from service.runtime import Runtime, open_runtime
from tests.world import PAID, erase, paid, send, shred, shred_before_tagging

CENTS = EventRead("Paid", ("cents", "event_id", "subject"))
GOOD = paid("ann", event_id="good")
BAD_LINES = {
    "malformed_json": b'{"id": ',
    "invalid_utf8": b'\xff\xfe{"id": 1}',
    "not_an_object": b"[1, 2]",
    "missing_attribute": json.dumps(GOOD | {"id": ""}).encode(),
    "missing_subject": json.dumps({k: v for k, v in GOOD.items() if k != "subject"}).encode(),
    "invalid_subject": json.dumps(GOOD | {"subject": "a" * 70_000}).encode(),
    "unknown_event_type": json.dumps(GOOD | {"type": "Nope"}).encode(),
    "unknown_schema_version": json.dumps(GOOD | {"schemaversion": 9}).encode(),
    "unknown_specversion": json.dumps(GOOD | {"specversion": "9.9"}).encode(),
    "wrong_type": json.dumps(GOOD | {"data": {"cents": "many"}}).encode(),
    "missing_field": json.dumps(GOOD | {"data": {}}).encode(),
    "unknown_field": json.dumps(GOOD | {"data": {"cents": 1, "extra": 2}}).encode(),
    "minimum": json.dumps(GOOD | {"data": {"cents": -2_000_000}}).encode(),
    "out_of_range": json.dumps(GOOD | {"data": {"cents": 2**63}}).encode(),
    "field_too_large": json.dumps(GOOD | {"data": {"cents": 1, "note": "x" * 5_000_000}}).encode(),
    "invalid_time": json.dumps(GOOD | {"time": "yesterday"}).encode(),
}


def events(runtime: Runtime, read: EventRead = CENTS) -> pl.DataFrame:
    """Every event of the head."""
    replay = runtime.lake.replay()
    head = replay.resolve(None)
    assert head is not None
    return replay.events(replay.files(head.snapshot_id), read).frame


def test_what_goes_in_comes_out(world: Runtime) -> None:
    """Values, ids, people and times survive sealing."""
    send(world, [paid("ann", 5, event_id="1"), paid("bob", 7, event_id="2", note="hä? 🎈")])
    rows = events(world, EventRead("Paid", ("cents", "shop", "note", "subject", "occurred_at", "event_id")))
    found = {r["event_id"]: (r["subject"], r["cents"], r["shop"], r["note"]) for r in rows.to_dicts()}
    assert found == {"1": ("ann", 5, "s1", None), "2": ("bob", 7, "s1", "hä? 🎈")}


@pytest.mark.parametrize("reason", BAD_LINES)
def test_a_bad_event_is_a_dead_letter_and_the_rest_goes_in(
    world: Runtime, tmp_path: Path, reason: str
) -> None:
    """The letter names rule and line, holds every byte, and the neighbours are stored."""
    raw = BAD_LINES[reason]
    path = tmp_path / "events.jsonl"
    path.write_bytes(
        json.dumps(GOOD).encode() + b"\n" + raw + b"\n\n" + json.dumps(GOOD | {"id": "2"}).encode()
    )
    done = world.lake.ingestor().run(JsonLinesFile(path, world.lake.types))
    assert (done.events, done.dead, done.blank) == (2, 1, 1)
    (letter,) = dead_letters(world.lake)
    assert (letter.reason, letter.line, letter.raw) == (reason, 1, raw)
    assert verify(world.lake, deep=True).problems == ()


def test_a_letter_goes_in_when_its_cause_is_mended(world: Runtime) -> None:
    """Re-driving after the type is registered stores the event once, also when done twice."""
    send(world, [GOOD | {"type": "Later"}])
    world.lake.types.register(PAID | {"name": "Later"})
    letters = dead_letters(world.lake)
    assert redrive(world.lake, letters).events == 1
    assert redrive(world.lake, letters).events == 0
    assert events(world, EventRead("Later", ("cents",))).height == 1


def test_the_same_file_again_changes_nothing(world: Runtime, tmp_path: Path) -> None:
    """A repeated ingest says so and makes no snapshot."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(json.dumps(paid("ann", event_id=str(n))).encode() for n in range(5)))
    for expected in ((5, 0), (0, 5)):
        done = world.lake.ingestor().run(JsonLinesFile(path, world.lake.types), batch_events=2)
        assert (done.events, done.already) == expected
    assert len(world.lake.events.history()) == 3


def test_a_batch_with_the_same_key_lands_once(world: Runtime) -> None:
    """A client that did not hear the answer may send again."""
    for expected in (1, 0):
        assert send(world, [GOOD], key="k").events == expected
    assert events(world).height == 1


def test_equal_lines_are_different_purchases(world: Runtime, tmp_path: Path) -> None:
    """By default a CSV line is known by file digest and line, so equal lines all count."""
    (tmp_path / "m.toml").write_text(
        '[event]\ntype = "Paid"\nsource = "csv"\nsubject = "c-{who}"\ntime = "at"\n'
        '[fields]\ncents = { from = "amount", scale = 100 }\n'
    )
    (tmp_path / "a.csv").write_text(
        "who,at,amount\n1,2026-03-01T10:00:00Z,1.50\n1,2026-03-01T10:00:00Z,1.50\n2,bad,1\n3,2026-03-01T10:00:00Z,1.005\n4,x\n"
    )
    mapping = load_mapping(tmp_path / "m.toml", world.lake.types)
    done = world.lake.ingestor().run(MappedFile(tmp_path / "a.csv", mapping))
    assert (done.events, done.blank, dict(done.reasons)) == (
        2,
        1,
        {"invalid_time": 1, "wrong_type": 1, "wrong_column_count": 1},
    )
    assert events(world)["cents"].to_list() == [150, 150]


_PAID_MAPPING = '[event]\ntype = "Paid"\nsource = "s"\nsubject = "x"\ntime = "t"\n[fields]\n'


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[event", "not valid TOML"),
        ('[event]\ntype = "Paid"\n', "needs"),
        ('[event]\ntype = "Paid"\nsource = "s"\nsubject = "x"\ntime = "t"\nsurprise = 1\n', "unknown key"),
        ('[event]\ntype = "Paid"\nsource = "s"\nsubject = "x"\ntime = "t"\n', "lacks the required cents"),
        (
            '[event]\ntype = "Paid"\nsource = "s"\nsubject = "x"\ntime = "t"\n[fields]\nno = "x"\n',
            "no such field",
        ),
        (_PAID_MAPPING + 'note = { from = "n", scale = 100 }\n', "type integer alone"),
        (_PAID_MAPPING + 'cents = { from = "n", date_format = "%Y" }\n', "type date alone"),
    ],
)
def test_a_mapping_that_does_not_fit_says_why(world: Runtime, tmp_path: Path, text: str, what: str) -> None:
    """A stranger's mistake gets a sentence, not a trace."""
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(MappingError, match=what):
        load_mapping(tmp_path / "m.toml", world.lake.types)


def test_a_column_that_is_not_there_is_named(world: Runtime, tmp_path: Path) -> None:
    """The file is refused as a whole, with the column's name."""
    (tmp_path / "m.toml").write_text(
        '[event]\ntype = "Paid"\nsource = "s"\nsubject = "{who}"\ntime = "at"\n[fields]\ncents = "cents"\n'
    )
    (tmp_path / "a.csv").write_text("who,cents\n1,2\n")
    mapping = load_mapping(tmp_path / "m.toml", world.lake.types)
    with pytest.raises(UnreadableInput, match="no column at"):
        MappedFile(tmp_path / "a.csv", mapping)


def test_late_events_of_an_erased_person_are_refused(world: Runtime) -> None:
    """They are counted, and nothing of them is stored."""
    send(world, [paid("ann", event_id="1"), paid("bob", event_id="2")])
    erase(world, "ann")
    before = {p: p.stat().st_mtime_ns for p in (world.home / "lake").rglob("*.parquet")}
    done = send(world, [paid("ann", event_id="3"), GOOD | {"data": {"cents": "x"}}])
    assert (done.events, done.dead, done.suppressed) == (0, 0, 2)
    assert {p: p.stat().st_mtime_ns for p in (world.home / "lake").rglob("*.parquet")} == before


def test_an_erasure_between_sealing_and_commit_is_noticed(world: Runtime) -> None:
    """The guard asks for a new batch, which leaves the person out."""
    send(world, [paid("ann", event_id="0")])
    ingestor = world.lake.ingestor()
    original, fired = world.lake.events.write_file, []

    def write_then_erase(*args: object, **kwargs: object) -> object:
        written = original(*args, **kwargs)  # type: ignore[arg-type]
        if not fired:
            fired.append(True)
            shred(world, "ann")
        return written

    world.lake.events.write_file = write_then_erase  # type: ignore[assignment,method-assign]
    lines = [json.dumps(paid(who, event_id=f"{who}1")).encode() for who in ("ann", "bob")]
    done = ingestor.run(HttpBatch(lines, "k", world.lake.types))
    assert (done.events, done.suppressed) == (1, 1)


def _ingest_in_process(home: str, path: str, both: Barrier) -> None:
    with open_runtime(Path(home)) as runtime:
        both.wait(120)  # before the first line: the faster one would be at the end when the other begins
        runtime.lake.ingestor().run(JsonLinesFile(Path(path), runtime.lake.types), batch_events=20)


def test_two_processes_with_the_same_file_store_every_event_once(world: Runtime, tmp_path: Path) -> None:
    """Both run at the same time; ids are checked one by one."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(json.dumps(paid(f"p{n % 50}", event_id=str(n))).encode() for n in range(400)))
    context = multiprocessing.get_context("spawn")
    both = context.Barrier(2)
    workers = [
        context.Process(target=_ingest_in_process, args=(str(world.home), str(path), both)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert sorted(map(int, events(world)["event_id"])) == list(range(400))
    assert verify(world.lake, deep=True).problems == ()


def _ingest_with_little_disk(home: str, path: str, limit: int, said: object) -> None:
    with open_runtime(Path(home)) as runtime:
        source = JsonLinesFile(Path(path), runtime.lake.types)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            runtime.lake.ingestor().run(source)
        except StorageFailed as error:
            said.put(error.next_step)  # type: ignore[attr-defined]


def test_a_full_disk_leaves_the_table_unharmed_and_the_run_repeats(world: Runtime, tmp_path: Path) -> None:
    """The error says what to do; afterwards the same command stores everything once."""
    send(world, [paid(f"p{n}", event_id=f"old{n}") for n in range(200)])
    path = tmp_path / "events.jsonl"
    note = "n" * 2000
    path.write_bytes(
        b"\n".join(
            json.dumps(paid(f"p{n}", event_id=str(n), note=note + str(n))).encode() for n in range(200)
        )
    )
    context = multiprocessing.get_context("spawn")
    said = context.Queue()
    worker = context.Process(target=_ingest_with_little_disk, args=(str(world.home), str(path), 20_000, said))
    worker.start()
    assert "repeat the command" in said.get(timeout=60)
    worker.join(60)
    assert events(world).height == 200
    assert world.lake.ingestor().run(JsonLinesFile(path, world.lake.types)).events == 200
    assert events(world).height == 400


def test_no_identifier_reaches_metadata(world: Runtime) -> None:
    """Summaries, manifests and footers hold only what the allow-list names."""
    send(world, [paid("ann", event_id="1"), GOOD | {"data": {}}])
    assert privacy_lint(world.lake) == []


def test_identities_find_their_person(world: Runtime) -> None:
    """A field declared an identity enters the blind index, normalised."""
    from keys import Identity

    document = {
        "name": "SignedUp",
        "type": "object",
        "properties": {"email": {"type": "string", "identity": "email"}},
        "required": ["email"],
    }
    world.lake.types.register(document)
    send(world, [paid("ann", event_id="1") | {"type": "SignedUp", "data": {"email": "Ann@Example.org "}}])
    assert world.keyring.ref_of(Identity("email", "ann@example.ORG")) == world.keyring.ref_of(
        SubjectId("ann")
    )
    assert world.keyring.ref_of(Identity("email", "bob@example.org")) is None


def line(person: str, event_id: str, note: str = "") -> bytes:
    """An event as a source has it."""
    return json.dumps(paid(person, event_id=event_id, note=note)).encode()


def test_an_erasure_of_somebody_else_does_not_hold_a_batch_up(world: Runtime) -> None:
    """The batch that was sealed before it lands as it is; one that names the erased person does not."""
    send(world, [paid("bob", event_id="1"), paid("cid", event_id="2")])
    sealed = []
    ingestor = world.lake.ingestor()
    prepare = ingestor._prepare

    def overtaken(parts: Sequence[Part]) -> object:
        prepared = prepare(parts)
        sealed.append(prepared)
        if len(sealed) < 3:
            shred(world, "bob" if len(sealed) == 1 else "cid")
        return prepared

    ingestor._prepare = overtaken  # type: ignore[method-assign,assignment]
    types = world.lake.types
    first = ingestor.run(HttpBatch([line("ann", "3")], "one", types))
    assert (first.events, len(sealed)) == (1, 1)
    second = ingestor.run(HttpBatch([line("ann", "4"), line("cid", "5")], "two", types))
    assert (second.events, second.suppressed, len(sealed)) == (1, 1, 3)


def test_who_is_erased_in_mid_batch_is_counted_as_refused(world: Runtime) -> None:
    """Named, then erased before the sealing: the batch is made anew, and says so."""
    ingestor = world.lake.ingestor()
    shred_before_tagging(world, ingestor, "ann")
    done = ingestor.run(HttpBatch([line("ann", "1"), line("bob", "2")], "one", world.lake.types))
    assert (done.events, done.suppressed, done.blocks) == (1, 1, 1)


@pytest.mark.parametrize("ahead_of", [ReadAhead, ReadAheadProcess])
def test_reading_ahead_gives_the_same_batches(
    world: Runtime, tmp_path: Path, ahead_of: Callable[[Source], Source]
) -> None:
    """Dead letters and blank lines included."""
    path = tmp_path / "events.jsonl"
    lines = [line(f"p{n % 5}", str(n)) for n in range(23)]
    path.write_bytes(b"\n".join([*lines[:9], b"", b"{broken", *lines[9:]]))
    plain = JsonLinesFile(path, world.lake.types)
    batches, ahead = list(plain.read(3, 7)), list(ahead_of(plain).read(3, 7))
    for one, other in zip(ahead, batches, strict=True):
        assert (one.start, one.end, one.blank) == (other.start, other.end, other.blank)
        assert one.rejected == other.rejected
        assert all(a.equals(b) for (_, a), (_, b) in zip(one.accepted, other.accepted, strict=True))
    done = world.lake.ingestor().run(ahead_of(plain), batch_events=7)
    assert (done.events, done.dead, done.blank) == (23, 1, 1)


def test_a_reader_that_dies_is_an_error_and_nothing_is_lost(world: Runtime, tmp_path: Path) -> None:
    """The next run goes on where the last commit ended."""
    path = tmp_path / "events.jsonl"
    noise = "x" * 300_000  # more than a pipe holds, so that the reader waits for us
    path.write_bytes(b"\n".join(line("ann", str(n), noise) for n in range(6)))
    source = ReadAheadProcess(JsonLinesFile(path, world.lake.types))

    def kill_the_reader(_lines: int, _stored: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(UnreadableInput, match="ended early"):
        world.lake.ingestor().run(source, batch_events=1, progress=kill_the_reader)
    done = world.lake.ingestor().run(source, batch_events=4)
    assert done.already >= 1
    assert done.already + done.events == 6


def test_an_error_while_reading_ahead_comes_behind_what_was_read(world: Runtime, tmp_path: Path) -> None:
    """And whoever stops taking batches stops the thread."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\n".join(line("ann", str(n)) for n in range(6)))
    plain, taken = JsonLinesFile(path, world.lake.types), []

    class Breaking:
        name, feed, total_bytes = plain.name, plain.feed, plain.total_bytes

        def read(self, start: int, batch_events: int, aside: Aside = NOTHING) -> Iterator[Parsed]:
            yield from itertools.islice(plain.read(start, batch_events), 2)
            raise UnreadableInput("the disk is gone")

    with pytest.raises(UnreadableInput, match="the disk is gone"):
        taken.extend(one.end for one in ReadAhead(Breaking()).read(0, 2))
    assert taken == [2, 4]
    before = threading.active_count()
    batches = ReadAhead(plain).read(0, 1)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_large_files_are_read_ahead_in_the_way_of_their_format(
    world: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "events.jsonl"
    events.write_bytes(line("ann", "1"))
    source = JsonLinesFile(events, world.lake.types)
    assert with_read_ahead(source) is source
    monkeypatch.setattr("lake.readahead.WORTH_IT_BYTES", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert isinstance(with_read_ahead(source), ReadAhead)
    assert isinstance(with_read_ahead(Failing()), ReadAheadProcess)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert with_read_ahead(source) is source


@pytest.mark.parametrize("ahead_of", [ReadAhead, ReadAheadProcess])
def test_a_foreign_error_while_reading_ahead_shows_its_type_alone(
    capfd: pytest.CaptureFixture[str], ahead_of: Callable[[Source], Source]
) -> None:
    """What it quotes is printed nowhere."""
    with pytest.raises(UnreadableInput, match="RuntimeError") as raised:
        list(ahead_of(Failing()).read(0, 10))
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    assert "secret" not in str(raised.value) + "".join(capfd.readouterr())


class Failing:
    """A source whose library fails with a text that quotes a value."""

    name, feed, total_bytes = "failing", "failing", 0

    def read(self, start: int, batch_events: int, aside: Aside = NOTHING) -> Iterator[Parsed]:
        """Fails."""
        raise RuntimeError("about secret-person")
        yield
