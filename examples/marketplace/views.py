"""Views of the marketplace: turnover by day and city, people by day, one row per person."""

import polars as pl

from projections import Count, Distinct, Max, Projection, Sum, non_negative

c = pl.col
READS = ["amount_cents", "city", "occurred_on"]


class Turnover(Projection):
    """Three event types, anonymous fields only."""

    name = "turnover"
    reads = {"Ordered": READS, "Settled": READS, "RideEnded": READS}
    keys = {"day": c("occurred_on"), "city": c("city")}
    state = {"events": Count(), "cents": Sum(c("amount_cents"))}
    checks = [non_negative("cents")]


class PeoplePerDay(Projection):
    """How many people ordered, by day: aggregate, but over people."""

    name = "people_per_day"
    reads = {"Ordered": ["subject", "amount_cents", "occurred_on"]}
    keys = {"day": c("occurred_on")}
    state = {"people": Distinct(c("subject")), "cents": Sum(c("amount_cents"))}


class Shopper(Projection):
    """One row per person."""

    name = "shopper"
    reads = {"Ordered": ["amount_cents", "occurred_at", "address"]}
    keys = {"subject_ref": c("subject_ref")}
    state = {"orders": Count(), "cents": Sum(c("amount_cents")), "last": Max(c("occurred_at"))}
