"""Litter that an erasure meets: half-written data files, and files of views that do not load."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from keys import SubjectId
from lake import LetterRedaction
from lake.upkeeprules import SWEEP_GRACE_SECONDS
from projections import UnknownView
from purge import Status, payload_of
from service.cli.main import app
from service.doctor import examine
from service.runtime import Runtime, initialise, open_runtime
from tests.world import PAID, VIEWS, erase, paid, publish, send

ANN = SubjectId("customer-ann-0001")


def fill(runtime: Runtime) -> None:
    """Two people, published."""
    send(runtime, [paid(ANN.reveal(), 5, event_id="1", note="n"), paid("bob", 7, event_id="2")])
    publish(runtime)


@pytest.mark.parametrize("keep", [0, 1, 4, 100, -1], ids=["empty", "byte", "magic", "start", "all but one"])
@pytest.mark.parametrize("is_old", [True, False], ids=["old", "young"])
def test_a_half_written_file_is_deleted_before_the_receipt_or_named_in_it(
    world: Runtime, keep: int, is_old: bool
) -> None:
    """However much of it there is; a young one may be a writer's."""
    fill(world)
    (whole,) = (Path(f.file_path.removeprefix("file://")) for f in world.lake.events.files())
    torn = whole.with_name(f"00000-torn-{keep}.parquet")
    torn.write_bytes(whole.read_bytes()[:keep])
    if is_old:
        at = time.time() - SWEEP_GRACE_SECONDS - 60
        os.utime(torn, (at, at))
    done = world.purge.journal.get(erase(world, ANN.reveal()))
    assert done.status is Status.COMPLETED
    open_stores = payload_of(done.receipt or b"")["predicate"]["open_stores"]
    assert torn.exists() is not is_old
    assert [("half-written" in one["store"]) for one in open_stores] == ([] if is_old else [True])


BAD = {
    "missing": None,
    "syntax": "def (",
    "raises": "raise ValueError('a value')",
    "leaves": "import sys\nsys.exit(3)",
    "impure": "import polars as pl\nfrom projections import Fold\nclass X(Fold):\n    name = 'X Y'\n",
    "same name": VIEWS.read_text(),
}


@pytest.mark.parametrize("how", list(BAD))
def test_a_file_of_views_that_does_not_load_stops_its_own_views_alone(tmp_path: Path, how: str) -> None:
    """Ingest, views of other files, erasures, receipts and doctor go on; doctor names the file."""
    bad = tmp_path / "bad_views.py"
    if BAD[how] is not None:
        bad.write_text(BAD[how] or "")
    home = tmp_path / "lake"
    initialise(home, [VIEWS, bad])
    with open_runtime(home) as runtime:
        runtime.lake.types.register(PAID)
        fill(runtime)
        done = runtime.purge.journal.get(erase(runtime, ANN.reveal()))
        assert done.status is Status.COMPLETED
        assert payload_of(done.receipt or b"")["predicate"]["touched"]["views_withdrawn"] == {}
        named = [one for one in examine(runtime) if "bad_views.py" in one.check]
        assert [one.level for one in named] == ["error"]
        assert "a value" not in named[0].text
        with pytest.raises(UnknownView, match="two views" if how == "same name" else "bad_views"):
            runtime.views.registry.get("nowhere")


def test_an_erasure_in_a_process_from_before_a_view_was_published_does_not_withdraw_it(
    tmp_path: Path,
) -> None:
    """Neither one added to a known file nor one in a file that came with the settings."""
    home, first, second = tmp_path / "lake", tmp_path / "first.py", tmp_path / "second.py"
    text = (
        "import polars as pl\nfrom projections import Count, Projection\nclass {name}(Projection):\n"
        "    name = '{name}'.lower()\n    reads = {{'Paid': ['subject']}}\n"
        "    keys = {{'one': pl.lit(1)}}\n    state = {{'n': Count()}}\n"
    )
    first.write_text(text.format(name="One"))
    initialise(home, [first])
    with open_runtime(home) as server:
        server.lake.types.register(PAID)
        fill(server)
        first.write_text(text.format(name="One") + text.format(name="Two"))
        second.write_text(text.format(name="Three"))
        config = home / "shredlake.toml"
        config.write_text(config.read_text().replace(f'"{first}"', f'"{first}", "{second}"'))
        with open_runtime(home) as other:
            publish(other)
        done = server.purge.journal.get(erase(server, ANN.reveal()))
        touched = payload_of(done.receipt or b"")["predicate"]["touched"]
        assert (set(touched["views"]), touched["views_withdrawn"]) == ({"one", "two", "three"}, {})
        first.write_text("def (")
        done = server.purge.journal.get(erase(server, "bob"))
        touched = payload_of(done.receipt or b"")["predicate"]["touched"]
        assert (set(touched["views"]), touched["views_withdrawn"]) == ({"one", "two", "three"}, {})


def test_a_relative_path_of_views_begins_at_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From whatever folder the command is called."""
    home = tmp_path / "lake"
    initialise(home)
    (home / "my_views.py").write_text(VIEWS.read_text())
    config = home / "shredlake.toml"
    config.write_text(config.read_text().replace("files = []", 'files = ["my_views.py"]'))
    monkeypatch.chdir(tmp_path)
    listed = CliRunner().invoke(app, ["--home", str(home), "keys", "stats"])
    assert listed.exit_code == 0
    with open_runtime(home) as runtime:
        assert "balance" in runtime.views.registry.names()


def test_a_whole_file_that_no_snapshot_refers_to_is_not_taken_for_a_torn_one(world: Runtime) -> None:
    """Its letters are looked at, and their keys destroyed."""
    fill(world)
    (whole,) = (Path(f.file_path.removeprefix("file://")) for f in world.lake.events.files())
    whole.with_name("whole.parquet").write_bytes(whole.read_bytes())
    whole.with_name("torn.parquet").write_bytes(whole.read_bytes()[:-1])
    torn = [one.location.rpartition("/")[2] for one in LetterRedaction(world.lake).torn()]
    assert torn == ["torn.parquet"]
