"""`lake verify` and the privacy lint: what can be proven from metadata alone, and what from the data."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
from attrs import frozen

from lake.events import EVENTS_SCHEMA, METRIC_COLUMNS
from lake.lakehouse import Lake
from lake.offsets import BATCH, COUNTS, EPOCH, INGEST, KIND, OFFSETS, RANGES, ranges_of
from lake.selection import block_rows
from lake.table import summary_of

_ICEBERG_SUMMARY_PREFIXES = ("added-", "deleted-", "removed-", "total-", "changed-", "operation")
_OWN_SUMMARY = frozenset({KIND, OFFSETS, RANGES, BATCH, EPOCH, COUNTS})


@frozen
class Verified:
    """Findings of a check; empty `problems` means all is well.

    Attributes:
        snapshots, ranges: looked at; `expired` snapshots are gone, and with them what they could show.
        events: counted from summaries; `stored` from the data where `deep`.
    """

    snapshots: int
    expired: int
    ranges: int
    events: int
    stored: int | None
    problems: tuple[str, ...]


def verify(lake: Lake, deep: bool = False) -> Verified:
    """Proves that every source's ranges have no gap and no overlap and that counts agree.

    Where snapshots in between were expired, what follows must not begin before what came earlier.

    Args:
        deep: also reads the data: events stored in the head are those ingested, less what compaction
            dropped as duplicates.
    """
    problems: list[str] = []
    history = list(reversed(lake.events.history()))
    at: dict[str, int] = {}
    known: set[str] = set()  # sources whose next line is known: no expired snapshot since
    ranges = events = dead = last = expired = 0
    for snapshot in history:
        summary = summary_of(snapshot)
        sequence = snapshot.sequence_number or 0
        if sequence != last + 1:
            expired += sequence - last - 1
            known.clear()
        last = sequence
        if summary.get(KIND) != INGEST:
            continue
        for one in ranges_of(summary):
            ranges += 1
            events += one.events
            dead += one.dead
            expected = at.get(one.source, 0)
            if one.start < expected or (one.start > expected and (not expired or one.source in known)):
                kind = "gap" if one.start > expected else "overlap"
                problems.append(f"{kind} in a source: line {expected} was next, {one.start} came")
            if not one.adds_up():
                problems.append(f"a range of {one.end - one.start} lines does not add up")
            at[one.source] = one.end
            known.add(one.source)
    stored = None
    if deep and history:
        rows = block_rows(lake.events, lake.events.files(), None)
        own = rows.filter(rows["primary"])
        stored = int(own["event_count"].sum())
        if not expired and stored > events + dead:
            problems.append(f"{stored} events are stored where {events + dead} were ingested")
    return Verified(len(history), expired, ranges, events, stored, tuple(problems))


def privacy_lint(lake: Lake) -> list[str]:
    """What metadata, manifests and footers hold outside the allow-list; empty means clean."""
    problems: list[str] = []
    table = lake.events.load()
    allowed = {EVENTS_SCHEMA.find_field(name).field_id for name in METRIC_COLUMNS}
    for snapshot in table.metadata.snapshots:
        for key in summary_of(snapshot):
            if key not in _OWN_SUMMARY and not key.startswith(_ICEBERG_SUMMARY_PREFIXES):
                problems.append(f"snapshot summary key `{key}`")
        for manifest in snapshot.manifests(table.io):
            for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
                bounds = set(entry.data_file.lower_bounds or {}) | set(entry.data_file.upper_bounds or {})
                problems += [f"bounds of column {i} in a manifest" for i in sorted(bounds - allowed)]
    for file in lake.events.files():
        with table.io.new_input(file.file_path).open() as opened:
            problems += _lint_footer(pq.ParquetFile(opened).metadata)
    return sorted(set(problems))


def _lint_footer(footer: pq.FileMetaData) -> list[str]:
    found = []
    for group in range(footer.num_row_groups):
        for column in range(footer.num_columns):
            chunk = footer.row_group(group).column(column)
            if chunk.is_stats_set and chunk.path_in_schema not in METRIC_COLUMNS:
                found.append(f"statistics of `{chunk.path_in_schema}` in a footer")
    extra = {k.decode() for k in (footer.metadata or {}) if k != b"ARROW:schema"}
    if extra:
        found.append(f"footer keys {json.dumps(sorted(extra))}")
    return found
