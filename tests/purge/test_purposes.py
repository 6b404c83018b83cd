"""Erasing one purpose takes every row that was derived from it, in every publication there ever was."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from keys import ALL_PURPOSES, SubjectId
from projections.tables import ViewTables
from purge import Status, payload_of
from service.doctor import examine
from service.runtime import Runtime, initialise, open_runtime
from tests.projections.test_exposure import forget_of_records
from tests.world import paid, publish, send

ANN, BOB, CID = "customer-ann", "customer-bob", "customer-cid"
CLICK = {
    "name": "Click",
    "type": "object",
    "properties": {
        "page": {"type": "string"},
        "ad": {"type": "string", "purpose": "marketing"},
        "score": {"type": "string", "purpose": "rating"},
    },
}
VIEWS = """
import polars as pl
from projections import Fold, Last, Projection
c = pl.col

class Pages(Projection):
    name = "pages"
    reads = {"Click": ["page"]}
    keys = {"subject_ref": c("subject_ref")}
    state = {"page": Last(c("page"))}

class Ads(Projection):
    name = "ads"
    reads = {"Click/subject/marketing": ["ad"]}
    keys = {"subject_ref": c("subject_ref")}
    state = {"ad": Last(c("ad"))}

class Scores(Fold):
    name = "scores"
    reads = {"Click/subject/rating": ["score"], "Click/subject/marketing": ["ad"], "Click": ["page"]}

    def fold(self, events):
        return events.group_by("subject_ref", maintain_order=True).agg(
            score=c("score").drop_nulls().last(), ad=c("ad").drop_nulls().last(),
            page=c("page").drop_nulls().last(),
        )
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Runtime]:
    """Views over one, another, and three purposes; two publications of each."""
    code = tmp_path / "views.py"
    code.write_text(VIEWS)
    initialise(tmp_path / "lake", [code])
    with open_runtime(tmp_path / "lake") as runtime:
        runtime.lake.types.register(CLICK)
        for number in (1, 2):
            send(
                runtime,
                [
                    paid(one, event_id=f"{one}-{number}")
                    | {
                        "type": "Click",
                        "data": {"page": f"page{number} of {one}"}
                        | ({"ad": f"ad{number} of {one}", "score": f"score of {one}"} if one != CID else {}),
                    }
                    for one in (ANN, BOB, CID)
                ],
            )
            publish(runtime)
        yield runtime


def moments(runtime: Runtime) -> list[datetime | None]:
    """When each publication was what readers saw, and now."""
    return [None, *(release.released_at for release in runtime.views.ledger.releases())]


def shown(runtime: Runtime, name: str) -> list[str]:
    """Everything readable of a view in any publication and any snapshot of any of its tables."""
    found = [str(runtime.views.as_reported(name, at).rows.to_dicts()) for at in moments(runtime)]
    tables = ViewTables(runtime.lake.warehouse, runtime.keyring)
    for one in runtime.views.ledger.history(name):
        for snapshot in runtime.lake.warehouse.table(one.table).history():
            rows = tables.read_subjects(one.table, snapshot.snapshot_id, one.columns)
            found.append(str(rows.frame.to_dicts()))
    return found


def erase_purpose(runtime: Runtime, person: str, purpose: str) -> None:
    """The whole way to the receipt."""
    request = runtime.purge.submit(SubjectId(person), purpose=purpose).request
    assert runtime.purge.run(request.request_id).status is Status.COMPLETED


@pytest.mark.parametrize(
    ("purpose", "gone", "kept"),
    [
        ("marketing", {"ads", "scores"}, {"pages"}),
        ("rating", {"scores"}, {"ads", "pages"}),
        ("service", {"pages", "scores"}, {"ads"}),
    ],
)
def test_an_erased_purpose_leaves_no_row_derived_from_it_readable_in_any_publication(
    world: Runtime, purpose: str, gone: set[str], kept: set[str]
) -> None:
    """Also not in old publications and old snapshots; rows of views that do not use it stay, and all others."""
    before = {name: shown(world, name) for name in gone | kept}
    old = [release.released_at for release in world.views.ledger.releases()]
    assert all(any(f"of {ANN}" in one for one in texts) for texts in before.values())
    erase_purpose(world, ANN, purpose)
    value = {"marketing": "ad", "rating": "score", "service": "page"}[purpose]
    for name in gone:
        texts = shown(world, name)
        assert not [one for one in texts if f"{value}1 of {ANN}" in one or f"{value}2 of {ANN}" in one]
        assert not [one for one in texts if f"{value} of {ANN}" in one]
        for at in old:
            assert world.views.as_reported(name, at).shredded == 1
            assert f"of {ANN}" not in str(world.views.as_reported(name, at).rows.to_dicts())
        assert all(any(f"of {BOB}" in one for one in shown(world, name)) for _ in "1")
    for name in kept:
        assert [any(f"of {ANN}" in one for one in shown(world, name))] == [True]
        for at in old:
            assert f"of {ANN}" in str(world.views.as_reported(name, at).rows.to_dicts())


def test_who_gave_nothing_for_a_purpose_keeps_the_row_when_others_withdraw_it(world: Runtime) -> None:
    """A person without a key of that purpose has a row all the same; and erasing the person takes it."""
    erase_purpose(world, ANN, "marketing")
    assert f"page2 of {CID}" in str(world.views.as_reported("scores").rows.to_dicts())
    done = world.purge.run(world.purge.submit(SubjectId(CID)).request.request_id)
    assert done.status is Status.COMPLETED
    assert not [one for one in shown(world, "scores") if f"of {CID}" in one]


def test_rows_of_before_purposes_were_recorded_are_named_to_whom_a_purpose_is_erased(world: Runtime) -> None:
    """They may lie under `service` alone: by doctor with the way out, and in the receipt of that purpose alone."""
    assert not [one for one in examine(world) if one.check.startswith("publications of")]
    forget_of_records(world, "purposes")
    told = {one.check: one.text for one in examine(world) if one.check.startswith("publications of")}
    assert set(told) == {f"publications of {name}" for name in ("ads", "pages", "scores")}
    assert "drop-publications ads" in told["publications of ads"]
    for person, purpose, is_named in ((ANN, "marketing", True), (BOB, ALL_PURPOSES, False)):
        request = world.purge.submit(SubjectId(person), purpose=purpose).request
        receipt = payload_of(world.purge.run(request.request_id).receipt or b"")
        named = [one for one in receipt["predicate"]["not_addressed"] if "`service` alone" in one]
        assert bool(named) == is_named
