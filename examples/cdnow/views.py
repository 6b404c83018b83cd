"""Three views of the purchases: one that needs no person, one over people, one per person."""

from datetime import timedelta

import polars as pl

from projections import Count, Fold, Max, Min, Projection, Sum, non_negative, unique, within

c = pl.col

BANDS = ((5_000, "under 50"), (20_000, "50 to 200"), (100_000, "200 to 1,000"))
TOP_BAND = "1,000 and more"


def band_of(cents: pl.Expr) -> pl.Expr:
    """The spend band of a total in cents."""
    band = pl.lit(TOP_BAND)
    for limit, name in reversed(BANDS):
        band = pl.when(cents < limit).then(pl.lit(name)).otherwise(band)
    return band


class RevenuePerDay(Projection):
    """Reads anonymous fields only: an erasure does not move it."""

    name = "revenue_per_day"
    reads = {"Purchased": ["amount_cents", "cds", "occurred_on"]}
    keys = {"day": c("occurred_on")}
    state = {"orders": Count(), "cds": Sum(c("cds")), "cents": Sum(c("amount_cents"))}
    lateness = timedelta(days=2)
    checks = [non_negative("cents"), within("cents", previous=0.5), unique("day")]

    def final(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(revenue=c("cents") / 100)


class SpendBands(Fold):
    """How many customers per month and band of what they spent in it: aggregate, but over people."""

    name = "spend_bands"
    reads = {"Purchased": ["amount_cents", "occurred_at"]}
    keys = {"month": c("month"), "band": c("band")}
    impersonal = ["month", "band"]
    state = {"customers": Count(), "cents": Sum(c("cents"))}
    no_floor = "the tour reconciles it to the cent; with min_subjects, rows of one erased person are withheld"
    checks = [non_negative("customers"), unique("month", "band")]

    def fold(self, events: pl.DataFrame) -> pl.DataFrame:
        month = c("occurred_at").dt.date().dt.month_start().alias("month")
        spent = events.group_by("subject_ref", month).agg(cents=c("amount_cents").sum())
        return spent.with_columns(band=band_of(c("cents")))


class CustomerProfile(Projection):
    """One row per person, sealed at rest under that person's own key."""

    name = "customer_profile"
    reads = {"Purchased": ["amount_cents", "occurred_at", "customer"]}
    keys = {"subject_ref": c("subject_ref")}
    state = {
        "customer": Max(c("customer")),
        "first_purchase": Min(c("occurred_at")),
        "last_purchase": Max(c("occurred_at")),
        "orders": Count(),
        "cents": Sum(c("amount_cents")),
    }
