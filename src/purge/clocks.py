"""Legal deadlines as pure functions."""

from __future__ import annotations

import calendar
from datetime import datetime, timedelta
from typing import Final, Literal

Regime = Literal["gdpr", "ccpa", "lgpd"]
REGIMES: Final = ("gdpr", "ccpa", "lgpd")


def due_at(received_at: datetime, regime: Regime) -> datetime:
    """When a request must be answered.

    GDPR Art. 12(3): one calendar month, clamped to the month's last day. CCPA § 1798.130: 45 days.
    LGPD Art. 19: 15 days.
    """
    if regime == "ccpa":
        return received_at + timedelta(days=45)
    if regime == "lgpd":
        return received_at + timedelta(days=15)
    month = received_at.month % 12 + 1
    year = received_at.year + (received_at.month == 12)
    day = min(received_at.day, calendar.monthrange(year, month)[1])
    return received_at.replace(year=year, month=month, day=day)
