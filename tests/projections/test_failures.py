"""What a view's code raises becomes one error that names the view and the place, and shows nobody's value."""

from __future__ import annotations

import contextlib
import functools
import pickle
import traceback
from pathlib import Path

import polars as pl
import pytest

from keys import CustodianUnavailable, ShredlakeError
from lake import StorageFailed
from projections import DefinitionError, NotPublished, ProcessPool, ViewFailed, ViewRegistry
from projections.authorcode import run_author_code
from service.errors import BadSettings
from service.runtime import Runtime, open_deriver, open_runtime
from tests.projections.test_views import registry
from tests.world import paid, publish, send

SECRET = "for the clinic"
VIEW = """
class V({base}):
    name = "v"
    shows_personal = "because it is a test"
    reads = {{"Paid": ["cents", "note", "occurred_on", "occurred_at"]}}
    keys = {{"day": {key}}}
    state = {{"events": Count(), "cents": Sum({measure})}}
    checks = [{check}]
    def final(self, rows):
        {final}
    def fold(self, events):
        {fold}
"""
PARTS: dict[str, dict[str, str]] = {
    "key `day`": {"key": 'c("note").cast(pl.Int64)', "base": "Fold"},
    "measure `cents`": {"measure": 'c("note").cast(pl.Int64)'},
    "`fold`": {"base": "Fold", "fold": 'return events.with_columns(c("note").cast(pl.Int64))'},
    "`fold` ": {"base": "Fold", "fold": "raise KeyError(events['note'].to_list())"},
    "`fold`  ": {"base": "Fold", "fold": "raise SystemExit(events['note'].to_list())"},
    "`final`": {"base": "Fold", "fold": "return events", "final": "raise ValueError(rows.to_dicts())"},
    "`final` ": {"final": "return rows.drop('day')"},
    "check `c`": {"check": "Check('c', lambda new, old: 1 / 0)"},
}


def source(**parts: str) -> str:
    """The view with some parts as given."""
    usual = {
        "base": "Projection",
        "key": 'c("occurred_on")',
        "measure": 'c("cents")',
        "check": "",
        "final": "return rows",
        "fold": "return events",
    }
    return "from projections import Check\n" + VIEW.format(**usual | parts)


def failing(world: Runtime, tmp_path: Path, parts: dict[str, str]) -> ViewFailed:
    """The error of a build of the view."""
    world.views.registry._views = registry(tmp_path, source(**parts))._views
    send(world, [paid("ann", event_id="1", note=SECRET), paid("bob", event_id="2", note="7")])
    with pytest.raises(ViewFailed) as caught:
        publish(world, "v")
    return caught.value


@pytest.mark.parametrize("part", PARTS)
def test_what_any_part_of_a_view_raises_names_view_part_and_line_and_no_value(
    world: Runtime, tmp_path: Path, part: str
) -> None:
    """Neither the text, nor the traceback with every context, nor the copy from another process has it."""
    error = failing(world, tmp_path, PARTS[part])
    assert (error.view, error.part) == ("v", part.strip())
    file = next(tmp_path.glob("v*.py"))
    lines = file.read_text().splitlines()
    assert error.place.startswith(file.name)
    if part != "`final` ":  # the frame's sort raises: no line of the view runs
        line = lines[int(error.place.rpartition(":")[2]) - 1]
        assert (
            next(iter(text for text in PARTS[part].values() if text != "Fold" and text != "return events"))
            in line
            or "final" in part
        )
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert (copy.next_step, copy.place) == (error.next_step, error.place)
    shown = str(error) + error.next_step + "".join(traceback.format_exception(error))
    assert SECRET not in shown
    assert error.__context__ is None
    assert error.__cause__ is None
    with pytest.raises(NotPublished):
        world.views.as_reported("v")


def test_a_conversion_that_fails_says_types_and_counts(world: Runtime, tmp_path: Path) -> None:
    """That is what an author needs, and it is no value."""
    error = failing(world, tmp_path, {"measure": 'c("note").cast(pl.Int64)'})
    assert "str does not convert to i64 for 1 of 1 values" in error.message or "1 of 2" in error.message
    assert "strict=False" in error.next_step


def test_a_missing_column_is_named_with_the_columns_at_hand(world: Runtime, tmp_path: Path) -> None:
    """Both names stand in the view's own source."""
    error = failing(world, tmp_path, {"measure": 'c("cent")'})
    assert "there is no column 'cent'; the view reads cents, note" in error.message


def test_a_worker_s_error_is_the_same_error(world: Runtime, tmp_path: Path) -> None:
    """It crosses the process boundary, without the values that the worker's traceback could quote."""
    file = tmp_path / "views.py"
    file.write_text("import polars as pl\nfrom projections import *\nc = pl.col\n")
    file.write_text(file.read_text() + source(measure='c("note").cast(pl.Int64)'))
    config = world.home / "shredlake.toml"
    config.write_text(config.read_text().replace(str(world.settings.projections.files[0]), str(file)))
    send(world, [paid("ann", event_id="1", note=SECRET)])
    pool = ProcessPool(lambda: contextlib.nullcontext(functools.partial(open_deriver, world.home)), 1)
    with open_runtime(world.home, executor=pool) as other, pytest.raises(ViewFailed) as caught:
        other.views.build(["v"])
    assert (caught.value.view, caught.value.part) == ("v", "measure `cents`")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


class _Plain:
    name = "v"
    shows_personal = "because it is a test"


@pytest.mark.parametrize(
    "error",
    [
        CustodianUnavailable(SECRET),
        StorageFailed(SECRET),
        BadSettings(SECRET),
        NotPublished(SECRET),
        ViewFailed("other", SECRET, SECRET),
    ],
)
def test_an_error_of_ours_that_an_author_s_code_raises_is_the_view_s_and_no_outage(
    tmp_path: Path, error: ShredlakeError
) -> None:
    """A helper of the author's can raise any class with any text, and nothing waits for it to pass."""
    view = registry(tmp_path, source()).get("v")

    def raises() -> None:
        raise error

    with pytest.raises(ViewFailed, match=type(error).__name__) as caught:
        run_author_code(view, "`fold`", raises)
    assert caught.value.view == "v"
    assert not caught.value.retry_helps
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("error", [MemoryError("m"), KeyboardInterrupt()])
def test_what_is_not_the_view_s_fault_is_not_called_so(error: BaseException) -> None:
    """Out of memory and Ctrl-C pass as they are."""

    def raises() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run_author_code(_Plain(), "`fold`", raises)  # type: ignore[arg-type]
    assert caught.value is error


def test_a_panic_of_the_engine_is_the_view_s_error(tmp_path: Path) -> None:
    """It is no `Exception`, and would end the process."""
    view = registry(tmp_path, source()).get("v")

    def panics() -> None:
        raise pl.exceptions.PanicException(SECRET)

    with pytest.raises(ViewFailed, match="PanicException") as caught:
        run_author_code(view, "`final`", panics)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (f"x = 1\nint('{SECRET}')\n", ":2 "),
        (f"x = 1\n\nx = '{SECRET}\n", ":3 "),
        (f"def f():\n    raise SystemExit('{SECRET}')\nf()\n", ":2 "),
        (f"# coding: {'nothing'}\n", ""),
        ("import no_such_module_anywhere\n", ":1 "),
        ("\0", ""),
    ],
)
def test_a_file_that_does_not_load_says_line_and_kind_and_no_value(
    tmp_path: Path, body: str, line: str
) -> None:
    """Syntax, import and any other error; what it read may be people's."""
    file = tmp_path / "bad.py"
    file.write_text(body)
    with pytest.raises(DefinitionError) as caught:
        ViewRegistry.load([file])
    shown = "".join(traceback.format_exception(caught.value))
    assert f"bad.py{line}" in str(caught.value)
    assert "does not load" in str(caught.value)
    assert SECRET not in str(caught.value) + caught.value.next_step
    assert SECRET not in shown.replace(f"int('{SECRET}')", "")
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('keys = {"day": "occurred_on"}', "Polars expressions"),
        ('state = {"n": pl.len()}', "aggregates like Count"),
        ('reads = {"Paid": "cents"}', "lists of fields"),
        ('reads = ["Paid"]', "must be a dict"),
    ],
)
def test_an_attribute_of_another_kind_is_refused_when_loaded(tmp_path: Path, line: str, what: str) -> None:
    """Not by an AttributeError while something is built."""
    with pytest.raises(DefinitionError, match=what):
        registry(tmp_path, source().replace("    checks = []", f"    {line}"))


@pytest.mark.parametrize("part", ["fold", "final"])
def test_a_lazy_frame_is_refused_by_name(world: Runtime, tmp_path: Path, part: str) -> None:
    """The next step says `.collect()`."""
    lazy = {"fold": "return events.lazy()", "final": "return rows.lazy()"}[part]
    body = source(base="Fold", **{part: lazy})
    world.views.registry._views = registry(tmp_path, body)._views
    send(world, [paid("ann", event_id="1")])
    with pytest.raises(DefinitionError, match="LazyFrame") as caught:
        publish(world, "v")
    assert "collect" in caught.value.next_step
