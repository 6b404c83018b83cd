#!/usr/bin/env bash
# The same cron line means other moments to two well-kept Python libraries.
#
# Guess: five fields mean the same everywhere, and a sixth is the seconds, in one place.
# Seen (cronsim 2.8, croniter 7.0.0):
#   - the seconds are the first of six fields for cronsim and the last for croniter: `30 0 12 * * *` is noon and
#     thirty seconds for one, and every second of 00:30 on the 12th of a month for the other; neither objects;
#   - `0 0 */2 * MON`: a day-of-month that begins with `*` is combined by AND for cronsim (Mondays on odd days)
#     and by OR for croniter (every odd day, and every Monday);
#   - `30 2 * * *` in Berlin in the night when clocks go back runs once for cronsim and twice for croniter.
# What to do: refuse six fields, or say which dialect is meant; test the two nights a year with your library.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q --disable-pip-version-check cronsim==2.8 croniter==7.0.0 tzdata==2025.2
env/bin/python - <<'PY'
from datetime import datetime, timezone
from itertools import islice
from zoneinfo import ZoneInfo
from croniter import croniter
from cronsim import CronSim

def both(line, start, count):
    other = croniter(line, start)
    return (
        [m.isoformat() for m in islice(CronSim(line, start), count)],
        [other.get_next(datetime).isoformat() for _ in range(count)],
    )

start = datetime(2026, 1, 1, tzinfo=timezone.utc)
seconds = both("30 0 12 * * *", start, 1)
stepped = both("0 0 */2 * MON", start, 2)
back = both("30 2 * * *", datetime(2026, 10, 24, 12, tzinfo=ZoneInfo("Europe/Berlin")), 2)
print(*seconds, *stepped, *back, sep="\n")
assert seconds == (["2026-01-01T12:00:30+00:00"], ["2026-01-12T00:30:00+00:00"])
assert [m[:10] for m in stepped[0]] == ["2026-01-05", "2026-01-19"]
assert [m[:10] for m in stepped[1]] == ["2026-01-03", "2026-01-05"]
assert [m[:10] for m in back[0]] == ["2026-10-25", "2026-10-26"]
assert back[1] == ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"]
PY
