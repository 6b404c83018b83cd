"""The privacy lint: what metadata, manifests and footers hold outside of what may stand there in clear."""

from __future__ import annotations

import json

import pyarrow.parquet as pq

from lake.events import EVENTS_SCHEMA, METRIC_COLUMNS
from lake.lakehouse import Lake
from lake.offsets import BATCH, COUNTS, EPOCH, KIND, OFFSETS, RANGES, SETTLED, TOTALS
from lake.table import summary_of

_ICEBERG_SUMMARY_PREFIXES = ("added-", "deleted-", "removed-", "total-", "changed-", "operation")
_OWN_SUMMARY = frozenset({KIND, OFFSETS, TOTALS, SETTLED, RANGES, BATCH, EPOCH, COUNTS})


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
