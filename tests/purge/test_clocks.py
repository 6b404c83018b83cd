"""Legal deadlines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purge.clocks import due_at

moments = st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)).map(
    lambda m: m.replace(tzinfo=UTC)
)


@given(moments)
def test_a_calendar_month_is_the_same_day_or_the_month_s_last(moment: datetime) -> None:
    """28 to 31 days, and never in the month after the next."""
    due = due_at(moment, "gdpr")
    assert 28 <= (due - moment).days <= 31
    assert (due.month - moment.month) % 12 == 1
    assert due.day == moment.day or (due + timedelta(days=1)).day == 1


@pytest.mark.parametrize(
    ("received", "due"),
    [("2026-01-31", "2026-02-28"), ("2024-01-31", "2024-02-29"), ("2026-12-15", "2027-01-15")],
)
def test_the_last_of_january_is_due_on_the_last_of_february(received: str, due: str) -> None:
    """Also in leap years, and over the year's end."""
    moment = datetime.fromisoformat(received).replace(tzinfo=UTC)
    assert due_at(moment, "gdpr").date().isoformat() == due


def test_other_regimes_count_days() -> None:
    """CCPA 45, LGPD 15."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert (due_at(moment, "ccpa") - moment).days == 45
    assert (due_at(moment, "lgpd") - moment).days == 15
