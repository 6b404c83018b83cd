"""Views that the tests build: an anonymous one, one over people, one per person, one per person by fold."""

import polars as pl

from projections import Count, Distinct, Fold, Last, Max, Min, Projection, Sum, non_negative

c = pl.col


class CentsPerDay(Projection):
    """Anonymous fields only."""

    name = "cents_per_day"
    reads = {"Paid": ["cents", "shop", "occurred_on"]}
    keys = {"day": c("occurred_on"), "shop": c("shop")}
    state = {"events": Count(), "cents": Sum(c("cents"))}


class People(Projection):
    """Aggregate over people; needs personal fields."""

    name = "people_per_day"
    reads = {"Paid": ["cents", "subject", "occurred_at"]}
    keys = {"day": c("occurred_at").dt.date()}
    state = {"people": Distinct(c("subject")), "cents": Sum(c("cents")), "last_note": Last(c("cents"))}
    checks = [non_negative("people")]


class Balance(Projection):
    """One row per person."""

    name = "balance"
    reads = {"Paid": ["cents", "occurred_at", "note"]}
    keys = {"subject_ref": c("subject_ref")}
    state = {
        "events": Count(),
        "cents": Sum(c("cents")),
        "first": Min(c("occurred_at")),
        "last": Max(c("occurred_at")),
    }


class Bands(Fold):
    """People per band of their total: order-dependent logic, then an aggregate."""

    name = "bands"
    reads = {"Paid": ["cents", "occurred_at"]}
    keys = {"rich": c("rich")}
    impersonal = ["rich", "steps"]
    state = {"people": Count(), "steps": Sum(c("steps"))}

    def fold(self, events: pl.DataFrame) -> pl.DataFrame:
        return events.group_by("subject_ref", maintain_order=True).agg(
            rich=c("cents").sum() > 500,
            steps=(c("cents").diff().fill_null(0) > 0).sum().cast(pl.Int64),
        )
