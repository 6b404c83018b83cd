"""From events to state, from states to a result. Pure: frames in, frames out.

State is kept per bucket of subjects. Everything here works on many buckets at once, told apart by the
column `_bucket`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from itertools import chain
from typing import Final

import polars as pl
from attrs import field, frozen

from lake import Events, bucket_of
from projections.authorcode import run_author_code, run_columns
from projections.columntypes import narrowed, published, refuse_row_type
from projections.definition import SUBJECT, Fold, View
from projections.errors import DefinitionError
from projections.measures import Prepared, prepare_key, prepare_measure

BUCKET: Final = "_bucket"
_CREDIBLE: Final = "_credible_day"
TAG_SCHEMA: Final = {
    BUCKET: pl.UInt32(),
    "_tag": pl.UInt64(),
    "first_day": pl.Date(),
    "best_rev": pl.Int64(),
}
STATE_COLUMNS: Final = 2
"""Counted up where aggregates keep other columns: states of before are not read again but derived anew."""
INTERNAL: Final = ("shredded", "_tag", "_rev", "_first_day")
"""Columns of events that are for the build, not for views."""
COUNT_COLUMNS: Final = ("stored", "superseded", "shredded", "counted")


@frozen
class Partial:
    """State of some buckets of one view.

    Attributes:
        rows: `_bucket`, the keys and the state columns.
        tags: what is remembered to recognise duplicates: `_bucket`, `_tag`, `first_day`, `best_rev`.
        counts: `_bucket`, `COUNT_COLUMNS` and `last_day`; stored = superseded + shredded + counted, and
            shredded includes held.
    """

    rows: pl.DataFrame = field(repr=False)
    tags: pl.DataFrame = field(repr=False)
    counts: pl.DataFrame = field(repr=False)


def derive(
    view: View, events: Sequence[tuple[Events, int, int]], bits: int, personal: bool, total: pl.DataFrame
) -> Partial:
    """The state of one view from settled events.

    Args:
        events: (events, dedup window, how far ahead its clock may be, both in days) per event type.
        personal: whether the view excludes events whose personal part is gone.
        total: `_bucket`, `stored`: events in the blocks that were read, counted apart.
    """
    frames, tags = [], []
    for one, window_days, future_days in events:
        frame = one.frame.with_columns(
            bucket_of(pl.col(SUBJECT), bits).alias(BUCKET), _credible_day(future_days).alias(_CREDIBLE)
        )
        frames.append(frame)
        tags.append(_remembered(frame, window_days))
    together = pl.concat(frames, how="diagonal") if len(frames) > 1 else frames[0]
    seen = together.group_by(BUCKET).agg(
        pl.len().cast(pl.Int64).alias("settled"), pl.col(_CREDIBLE).max().alias("last_day")
    )
    usable = together.filter(~pl.col("shredded")) if personal else together
    counted = usable.group_by(BUCKET).agg(pl.len().cast(pl.Int64).alias("counted"))
    counts = (
        total.join(seen, on=BUCKET, how="left")
        .join(counted, on=BUCKET, how="left")
        .with_columns(pl.col("settled", "counted").fill_null(0))
        .select(
            BUCKET,
            "stored",
            (pl.col("stored") - pl.col("settled")).alias("superseded"),
            (pl.col("settled") - pl.col("counted")).alias("shredded"),
            "counted",
            "last_day",
        )
    )
    # Whether a part could be opened is seen by the reads that ask for it alone, so no view gets to see it.
    plain = usable.drop(*INTERNAL, _CREDIBLE, strict=False)
    return Partial(_aggregate(view, plain), pl.concat(tags), counts)


def _credible_day(future_days: int) -> pl.Expr:
    """The day of an event; null where it is dated too far ahead: it counts, and moves no watermark."""
    ahead = (pl.col("occurred_on") - pl.col("ingest_day")).dt.total_days() > future_days
    return pl.when(~ahead).then("occurred_on")


def result(view: View, rows: pl.DataFrame) -> pl.DataFrame:
    """What readers see, from the state of all buckets, sorted by key, in types that can be published.

    Raises:
        ViewFailed: the view's `final` raised, or a column cannot be published.
    """
    rows = rows.drop(BUCKET)
    if isinstance(view, Fold) and not view.state:
        shown, by = rows, [SUBJECT]
    else:
        by = list(view.keys)
        merged = _merge(view, rows, by)
        columns = merged.columns
        measures = {name: aggregate.result(name, columns) for name, aggregate in view.state.items()}
        shown = run_columns(view, measures, lambda some: merged.select(*by, *chain(*some.values())))
        if view.min_subjects:
            enough = pl.col(view.subjects) >= view.min_subjects
            shown = run_author_code(view, "`subjects`", shown.filter, enough)
    final = _frame(view, "final", run_author_code(view, "`final`", view.final, shown))
    return run_author_code(view, "`final`", _published(view, final).sort, by)


def people_of(view: View, rows: pl.DataFrame) -> pl.DataFrame:
    """How many people each row counts, by the measure `view.subjects`, rows under the floor included."""
    merged = _merge(view, rows.drop(BUCKET), list(view.keys))
    counted = view.state[view.subjects].result(view.subjects, merged.columns)
    return _published(view, merged.select(*view.keys, *counted))


def merge(view: View, older: Partial, newer: Partial) -> Partial:
    """One state of two, where `newer` holds events that `older` has not; of a Fold, those of other people."""
    parts = [one.rows.select(older.rows.columns) for one in (older, newer) if one.rows.height]
    rows = pl.concat(parts) if parts else older.rows
    if len(parts) > 1 and not (isinstance(view, Fold) and not view.state):
        rows = _merge(view, rows, [BUCKET, *view.keys])
    return Partial(
        rows,
        pl.concat([older.tags, newer.tags]),
        pl.concat([older.counts, newer.counts.select(older.counts.columns)])
        .group_by(BUCKET)
        .agg(pl.col(COUNT_COLUMNS).sum(), pl.col("last_day").max()),
    )


def put_together(view: View, parts: Sequence[Partial]) -> Partial:
    """One state of those of different people; at least one."""
    return functools.reduce(functools.partial(merge, view), parts)


@frozen
class Novelty:
    """New events held against remembered tags.

    Attributes:
        fresh: events to count.
        repeated: dropped ones per bucket: `_bucket`, `repeated`.
        corrected: buckets that a higher revision touches; they are derived anew.
    """

    fresh: pl.DataFrame = field(repr=False)
    repeated: pl.DataFrame = field(repr=False)
    corrected: frozenset[int]


def novelty(new: pl.DataFrame, known: pl.DataFrame, window_days: int) -> Novelty:
    """Splits new events of one type by what the remembered tags say.

    Args:
        new: settled among themselves, with `_bucket`.
        known: `TAG_SCHEMA`.
    """
    met = new.join(known, on=[BUCKET, "_tag"], how="left", maintain_order="left")
    age_days = (pl.col("ingest_day") - pl.col("first_day")).dt.total_days()
    remembered = pl.col("first_day").is_not_null() & (age_days <= window_days)
    corrections = met.filter(remembered & (pl.col("_rev") > pl.col("best_rev")))
    repeats = met.filter(remembered & (pl.col("_rev") <= pl.col("best_rev")))
    fresh = met.filter(~remembered.fill_null(False)).drop("first_day", "best_rev")
    return Novelty(
        fresh,
        repeats.group_by(BUCKET).agg(pl.len().cast(pl.Int64).alias("repeated")),
        frozenset(corrections.get_column(BUCKET).unique().to_list()),
    )


def forget(tags: pl.DataFrame, today: date, window_days: int) -> pl.DataFrame:
    """Tags that can still meet a duplicate ingested today or later."""
    return tags.filter(pl.col("first_day") >= today - timedelta(days=window_days))


def _published(view: View, rows: pl.DataFrame) -> pl.DataFrame:
    return pl.DataFrame([run_author_code(view, f"column `{one.name}`", published, one) for one in rows])


def _frame(view: View, part: str, value: object) -> pl.DataFrame:
    if not isinstance(value, pl.DataFrame):
        raise DefinitionError(
            f"view `{view.name}`: `{part}` returned {type(value).__name__}, not a DataFrame",
            next_step="Return the frame; a lazy one is made a frame by `.collect()`.",
        )
    return value


def _aggregate(view: View, events: pl.DataFrame) -> pl.DataFrame:
    rows = events
    if isinstance(view, Fold):
        ordered = events.sort(SUBJECT, "occurred_at", "event_id", maintain_order=True)
        buckets = ordered.select(SUBJECT, BUCKET).unique()
        folded = run_author_code(view, "`fold`", view.fold, ordered.drop(BUCKET))
        if SUBJECT not in _frame(view, "fold", folded).columns:
            raise DefinitionError(f"view `{view.name}`: fold must keep `{SUBJECT}`")
        rows = folded.join(buckets, on=SUBJECT, how="left")
        if not view.state:
            for name, dtype in rows.schema.items():
                run_author_code(view, f"column `{name}`", refuse_row_type, dtype)
            return _narrowed(view, rows)
    prepared = prepare(view, rows.schema)
    rows = rows.with_columns(pl.col(name).cast(pl.Int128) for name in prepared.widened)
    keys = {name: [expression.alias(name)] for name, expression in view.keys.items()}
    measures = {name: one.partial(name, prepared.dtypes[name]) for name, one in view.state.items()}

    def grouped(some: Mapping[str, Sequence[pl.Expr]]) -> pl.DataFrame:
        by = chain(*(e for name, e in some.items() if name in keys))
        return rows.group_by(BUCKET, *by).agg(*chain(*(e for name, e in some.items() if name in measures)))

    return _settled(view, run_columns(view, keys | measures, grouped))


def prepare(view: View, schema: pl.Schema) -> Prepared:
    """Checks keys and measures against the columns that they are evaluated over.

    Raises:
        ViewFailed: a type that is not exact or cannot be kept, a value that could wrap around.
    """
    widened: set[str] = set()
    dtypes: dict[str, pl.DataType | None] = {}
    for name, expression in view.keys.items():
        widened.update(run_author_code(view, f"key `{name}`", prepare_key, expression, schema))
    for name, aggregate in view.state.items():
        found, dtypes[name] = run_author_code(view, f"measure `{name}`", prepare_measure, aggregate, schema)
        widened.update(found)
    return Prepared(tuple(sorted(widened)), dtypes)


def _merge(view: View, rows: pl.DataFrame, by: list[str]) -> pl.DataFrame:
    measures = {name: aggregate.merge(name, rows.columns) for name, aggregate in view.state.items()}
    merged = run_columns(view, measures, lambda some: rows.group_by(by).agg(*chain(*some.values())))
    return _settled(view, merged)


def _settled(view: View, rows: pl.DataFrame) -> pl.DataFrame:
    """Measures as state columns, in types that state can hold."""
    for name, aggregate in view.state.items():
        rows = run_author_code(view, f"measure `{name}`", aggregate.settle, name, rows)
    return _narrowed(view, rows)


def _narrowed(view: View, rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(
        run_author_code(view, f"column `{one.name}`", narrowed, one)
        for one in rows
        if one.dtype in (pl.Int128, pl.UInt128)
    )


def _remembered(frame: pl.DataFrame, window_days: int) -> pl.DataFrame:
    """The newest window's tags; of a tag that began anew, the last beginning."""
    if frame.height == 0:
        return pl.DataFrame(schema=TAG_SCHEMA)
    newest = frame.get_column("ingest_day").max()
    assert isinstance(newest, date)
    return (
        frame.filter(pl.col("_first_day") >= newest - timedelta(days=window_days))
        .group_by(BUCKET, "_tag")
        .agg(pl.col("_first_day").max().alias("first_day"), pl.col("_rev").max().alias("best_rev"))
        .select(list(TAG_SCHEMA))
    )
