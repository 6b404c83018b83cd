"""The source of what is published: kept by content, sealed, verified, shown, and gone with its version."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys import SubjectId
from projections import DefinitionError, NotPublished, PublicationDropped, SourceUnknown, keptsource
from projections.literals import refuse_ids
from projections.registry import ViewRegistry
from projections.source import SourceFile
from service.runtime import Runtime, initialise, open_runtime
from tests.command import command
from tests.world import PAID, erase, paid, publish, send

HEAD = """# What shops take, by day: Grüße.
import polars as pl
from projections import Count, Projection
"""
VIEW = """

class {title}(Projection):
    name = "{name}"
    reads = {{"Paid": ["shop"]}}
    keys = {{"shop": pl.col("shop")}}
    state = {{"events": Count()}}
    {more}
"""


def view(name: str = "takings", more: str = "lateness = Projection.lateness") -> str:
    """A file's text with one view."""
    return HEAD + VIEW.format(title=name.title(), name=name, more=more)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """One lake; tests write its views file anew."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "views.py").write_text(view())
    initialise(folder / "lake", [folder / "views.py"])
    config = folder / "lake" / "shredlake.toml"
    config.write_text(config.read_text().replace("[projections]", "[projections]\nbucket_bits = 1"))
    with open_runtime(folder / "lake") as runtime:
        runtime.lake.types.register(PAID)
        send(runtime, [paid("customer-77", event_id="1"), paid("4711471", event_id="2")])
        publish(runtime)
        yield runtime


def file_of(runtime: Runtime) -> Path:
    """The views file."""
    return runtime.home.parent / "views.py"


def rewrite(runtime: Runtime, text: str) -> None:
    """Puts another file in place and publishes what it says."""
    file_of(runtime).write_text(text)
    runtime.views.registry.refresh()
    publish(runtime)


def test_the_bytes_that_ran_are_kept_and_their_digest_is_on_record_and_in_the_log(lake: Runtime) -> None:
    """Also when the file has changed since; a changed comment alone keeps the version and what was published."""
    rewrite(lake, text := view(more="min_subjects = 0"))
    lake.purge.log_publications()
    made = lake.views.publication("takings")
    file_of(lake).write_text("broken(")
    found, (file,) = lake.views.source("takings")
    assert (found, file.body, file.path) == (made, text.encode(), Path("views.py"))
    assert file.digest == hashlib.sha256(file.body).hexdigest()
    with sqlite3.connect(lake.home / "evidence" / "tlog.db") as db:
        dump = "\n".join(db.iterdump())
    leaf = json.dumps(made.source)
    assert leaf in dump or leaf.encode().hex().upper() in dump.upper()


def test_source_lies_sealed_and_never_in_clear(lake: Runtime) -> None:
    """In no file of the lake's folder; the line would be found where it stood."""
    rewrite(lake, view(more='no_floor = "a line that nobody else has"'))
    needle = b"a line that nobody else has"
    assert lake.views.source("takings")[1][0].body.count(needle) == 1
    held = [path for path in lake.home.rglob("*") if path.is_file() and needle in path.read_bytes()]
    assert held == []


@pytest.mark.parametrize("where", ["sealed", "digest", "view"])
def test_source_that_was_touched_is_refused(lake: Runtime, where: str) -> None:
    """Its bytes, or the place it stands in: what opens is what was sealed there, and of the digest on record."""
    rewrite(lake, view(more=f"min_subjects = {len(where) - len(where)}  # {where}"))
    made = lake.views.publication("takings")
    database, place = lake.home / "views" / "ledger.db", (made.view, made.version, made.source)
    which = " WHERE view = ? AND version = ? AND digest = ?"
    with sqlite3.connect(database) as db:
        (row,) = db.execute("SELECT * FROM kept_sources" + which, place).fetchall()
        if where == "sealed":
            spoilt = row[4][:-1] + bytes([row[4][-1] ^ 1])
            db.execute("UPDATE kept_sources SET sealed = ?" + which, (spoilt, *place))
        elif where == "digest":
            db.execute("UPDATE kept_sources SET digest = ?" + which, ("0" * 64, *place))
        else:
            db.execute("UPDATE kept_sources SET view = 'other'" + which, place)
    with pytest.raises(SourceUnknown, match=f"the source of version {made.version}"):
        lake.views.source("takings")
    with sqlite3.connect(database) as db:
        db.execute("DELETE FROM kept_sources")
        db.execute("INSERT INTO kept_sources VALUES (?, ?, ?, ?, ?)", row)
    assert lake.views.source("takings")[0] == made


def test_source_that_is_not_what_its_digest_says_is_refused(
    lake: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed in that very place, by whoever has the keys."""
    sources = lake.views.ledger.sources
    with monkeypatch.context() as patched:
        patched.setattr(keptsource, "digest_of", lambda body: "0" * 64)
        sources.put("forged", "0123456789abcdef", b"other")
    with pytest.raises(SourceUnknown, match="is not what its digest says"):
        sources.get("forged", "0123456789abcdef", "0" * 64)


def test_source_goes_with_the_last_publication_of_its_version(lake: Runtime) -> None:
    """Not before; the key first, so that a copy of the ledger opens it no more."""
    rewrite(lake, view("going"))
    send(lake, [paid("customer-77", event_id="going")])
    publish(lake, "going")
    newer, older = lake.views.ledger.history("going")[:2]
    lake.views.dropping.drop([older], why="test")
    assert lake.views.source("going", newer.publication_id)[0] == newer
    with pytest.raises(PublicationDropped):
        lake.views.source("going", older.publication_id)
    with sqlite3.connect(lake.home / "views" / "ledger.db") as db:
        copy = db.execute("SELECT * FROM kept_sources WHERE view = 'going'").fetchall()
    rewrite(lake, view("going", more="min_subjects = 0"))
    lake.views.dropping.drop([newer], why="test")
    kept = [place for place in lake.views.ledger.sources.places() if place[0] == "going"]
    now = lake.views.publication("going")
    assert kept == [("going", now.version, now.source)]
    with sqlite3.connect(lake.home / "views" / "ledger.db") as db:
        db.executemany("INSERT INTO kept_sources VALUES (?, ?, ?, ?, ?)", copy)
    with pytest.raises(SourceUnknown, match="its key is gone"):
        lake.views.ledger.sources.get(newer.view, newer.version, newer.source)
    assert lake.views.ledger.sources.forget_all_but([*kept]) >= 1  # a key that is gone already is no error
    assert lake.views.source("going")[0] == now


def test_what_other_code_made_is_not_recomputed_and_the_answer_names_the_source(lake: Runtime) -> None:
    """With the command that shows it; put in place it answers."""
    rewrite(lake, view("audited"))
    made, at = lake.views.publication("audited"), lake.lake.clock()
    rewrite(lake, view("audited", more='no_floor = "other"'))
    with pytest.raises(DefinitionError, match=made.source) as caught:
        lake.views.as_recomputed("audited", at)
    way_out = f"shredlake views source audited --publication {made.publication_id}"
    assert way_out in caught.value.next_step
    done = command(
        lake.home, "--output", "json", "views", "source", "audited", "--publication", str(made.publication_id)
    )
    assert done.returncode == 0, done.stderr
    file_of(lake).write_text(json.loads(done.stdout)["files"]["views.py"])
    assert lake.views.as_recomputed("audited", at).publication == made
    assert made.source in command(lake.home, "views", "show", "audited", "--as-of", at.isoformat()).stderr
    with pytest.raises(NotPublished):
        lake.views.source("takings", made.publication_id)


LITERALS = {
    "mail": 'no_floor = "ask jane.doe@example.org first"',
    "mail in pieces of one escape": r'no_floor = "jane.doe\x40example.org"',
    "mail in a comment": "lateness = Projection.lateness  # jane.doe@example.org asked for it",
    "mail in bytes": 'asked = b"jane.doe@example.org"',
    "mail in an f-string": 'asked = f"jane.doe@example.org{1}"',
    "uuid": 'asked = "3F2504E0-4F89-11D3-9A0C-0305E82C3301"',
    "uuid without dashes": 'asked = "3f2504e04f8911d39a0c0305e82c3301"',
    "known id": 'asked = ("x", "customer-77")',
    "known number": "asked = 4711471",
    "known and erased": 'asked = {"erased-soon": 1}',
}


@pytest.mark.parametrize("kind", LITERALS)
def test_a_literal_that_looks_like_an_id_is_refused_with_its_line_and_not_quoted_unless_a_reason_is_recorded(
    lake: Runtime, kind: str
) -> None:
    """Nothing of it is built, kept or published; the reason stands in the record."""
    if kind == "known and erased":
        send(lake, [paid("erased-soon", event_id="erased-soon")])
        erase(lake, "erased-soon")
    name = "ids" + hashlib.sha256(kind.encode()).hexdigest()[:6]
    file_of(lake).write_text(text := view(name, more=LITERALS[kind]))
    line = text[: text.index(LITERALS[kind])].count("\n") + 1
    for build in (lambda: lake.views.build([name]), lambda: publish_now(lake, name)):
        with pytest.raises(DefinitionError, match=f"views.py:{line}: a literal looks like") as caught:
            build()
        said = str(caught.value) + caught.value.next_step
        assert not any(one in said for one in ("jane", "3f25", "3F25", "customer", "4711", "erased-soon"))
    assert lake.views.ledger.history(name) == []
    file_of(lake).write_text(view(name, more=f'{LITERALS[kind]}\n    holds_ids = "an example of nobody"'))
    publish_now(lake, name)
    assert lake.views.publication(name).holds_ids == "an example of nobody"


def test_whoever_calls_themselves_like_a_field_or_a_type_stops_no_view(lake: Runtime) -> None:
    """A view has to say these words; one event could forbid every new version otherwise."""
    send(lake, [paid(word, event_id=word) for word in ("cents", "Paid", "note")])
    file_of(lake).write_text(view("named", more='asked = ("cents", "Paid", "note")'))
    publish_now(lake, "named")
    assert lake.views.as_reported("named").rows.height


def publish_now(runtime: Runtime, name: str) -> None:
    """As the command does."""
    runtime.views.bring_up_to_date([name], who="test", why="")


def test_what_readers_see_already_is_derived_anew_whoever_comes_to_have_such_an_id(lake: Runtime) -> None:
    """Else an event could hold an erasure up."""
    rewrite(lake, view("settled", more='asked = "comes-later"'))
    send(lake, [paid("comes-later", event_id="later"), paid("goes", event_id="goes")])
    erase(lake, "goes")
    publish_now(lake, "settled")
    assert lake.views.ledger.aside() == {}


class Nobody:
    """Keys of a lake without people."""

    def ref_of(self, subject: SubjectId) -> None:
        """Nobody is known."""

    def erased(self, subject: SubjectId) -> None:
        """Nobody is erased."""


@settings(max_examples=20)
@given(
    local=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,10}[A-Za-z0-9]", fullmatch=True),
    host=st.from_regex(r"[a-z0-9]{1,8}(\.[a-z]{2,5}){1,2}", fullmatch=True),
    around=st.sampled_from(['"{}"', 'b"{}"', '"mailto:{}?x"', '("a", ["<{}>"])', "1  # {}", '"""a\n{}\n"""']),
)
def test_addresses_are_found_wherever_they_stand(local: str, host: str, around: str) -> None:
    """The line is the literal's."""
    text = (
        HEAD
        + f"\nASKED = {around.format(f'{local}@{host}')}\n"
        + VIEW.format(title="One", name="one", more="pass")
    )
    source = SourceFile(Path("found.py"), text.encode(), hashlib.sha256(text.encode()).hexdigest())
    (one,) = ViewRegistry.of([source]).all()
    line = text[: text.index("@")].count("\n") + 1
    with pytest.raises(DefinitionError, match="an e-mail address") as caught:
        refuse_ids(one, Nobody(), {})  # type: ignore[arg-type]
    assert f"found.py:{line}:" in str(caught.value) or around.startswith('"""')
    assert f"{local}@{host}" not in str(caught.value)
