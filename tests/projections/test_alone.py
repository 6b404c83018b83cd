"""A view is a function of its input and its own code: what is built beside it does not matter."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys import SubjectId
from projections import DefinitionError, Deriver, DeriveTask, Fold, ViewRegistry
from projections.derive import spans
from service.runtime import Runtime, initialise, open_runtime
from tests.projections.test_views import registry
from tests.world import PAID, VIEWS, erase, paid, publish, send, shred

CLEAR = {"anonymous": True}
FIELDS = {
    "x": {"type": "integer"} | CLEAR,
    "y": {"type": "integer"} | CLEAR,
    "note": {"type": "string"},
    "mood": {"type": "string"},
}
TYPES = ("Alpha", "Beta", "Gamma")
HEAD = ("occurred_on", "occurred_at", "subject", "event_id")
reads = st.dictionaries(
    st.sampled_from(TYPES), st.lists(st.sampled_from((*FIELDS, *HEAD)), min_size=1, unique=True), min_size=1
)
views = st.lists(st.tuples(st.booleans(), reads), min_size=2, max_size=4)


def source(number: int, is_fold: bool, reads: dict[str, list[str]]) -> str:
    """A view that shows every column it sees, with how many values are there for each type."""
    base, keys = ("Fold", "c('kind')") if is_fold else ("Projection", "c('event_type')")
    counted = sorted({name for fields in reads.values() for name in fields})
    measures = ", ".join(f"{name!r}: Sum(c({name!r}).is_not_null())" for name in counted)
    return f"""
class V{number}({base}):
    name = "v{number}"
    reads = {reads!r}
    keys = {{"kind": {keys}}}
    state = {{"n": Count(), {measures}}}
    def fold(self, events):
        shown = pl.lit(",".join(sorted(events.columns)))
        return events.with_columns(kind=pl.concat_str("event_type", pl.lit(":"), shown))
"""


@pytest.fixture(scope="module")
def three_types() -> Iterator[Runtime]:
    """A lake with three types of the same fields, one person erased, and one not severed."""
    with tempfile.TemporaryDirectory() as folder:
        initialise(Path(folder) / "lake")
        with open_runtime(Path(folder) / "lake") as runtime:
            for name in TYPES:
                document = {"name": name, "version": 1, "type": "object", "properties": FIELDS}
                runtime.lake.types.register(document)
            data: dict[str, Any] = {"x": 1, "y": 2, "note": "n", "mood": "m"}
            events = [
                paid(f"p{n % 5}", event_id=str(n)) | {"type": TYPES[n % 3], "data": data} for n in range(30)
            ]
            send(runtime, events)
            erase(runtime, "p1")  # whose blocks are severed
            shred(runtime, "p2")  # whose blocks are still as they were
            yield runtime


@settings(max_examples=15)
@given(views)
def test_a_view_alone_is_the_view_together_with_any_others(
    three_types: Runtime, kinds: list[tuple[bool, dict[str, list[str]]]]
) -> None:
    """Rows, tags and counts of its state are the same; a Fold sees the same columns."""
    with tempfile.TemporaryDirectory() as folder:
        body = "".join(source(n, is_fold, reads) for n, (is_fold, reads) in enumerate(kinds))
        found = registry(Path(folder), body)
    snapshot = three_types.lake.events.snapshot()
    assert snapshot is not None
    deriver = Deriver(three_types.lake.replay(), three_types.lake.types, found)
    names = tuple(found.names())
    together = deriver.run(DeriveTask(names, snapshot.snapshot_id, 0, 3, 2))
    for name in names:
        alone = deriver.run(DeriveTask((name,), snapshot.snapshot_id, 0, 3, 2))[name]
        # As an erasure derives them anew: the buckets of the people who were erased.
        by_bucket = [
            deriver.run(DeriveTask((name,), snapshot.snapshot_id, b, b + 1, 2))[name] for b in (0, 2)
        ]
        for part in ("rows", "tags", "counts"):
            other = getattr(together[name], part)
            for one in (getattr(alone, part), pl.concat([getattr(found, part) for found in by_bucket])):
                assert one.sort(one.columns).equals(other.sort(other.columns)), (name, part)
        declared = {field for fields in found.get(name).reads.values() for field in fields}
        seen = alone.rows["kind"].to_list()
        assert {kind.partition(":")[0] for kind in seen} == set(found.get(name).reads)
        if isinstance(found.get(name), Fold):
            built_in = {"subject_ref", "ingest_day", "occurred_on", "event_type", "occurred_at", "event_id"}
            assert {kind.partition(":")[2] for kind in seen} == {",".join(sorted(declared | built_in))}


def test_views_derived_anew_after_an_erasure_one_by_one_are_those_derived_anew_in_one_scan(
    tmp_path: Path,
) -> None:
    """Of every kind; a difference would be another result over the same input, which a build refuses."""
    initialise(tmp_path / "lake", [VIEWS])
    config = tmp_path / "lake" / "shredlake.toml"
    config.write_text(config.read_text().replace("[projections]", "[projections]\nbucket_bits = 2"))
    with open_runtime(tmp_path / "lake") as runtime:
        runtime.lake.types.register(PAID)
        send(runtime, [paid(f"p{n % 9}", 100 + n, event_id=str(n), note="n") for n in range(40)])
        publish(runtime)
        ref = runtime.keyring.ref_of(SubjectId("p3"))
        assert ref is not None
        shred(runtime, "p3")
        names = runtime.views.registry.names()
        runtime.views.forget_people([ref])
        publish(runtime)
        together = {name: _rows(runtime, name) for name in names}
        for name in reversed(names):
            runtime.views.forget_people([ref])
            (built,) = runtime.views.build([name])
            assert built.derived == 1
            runtime.views.publish([built], who="", why="")
            assert _rows(runtime, name).equals(together[name]), name


def _rows(runtime: Runtime, name: str) -> pl.DataFrame:
    rows = runtime.views.as_reported(name).rows
    return rows.sort(rows.columns)


BESIDE = """
class Mine(Projection):
    name = "mine"
    reads = {"Alpha": ["x", "occurred_on"], "Beta": ["occurred_on"]}
    keys = {"has": c("x").is_not_null(), "kind": c("event_type")}
    state = {"n": Count()}

class Other(Projection):
    name = "other"
    reads = {"Alpha": ["x", "note"], "Beta": ["x", "note"]}
    keys = {"kind": c("event_type")}
    state = {"n": Count()}
"""


def test_first_build_catch_up_and_rebuild_together_give_what_each_gives_alone(tmp_path: Path) -> None:
    """Also recomputed: a view that declares a field of one type alone sees null in the other."""
    initialise(tmp_path / "lake")
    with open_runtime(tmp_path / "lake") as runtime:
        for name in TYPES:
            runtime.lake.types.register({"name": name, "version": 1, "type": "object", "properties": FIELDS})
        runtime.views.registry._views = registry(tmp_path, BESIDE)._views
        for turn in range(2):  # the second is merged into the states of the first
            send(
                runtime,
                [
                    paid(f"p{n}", event_id=f"{turn}-{n}") | {"type": TYPES[n % 2], "data": {"x": 1}}
                    for n in range(8)
                ],
            )
            publish(runtime, "mine", "other")
            expected = [(False, "Beta", 4 * turn + 4), (True, "Alpha", 4 * turn + 4)]
            assert runtime.views.as_reported("mine").rows.rows() == expected
            assert runtime.views.as_recomputed("mine").rows.rows() == expected
        publish(runtime, "mine", "other", rebuild=True)
        assert runtime.views.as_reported("mine").rows.rows() == expected
        publish(runtime, "mine", rebuild=True)
        assert runtime.views.as_reported("mine").rows.rows() == expected


def test_a_name_of_two_types_is_refused_by_name(tmp_path: Path) -> None:
    """Polars would raise while it puts the events together."""
    initialise(tmp_path / "lake")
    with open_runtime(tmp_path / "lake") as runtime:
        for name, kind in (("Alpha", "integer"), ("Beta", "string")):
            properties = {"x": {"type": kind} | CLEAR}
            runtime.lake.types.register(
                {"name": name, "version": 1, "type": "object", "properties": properties}
            )
        runtime.views.registry._views = registry(tmp_path, BESIDE)._views
        view = ViewRegistry.get(runtime.views.registry, "mine")
        assert runtime.views.builder.version_of(view)  # `x` of one type alone
        send(runtime, [paid("p", event_id="1") | {"type": "Alpha", "data": {"x": 1}}])
        body = BESIDE.replace('"note"', '"occurred_at"')
        runtime.views.registry._views = registry(tmp_path, body)._views
        with pytest.raises(DefinitionError, match="`x` is Int64 in one event type, String in another"):
            publish(runtime, "other")


@given(st.sets(st.integers(0, 40)), st.one_of(st.integers(1, 9), st.integers(10, 200)))
def test_spans_cover_every_bucket_once_and_none_is_longer_than_a_task(buckets: set[int], most: int) -> None:
    """And there are no more than it takes, with small gaps gone over."""
    found = spans(buckets, most)
    covered = [bucket for first, last in found for bucket in range(first, last + 1)]
    assert len(covered) == len(set(covered))
    assert buckets <= set(covered)
    assert all(first in buckets and last in buckets and last - first < most for first, last in found)
    for (begun, before), (first, _) in pairwise(found):
        assert first - before - 1 > most // 64 or first - begun >= most
