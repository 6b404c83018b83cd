"""An erasure beside views that cannot be derived anew: it goes to its receipt, and says what became of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from keys import CustodianUnavailable, PageStoreUnavailable, SubjectId
from lake import StorageFailed
from projections import Check, NotPublished, bring_back
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
