"""What computes, what is fingerprinted and what is looked through is the same text, read once."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from keys import SubjectId
from lake import parse_event_type
from projections import DefinitionError, Deriver, DeriveTask, ViewRegistry, fingerprint, source
from service.runtime import Runtime, initialise, open_runtime
from tests.projections.test_views import HEAD, registry, simple
from tests.world import PAID, paid, publish, send

OTHER = """
class W(Projection):
    name = "w"
    reads = {"Paid": ["cents"]}
    keys = {"cents": c("cents")}
    state = {"n": Count()}
"""


@pytest.fixture
def edited(tmp_path: Path) -> tuple[Runtime, Path]:
    """A lake whose views stand in two files, one of which tests edit."""
    file, other = tmp_path / "views.py", tmp_path / "other.py"
    file.write_text(HEAD + simple())
    other.write_text(HEAD + OTHER)
    initialise(tmp_path / "lake", [file, other])
    runtime = open_runtime(tmp_path / "lake")
    runtime.lake.types.register(PAID)
    send(runtime, [paid("ann", 5, event_id="1")])
    publish(runtime)
    return runtime, file


def shown(runtime: Runtime) -> tuple[str, list[int]]:
    """Version and figures that readers see."""
    answer = runtime.views.as_reported("v")
    return answer.publication.version, answer.rows["cents"].to_list()


def test_a_changed_file_is_built_as_it_is_now_and_its_version_is_that_code_s(
    edited: tuple[Runtime, Path],
) -> None:
    """An open lake, as of a server, never computes with one text and fingerprints another."""
    runtime, file = edited
    before = shown(runtime)
    file.write_text(HEAD + simple("return rows.with_columns(c('cents') * 2)"))
    assert runtime.views.builder.version_of(runtime.views.registry.get("v")) == before[0]
    publish(runtime)
    after = shown(runtime)
    assert (before[1], after[1]) == ([5], [10])
    assert after[0] != before[0]
    file.write_text(HEAD + simple())
    publish(runtime)
    assert shown(runtime) == before


def test_a_change_that_does_not_load_is_never_half_taken(edited: tuple[Runtime, Path]) -> None:
    """What loaded before goes on, under its own version, until the file is mended."""
    runtime, file = edited
    before = shown(runtime)
    for broken in ("class V(", "1 / 0", HEAD + simple().replace('"v"', '"V"')):
        file.write_text(broken)
        publish(runtime)
        assert shown(runtime) == before
    file.write_text(HEAD + simple("return rows.with_columns(c('cents') + 1)"))
    publish(runtime)
    assert shown(runtime)[1] == [6]


def test_a_worker_with_other_code_or_event_types_refuses_the_task(world: Runtime, tmp_path: Path) -> None:
    """Its states would be kept under the version of the code that the builder has."""
    send(world, [paid("ann", event_id="1")])
    snapshot = world.lake.events.snapshot()
    assert snapshot is not None
    mine, other = registry(tmp_path, simple()), registry(tmp_path, simple("return rows.head(1)"))
    world.views.registry._views = mine._views
    version = world.views.builder.version_of(mine.get("v"))
    task = DeriveTask(("v",), snapshot.snapshot_id, 0, 0, 0, (version,))
    assert Deriver(world.lake.replay(), world.lake.types, mine).run(task)["v"].rows.height == 1
    with pytest.raises(DefinitionError, match="changed while it was built"):
        Deriver(world.lake.replay(), world.lake.types, other).run(task)
    world.lake.types.register(PAID | {"version": 2, "dedup_window_days": 3})
    with pytest.raises(DefinitionError, match="changed while it was built"):
        Deriver(world.lake.replay(), world.lake.types, mine).run(task)


def test_a_registry_of_sources_is_the_one_they_were_read_for(tmp_path: Path) -> None:
    """As workers get it, whatever stands on the disk by then."""
    file = tmp_path / "views.py"
    file.write_text(HEAD + simple())
    loaded = ViewRegistry.load([file])
    file.write_text("raise SystemExit")
    again = ViewRegistry.of(loaded.sources())
    assert again.names() == ["v"]


def test_all_rows_of_a_person_are_shown(world: Runtime, tmp_path: Path) -> None:
    """A Fold may return many for one; those of others are not among them."""
    body = """
class V(Fold):
    name = "v"
    reads = {"Paid": ["cents"]}
    def fold(self, events):
        return events.select("subject_ref", "cents")
"""
    world.views.registry._views = registry(tmp_path, body)._views
    send(world, [paid("ann", n, event_id=str(n)) for n in range(3)] + [paid("bob", 9, event_id="b")])
    publish(world, "v")
    rows = world.views.person("v", SubjectId("ann")).rows
    assert sorted(row["cents"] for row in rows) == [0, 1, 2]
    assert world.views.person("v", SubjectId("nobody")).rows == ()


IMPURE = {
    "import random": "random.random()",
    "from random import random as chance": "chance()",
    "from uuid import uuid4": "uuid4()",
    "import uuid": "uuid.uuid4()",
    "from time import time_ns": "time_ns()",
    "import time as clock": "clock.time()",
    "from datetime import datetime": "datetime.now()",
    "import datetime as dt": "dt.datetime.now(dt.timezone.utc)",
    "from datetime import date": "date.today()",
    "import os": "os.environ['X']",
    "from os import environ": "environ.get('X')",
    "from os import getenv": "getenv('X')",
    "import polars as pq": "pq.read_csv('x')",
    "from polars import scan_parquet": "scan_parquet('x')",
    "from pathlib import Path": "Path('x').read_text()",
    "import secrets": "secrets.token_hex()",
    "import numpy as np": "np.random.default_rng()",
    "": "open('x')",
    " ": "rows.sample(1)",
    "  ": "rows.write_csv('x')",
}


@pytest.mark.parametrize("place", ["class", "helper", "helper of a helper", "imported inside"])
@pytest.mark.parametrize("line", IMPURE)
def test_what_is_not_reproducible_is_refused_with_its_line_wherever_it_stands(
    tmp_path: Path, line: str, place: str
) -> None:
    """In the class, behind one helper or two, with the import in the file or in the function."""
    call = IMPURE[line]
    bodies = {
        "class": f"{line.strip()}\n{simple(f'return ({call}, rows)[1]  # here')}",
        "helper": f"{line.strip()}\ndef f(rows):\n    return ({call}, rows)[1]  # here\n{simple('return f(rows)')}",
        "helper of a helper": f"{line.strip()}\ndef g(rows):\n    return ({call}, rows)[1]  # here\n"
        f"def f(rows):\n    return g(rows)\n{simple('return f(rows)')}",
        "imported inside": f"def f(rows):\n    {line.strip() or 'pass'}\n    return ({call}, rows)[1]  # here\n"
        f"{simple('return f(rows)')}",
    }
    with pytest.raises(DefinitionError, match="not reproducible") as caught:
        registry(tmp_path, bodies[place])
    file = next(tmp_path.glob("v*.py"))
    number = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if "# here" in text)
    assert f"{file.name}:{number}:" in caught.value.message


@pytest.mark.parametrize(
    "final",
    [
        "return rows.with_columns(c('day').cast(pl.Datetime).dt.time())",
        "return rows.with_columns(pl.lit('x').str.to_time())",
        "import datetime; return rows.filter(c('day') > datetime.date(2020, 1, 1))",
        "from datetime import time; return rows.with_columns(t=time(1, 2))",
        "import math; return rows.with_columns(x=math.sqrt(2))",
        "now = rows.height; return rows.with_columns(now=now)",
        "random = rows; return random",
    ],
)
def test_what_is_reproducible_is_taken_whatever_it_is_called(tmp_path: Path, final: str) -> None:
    """`.dt.time()` is a part of a column."""
    assert registry(tmp_path, simple(final)).names() == ["v"]


def test_a_file_whose_top_level_does_not_end_stops_its_own_views_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one with any other bad line: whatever opens the lake goes on."""
    good, endless = tmp_path / "good.py", tmp_path / "endless.py"
    good.write_text(HEAD + simple())
    endless.write_text("while True:\n    pass\n")
    ViewRegistry.load([good])  # from here on a module that is there already
    monkeypatch.setattr(source, "_LOAD_SECONDS", 0.3)
    following = ViewRegistry.following(lambda: [good, endless])
    assert following.names() == ["v"]
    assert "did not end within" in following.broken()[endless].message


USES = {
    "an import": "from neighbour import twice",
    "a module": "import neighbour",
    "a package": "import family.child",
    "only a value": "from neighbour import N",
    "inside a function": "def f():\n    import neighbour",
    "not by an import statement": "import sys\ntwice = sys.modules['neighbour'].twice",
}


@pytest.mark.parametrize("use", USES)
def test_code_of_another_local_file_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    """It is not read with the view's file: a change of it would be another view under the same version."""
    (tmp_path / "neighbour.py").write_text("N = 2\ndef twice(rows):\n    return rows\n")
    (tmp_path / "family").mkdir()
    (tmp_path / "family" / "child.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "neighbour", importlib.import_module("neighbour"))
    with pytest.raises(DefinitionError, match=r"`(neighbour|family)` is a file of its own"):
        registry(tmp_path, USES[use] + "\n" + simple())


def test_an_installed_package_is_taken_and_its_version_is_the_view_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version of it may compute something else; one that the file does not use counts for nothing."""
    from projections import purity

    body = registry(tmp_path, "import numpy as np\nfrom attrs import frozen\n" + simple())
    plain = registry(tmp_path, simple())
    types = {"Paid": parse_event_type(PAID)}
    before = [fingerprint(one.get("v"), types) for one in (body, plain)]
    assert set(purity.used_libraries(type(body.get("v")))) == {"numpy", "attrs"}
    monkeypatch.setattr(purity, "version", lambda name: "9.9")
    after = [fingerprint(one.get("v"), types) for one in (body, plain)]
    assert (before[0] != after[0], before[1] == after[1]) == (True, True)
