"""Whoever seals or writes a part of something larger writes that part and not a byte of another.

`DOORS` is every such place. Each gives the plaintext of its parts and whose they are; every part is searched
for what all the others said. What a rewrite leaves out is searched for in what it wrote, metadata included.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from keys import SealSession, SubjectId
from lake import HttpBatch, LetterRedaction
from lake.republish import Republisher
from lake.republish import Wanted as Range
from lake.sealingproducer import SealingProducer
from service.cli import app
from service.runtime import Runtime, initialise, open_runtime
from tests.world import PAID, compact_all, erase, paid, publish

IN_BATCH = 12
BITS = 4
PEOPLE = [f"customer-{number:03d}" for number in range(24)]
QUOTED = [f"quoted-{number:03d}" for number in range(6)]
"""People whom dead letters of nobody's quote; the last of them is redacted."""
VIEWS = """
import polars as pl
from projections import Count, Distinct, Last, Projection
c = pl.col

class Notes(Projection):
    name = "notes"
    reads = {"Paid": ["note", "subject"]}
    keys = {"subject_ref": c("subject_ref")}
    state = {"note": Last(c("note")), "kind": Last(c("note").str.to_uppercase())}

    def final(self, rows):
        return rows.with_columns(kind=c("kind").cast(pl.String))

class Shops(Projection):
    name = "shops"
    reads = {"Paid": ["shop", "note"]}
    keys = {"shop": c("shop")}
    state = {"events": Count(), "notes": Distinct(c("note"))}
"""
Part = tuple[frozenset[str], bytes]
"""Whose part it is, and its bytes in clear."""


def note(person: str) -> str:
    """What this person alone says."""
    return f"said-by-{person}"


def said(person: str, turn: int) -> dict[str, Any]:
    """An event that nobody else could have sent."""
    event = paid(person, event_id=f"{turn}-{person}", note=note(person))
    return event | {"data": event["data"] | {"shop": f"shop-of-{person}"}}


class Sealed:
    """What was sealed: context, handle, place and body of each."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes, bytes, bytes]] = []

    def of(self, *roles: str) -> list[tuple[bytes, bytes, bytes]]:
        """Handle, place and body of what was sealed in these roles."""
        return [row[1:] for row in self.bodies if row[0] in roles]


class Lake:
    """A lake that went through everything once, and what was sealed on the way."""

    def __init__(self, runtime: Runtime, sealed: Sealed) -> None:
        self.runtime = runtime
        self.sealed = sealed
        self.people = {runtime.keyring.ref_of(SubjectId(one)): one for one in PEOPLE}

    def of_people(self, *roles: str) -> list[Part]:
        """Bodies under people's own keys."""
        found = self.sealed.of(*roles)
        return [(frozenset([self.people[ref]]), body) for ref, _, body in found if ref in self.people]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """Taken in over HTTP in batches, with letters; sorted, viewed, merged into states, redacted."""
    folder = tmp_path_factory.mktemp("parts")
    code = folder / "views.py"
    code.write_text(VIEWS)
    initialise(folder / "lake", [code])
    config = folder / "lake" / "shredlake.toml"
    config.write_text(config.read_text().replace("files = ", f"bucket_bits = {BITS}\nfiles = "))
    sealed = Sealed()
    inner = SealSession.seal

    def seal(
        self: SealSession,
        context: Any,
        refs: Sequence[bytes],
        places: Sequence[bytes],
        bodies: Sequence[bytes],
    ) -> Any:
        sealed.bodies += [
            (context.field_class, ref, place, bytes(body))
            for ref, place, body in zip(refs, places, bodies, strict=True)
        ]
        return inner(self, context, refs, places, bodies)

    with pytest.MonkeyPatch.context() as patched, open_runtime(folder / "lake") as runtime:
        patched.setattr(SealSession, "seal", seal)
        runtime.lake.types.register(PAID)
        for turn in (1, 2):
            for start in range(0, len(PEOPLE), 12):
                events = [said(one, turn) for one in PEOPLE[start : start + 12]]
                body = json.dumps(events).encode()
                runtime.lake.intake.put(body, len(events), f"{turn}-{start}")
            runtime.lake.intake.drain()
            publish(runtime)
            if turn == 1:
                compact_all(runtime)
        for one in QUOTED:  # by lines that name nobody whom a reader would know
            runtime.lake.ingestor().run(HttpBatch([letter_of(one)], one, runtime.lake.types))
        LetterRedaction(runtime.lake).run(lambda raw: QUOTED[-1].encode() in raw)
        yield Lake(runtime, sealed)


def letter_of(person: str) -> bytes:
    """A broken line that quotes somebody."""
    return json.dumps({"broken": note(person)}).encode()


def batches(lake: Lake) -> list[Part]:
    """The write-ahead queue: a batch each."""
    found = []
    for _, _, body in lake.sealed.of("intake"):
        subjects = frozenset(one["subject"] for one in orjson.loads(body))
        assert len(subjects) == IN_BATCH
        found.append((subjects, body))
    return found


def blocks(lake: Lake) -> list[Part]:
    """Events as they are taken in, and as days are sorted."""
    return lake.of_people("personal")


def letters(lake: Lake) -> list[Part]:
    """Dead letters of nobody's, under a key of their day, and sealed anew when one of them was taken out."""
    found = [body for ref, _, body in lake.sealed.of("personal") if ref not in lake.people]
    return [(frozenset(one for one in QUOTED if one.encode() in body), body) for body in found]


def sent_sealed(lake: Lake) -> list[Part]:
    """Events that a producer seals for a topic: what it seals of each, and the whole message."""
    before, topic = len(lake.sealed.bodies), _Topic()
    runtime = lake.runtime
    uuid = runtime.lake.events.metadata().table_uuid.bytes
    events = [json.dumps(said(one, 3)).encode() for one in PEOPLE]
    SealingProducer(runtime.keyring, runtime.lake.types, uuid, topic).send(events)  # type: ignore[arg-type]
    sealed = [(ref, body) for name, ref, _, body in lake.sealed.bodies[before:] if name == "personal"]
    messages = [(frozenset([lake.people[key]]), value) for key, value in topic.messages]
    assert len(messages) == len(PEOPLE)
    return [(frozenset([lake.people[ref]]), body) for ref, body in sealed] + messages


def rows(lake: Lake) -> list[Part]:
    """Rows of views with a row per person."""
    return lake.of_people("view")


def states(lake: Lake) -> list[Part]:
    """Prepared states of views, by bucket."""
    found = []
    for _, place, body in lake.sealed.of("state"):
        bucket = int(place.rpartition(b"/")[2])
        found.append(
            (frozenset(one for ref, one in lake.people.items() if ref and ref[0] >> 8 - BITS == bucket), body)
        )
    return found


def copies(lake: Lake) -> list[Part]:
    """`lake read` of one person into each kind of file."""
    found = []
    for kind in ("parquet", "jsonl"):
        for one in PEOPLE[:2]:
            to = lake.runtime.home.parent / f"{one}.{kind}"
            asked = ["--type", "Paid", "--personal", "--subject", one, "--to", str(to)]
            done = CliRunner().invoke(app, ["--home", str(lake.runtime.home), "lake", "read", *asked])
            assert done.exit_code == 0, done.output
            found.append((frozenset([one]), everything_in(to) if kind == "parquet" else to.read_bytes()))
    return found


class _Topic:
    """A topic that keeps its messages."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bytes]] = []

    def partitions(self) -> int:
        return 1

    def last_places(self) -> list[str | None]:
        return [None]

    def put(self, value: bytes, key: bytes, headers: dict[str, bytes], partition: int = 0) -> None:
        self.messages.append((key, value))

    def flush(self) -> None:
        pass


def opened_messages(lake: Lake) -> list[Part]:
    """Events sent back to a topic in clear."""
    topic = _Topic()
    Republisher(lake.runtime.lake, topic).run(Range(opened=True))
    return [(frozenset([key.decode()]), value) for key, value in topic.messages]


def sealed_messages(lake: Lake) -> list[Part]:
    """Stored blocks sent back as they are: nothing in clear but the open part, of one person."""
    topic = _Topic()
    Republisher(lake.runtime.lake, topic).run(Range())
    people = {ref: one for ref, one in lake.people.items() if ref}
    return [(frozenset([people[key]]), value) for key, value in topic.messages]


DOORS: dict[str, Callable[[Lake], list[Part]]] = {
    "batches that wait": batches,
    "blocks": blocks,
    "letters of nobody's": letters,
    "messages that a producer seals": sent_sealed,
    "rows of views": rows,
    "states of views": states,
    "copies": copies,
    "messages in clear": opened_messages,
    "sealed messages": sealed_messages,
}
KNOWN_CLASSES = {"intake", "personal", "view", "state", "journal", "ledger"}


@pytest.mark.parametrize("door", DOORS)
def test_a_part_of_something_larger_holds_nothing_of_the_other_parts(lake: Lake, door: str) -> None:
    """Neither what others said nor who they are; and each part does say its own."""
    parts = DOORS[door](lake)
    assert len(parts) > 3
    saying = 0
    for whose, body in parts:
        strangers = [one for one in (*PEOPLE, *QUOTED) if one not in whose]
        assert not [one for one in strangers if one.encode() in body]
        saying += any(one.encode() in body for one in whose)
    assert saying > 3, "what is searched for is spelt this way in it"


def test_what_is_sealed_anew_when_a_letter_is_taken_out_holds_nothing_of_it(lake: Lake) -> None:
    """Nor is anything else lost."""
    newest = [body for _, body in letters(lake)][-1]
    assert [one for one in QUOTED if one.encode() in newest] == QUOTED[:-1]


def test_whatever_is_sealed_has_a_door_in_the_table(lake: Lake) -> None:
    """A new class of sealed values needs a door of its own."""
    assert {row[0] for row in lake.sealed.bodies} <= KNOWN_CLASSES


def test_the_sources_that_are_kept_hold_no_word_of_anybody(lake: Lake) -> None:
    """They are code: sealed as the rest of the ledger, and nobody's part."""
    kept = [
        base64.b64decode(file)
        for *_, body in lake.sealed.of("ledger")
        for file in json.loads(body)["files"].values()
    ]
    assert any(b"class Notes" in body for body in kept)
    assert not [body for body in kept for one in PEOPLE if one.encode() in body]


def everything_in(path: Path) -> bytes:
    """A Parquet file's bytes, its values, whole dictionaries, statistics and metadata."""
    with pq.ParquetFile(path) as file:
        texts = [
            f.name
            for f in file.schema_arrow
            if pa.types.is_large_string(f.type) or pa.types.is_string(f.type)
        ]
        table = pq.read_table(path, read_dictionary=texts, partitioning=None)
        dictionaries = [chunk.dictionary.to_pylist() for name in texts for chunk in table[name].chunks]
        found = [
            str(table.to_pylist()),
            str(dictionaries),
            str(file.metadata.to_dict()),
            str(file.schema_arrow),
        ]
    return path.read_bytes() + "".join(found).encode()


def test_a_rewritten_file_holds_nothing_of_what_was_severed(lake: Lake) -> None:
    """No sealed byte, handle, block id; in an aggregate's file no key and no statistic of it."""
    runtime, erased = lake.runtime, PEOPLE[-1]
    ref = runtime.keyring.ref_of(SubjectId(erased))
    gone = collected_blocks(runtime, ref)
    assert gone.height > 0
    old_aggregate = aggregate_file(runtime)
    assert erased.encode() in everything_in(old_aggregate), "the key was there"
    erase(runtime, erased)
    needles = [ref, *gone["sealed"].to_list(), *gone["block_id"].to_list()]
    for file in runtime.lake.events.files():
        body = everything_in(Path(file.file_path.removeprefix("file://")))
        for needle in needles:
            assert needle not in body
            assert str(needle).encode() not in body
    assert erased.encode() not in everything_in(aggregate_file(runtime))


def collected_blocks(runtime: Runtime, ref: bytes | None) -> pl.DataFrame:
    """The person's stored blocks."""
    files = [file.file_path.removeprefix("file://") for file in runtime.lake.events.files()]
    frames = [pl.read_parquet(file, hive_partitioning=False) for file in files]
    found = pl.concat([one.select("subject_ref", "block_id", "sealed") for one in frames])
    return found.filter(pl.col("subject_ref") == ref).drop_nulls("sealed")


def aggregate_file(runtime: Runtime) -> Path:
    """The data file of the published aggregate."""
    table = runtime.lake.warehouse.table(runtime.views.publication("shops").table)
    (file,) = table.files()
    return Path(file.file_path.removeprefix("file://"))
