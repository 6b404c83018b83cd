"""An erasure beside views that cannot be derived anew: it goes to its receipt, and says what became of them."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from keys import CustodianUnavailable, PageStoreUnavailable, SubjectId
from lake import StorageFailed
from projections import Check, NotPublished, bring_back
from projections.codewatch import CodeWatch
from purge import Status, payload_of
from service.runtime import Runtime, initialise, open_runtime
from tests.world import PAID, erase, paid, publish, send

ANN = SubjectId("customer-ann-0001")
SECRET = "for the clinic"


def fill(runtime: Runtime) -> None:
    """Three people, published."""
    people = [paid(ANN.reveal(), 5, event_id="1"), paid("bob", 7, event_id="2", note=SECRET)]
    send(runtime, [*people, paid("cem", 9, event_id="3")])
    publish(runtime)


def break_view(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, name: str, **how: Any) -> None:
    """Gives a view's class other code, as an edit of its file would."""
    for attribute, value in how.items():
        monkeypatch.setattr(type(runtime.views.registry.get(name)), attribute, value)


def _endless(self: object, events: pl.DataFrame) -> pl.DataFrame:
    return _endless(self, events)


def _raises(error: BaseException) -> Callable[..., Any]:
    def code(*_: object) -> Any:
        raise error

    return code


def _panics(self: object, events: pl.DataFrame) -> pl.DataFrame:
    raise pl.exceptions.PanicException(SECRET)


BROKEN: dict[str, dict[str, Any]] = {
    "raises": {"fold": _raises(ValueError(SECRET))},
    "raises as a custodian that is away": {"fold": _raises(CustodianUnavailable(SECRET))},
    "has a final that raises as a store that is away": {"final": _raises(StorageFailed(SECRET))},
    "leaves": {"fold": _raises(SystemExit(SECRET))},
    "recurses": {"fold": _endless},
    "runs out of memory": {"fold": _raises(MemoryError(SECRET))},
    "panics": {"fold": _panics},
    "returns nothing": {"fold": lambda self, events: None},
    "returns other columns": {"fold": lambda self, events: events.select(pl.lit(1).alias("x"))},
    "casts a text": {"fold": lambda self, events: events.with_columns(pl.lit(SECRET).cast(pl.Int64))},
    "has a check that fails": {"checks": [Check("never", lambda new, old: SECRET)]},
    "has a check that raises": {"checks": [Check("raises", _raises(KeyError(SECRET)))]},
    "has a final that raises": {"final": _raises(AssertionError(SECRET))},
    "reads an unknown type": {"reads": {"Nowhere": ["cents"]}},
    "reads an unknown field": {"reads": {"Paid": ["nothing"]}},
}


@pytest.mark.parametrize("how", list(BROKEN))
def test_whatever_a_view_s_code_does_the_erasure_ends_and_only_that_view_is_withdrawn(
    world: Runtime, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The receipt names the view and a reason without a value; the others are published without the person."""
    fill(world)
    with monkeypatch.context() as edited:
        break_view(world, edited, "bands", **BROKEN[how])
        done = world.purge.journal.get(erase(world, ANN.reveal()))
    assert done.status is Status.COMPLETED
    touched = payload_of(done.receipt or b"")["predicate"]["touched"]
    assert set(touched["views"]) == {"people_per_day", "balance"}
    assert list(touched["views_withdrawn"]) == ["bands"]
    assert SECRET not in json.dumps(payload_of(done.receipt or b""))
    assert world.views.as_reported("people_per_day").rows["people"].to_list() == [2]
    with pytest.raises(NotPublished, match="withdrawn") as told:
        world.views.as_reported("bands")
    assert SECRET not in str(told.value)
    assert bring_back(world.views, who="test", why="mended") == ["bands"]
    assert world.views.as_reported("bands").rows["people"].sum() == 2
    assert world.views.ledger.aside() == {}


def test_a_withdrawn_view_comes_back_with_the_next_erasure_that_can_build_it(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to remember it."""
    fill(world)
    with monkeypatch.context() as edited:
        break_view(world, edited, "people_per_day", final=_raises(ValueError()))
        erase(world, ANN.reveal())
    erase(world, "bob")
    assert world.views.as_reported("people_per_day").rows["people"].to_list() == [1]


def test_by_setting_a_broken_view_is_served_as_stale_and_the_receipt_lists_it_as_not_addressed(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers are told; the mark ends with the next publication."""
    fill(world)
    world.purge._steps._serve_stale = ("people_per_day",)
    with monkeypatch.context() as edited:
        break_view(world, edited, "people_per_day", final=_raises(ValueError(SECRET)))
        break_view(world, edited, "bands", fold=_raises(ValueError(SECRET)))
        done = world.purge.journal.get(erase(world, ANN.reveal()))
    assert done.status is Status.COMPLETED
    predicate = payload_of(done.receipt or b"")["predicate"]
    assert list(predicate["touched"]["views_withdrawn"]) == ["bands"]
    assert any("people_per_day" in one and "stale" in one for one in predicate["not_addressed"])
    assert not any("people_per_day" in one for one in predicate["touched"]["views"])
    answer = world.views.as_reported("people_per_day")
    assert answer.stale is not None
    assert answer.rows["people"].to_list() == [3]
    publish(world)
    assert world.views.as_reported("people_per_day").stale is None
    assert world.views.as_reported("people_per_day").rows["people"].to_list() == [2]


@pytest.mark.parametrize(
    "outage", [CustodianUnavailable("away"), PageStoreUnavailable("away"), StorageFailed("away")]
)
def test_an_outage_withdraws_no_view_and_leaves_the_request_to_be_resumed(
    world: Runtime, monkeypatch: pytest.MonkeyPatch, outage: Exception
) -> None:
    """Keys and lake are not the view's fault."""
    fill(world)
    request = world.purge.submit(ANN).request
    with monkeypatch.context() as away:
        away.setattr(world.views.builder._replay, "stored", _raises(outage))
        away.setattr(world.views.builder._executor, "map", _raises(outage))
        with pytest.raises(type(outage)):
            world.purge.run(request.request_id)
    assert world.purge.journal.get(request.request_id).status is Status.INCOMPLETE
    assert world.views.ledger.aside() == {}
    assert world.purge.run(request.request_id).status is Status.COMPLETED
    assert set(world.views.ledger.current().entries) == set(world.views.registry.names())  # type: ignore[union-attr]


def test_a_worker_process_that_dies_costs_its_own_view_alone(tmp_path: Path) -> None:
    """The others are built by the workers as before."""
    file = tmp_path / "views.py"
    file.write_text(
        "import os\nimport polars as pl\nfrom projections import Count, Fold, Projection\n"
        "class Good(Projection):\n    name = 'good'\n    reads = {'Paid': ['subject', 'cents']}\n"
        "    keys = {'cents': pl.col('cents')}\n    state = {'n': Count()}\n"
        "class Dies(Fold):\n    name = 'dies'\n    reads = {'Paid': ['cents']}\n"
        "    keys = {'one': pl.col('one')}\n    impersonal = ['one']\n    state = {'n': Count()}\n"
        "    def fold(self, events):\n"
        # Looked up by name: a view that says so openly is refused as not reproducible.
        f"        if vars(os.path)['exists']({str(tmp_path / 'die')!r}):\n            vars(os)['_exit'](9)\n"
        "        return events.select('subject_ref', one=pl.lit(1))\n"
    )
    home = tmp_path / "lake"
    initialise(home, [file])
    config = home / "shredlake.toml"
    config.write_text(config.read_text().replace("files = ", "workers = 2\nbucket_bits = 2\nfiles = "))
    with open_runtime(home) as runtime:
        runtime.lake.types.register(PAID)
        fill(runtime)
        (tmp_path / "die").touch()
        done = runtime.purge.journal.get(erase(runtime, ANN.reveal()))
        assert done.status is Status.COMPLETED
        touched = payload_of(done.receipt or b"")["predicate"]["touched"]
        assert (touched["views"], list(touched["views_withdrawn"])) == (["good"], ["dies"])


class Stopwatch:
    """Stands still until somebody hangs."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def watched_by(world: Runtime, clock_seconds: Callable[[], float]) -> CodeWatch:
    """Gives the world's builder a watch of a minute a call by this clock."""
    world.views.builder.watch = CodeWatch(world.home / "views" / "code", 60, clock_seconds)
    return world.views.builder.watch


@pytest.mark.parametrize("part", ["fold", "final", "checks"])
def test_code_that_does_not_end_is_ended_and_not_run_again_until_somebody_asks(
    world: Runtime, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """The erasure goes to its receipt; neither the next one nor a server's look waits for that code again."""
    fill(world)
    clock = Stopwatch()
    runs: list[str] = []

    def hangs(*_: object) -> Any:
        runs.append(part)
        clock.seconds += 61
        for _ in itertools.count():
            pass

    watched_by(world, clock)
    with monkeypatch.context() as edited:
        break_view(world, edited, "bands", **{part: [Check("hangs", hangs)] if part == "checks" else hangs})
        done = world.purge.journal.get(erase(world, ANN.reveal()))
        assert done.status is Status.COMPLETED
        touched = payload_of(done.receipt or b"")["predicate"]["touched"]
        assert touched["views_withdrawn"] == {"bands": "its code does not end"}
        assert set(touched["views"]) == {"people_per_day", "balance"}
        assert bring_back(world.views, who="test", why="a look") == []
        assert world.purge.journal.get(erase(world, "bob")).status is Status.COMPLETED
        assert runs == [part]
    publish(world)
    assert world.views.as_reported("bands").rows["people"].sum() == 1
    assert list((world.home / "views" / "code").iterdir()) == []


_DYING = """
    import itertools, os, signal, sys
    from pathlib import Path
    from projections.codewatch import CodeWatch
    def catches_all():
        while True:
            try:
                while True:
                    pass
            except BaseException:
                pass
    how = {"kill": lambda: os.kill(os.getpid(), signal.SIGKILL), "catch": catches_all,
           "native": lambda: sum(itertools.repeat(0)), "end": lambda: None}
    with CodeWatch(Path(sys.argv[1]), 0.3).on() as watched:
        watched.versions["bands"] = sys.argv[2]
        watched.call("bands", how[sys.argv[3]])
        os.kill(os.getpid(), signal.SIGKILL)
"""


def die(folder: Path, version: str, how: str) -> int:
    """Runs code of a view `bands` in a process that dies of it; returns its exit code."""
    command = [sys.executable, "-c", textwrap.dedent(_DYING), str(folder), version, how]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode


_TRACED = """
    import sys
    from projections.codewatch import CodeWatch
    from projections.errors import ViewHangs
    def hangs():
        while True:
            pass
    with CodeWatch(None, 0.05).on() as watched:
        for _ in range(3):
            try:
                watched.call("bands", hangs)
            except ViewHangs:
                sys.settrace(lambda *_: None)
                assert (lambda: 1)() == 1
                sys.settrace(None)
    print("to the end")
"""


def test_a_debugger_goes_on_where_code_that_did_not_end_was_ended() -> None:
    """The interpreter waits for nothing more: in CPython 3.11 a traced step would look for it for ever."""
    command = [sys.executable, "-c", textwrap.dedent(_TRACED)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "to the end\n"


def test_code_that_catches_what_ends_it_or_never_looks_up_ends_its_process(tmp_path: Path) -> None:
    """The first is known at once; of the second a file tells whose code ran, as of any death."""
    caught, native = CodeWatch(tmp_path / "caught"), CodeWatch(tmp_path / "native")
    assert die(tmp_path / "caught", "v1", "catch") == 70
    assert caught.given_up("bands", "v1") == "its code does not end"
    assert die(tmp_path / "native", "v1", "native") == 1
    assert native.given_up("bands", "v1") is None
    assert [path.read_text() for path in (tmp_path / "native").iterdir()] == ["bands v1"]


def test_a_process_that_dies_outside_of_a_view_s_code_is_not_the_view_s_fault(tmp_path: Path) -> None:
    """Whatever killed it, the view is built on."""
    for _ in range(2):
        assert die(tmp_path, "v1", "end") == -signal.SIGKILL
    assert CodeWatch(tmp_path).given_up("bands", "v1") is None


def test_code_in_which_two_processes_died_is_not_run_by_an_erasure(
    world: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every start of the server would die of it, and nobody would ever be erased."""
    fill(world)
    real = world.views.builder.version_of
    version = real(world.views.registry.get("bands"))
    for _ in range(2):
        assert die(world.home / "views" / "code", version, "kill") == -signal.SIGKILL
    with monkeypatch.context() as edited:
        break_view(world, edited, "bands", final=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        edited.setattr(
            world.views.builder, "version_of", lambda view: version if view.name == "bands" else real(view)
        )
        request = world.purge.submit(ANN).request
        done = world.purge.run(request.request_id)
    touched = payload_of(done.receipt or b"")["predicate"]["touched"]
    assert touched["views_withdrawn"] == {"bands": "the process that ran its code died, more than once"}
    assert set(touched["views"]) == {"people_per_day", "balance"}
    assert world.views.builder.watch.given_up("bands", "another version") is None
    publish(world)
    assert world.views.as_reported("bands").rows["people"].sum() == 2
    assert world.views.builder.watch.given_up("bands", version) is None
