#!/usr/bin/env bash
# Expiring the snapshots of an Iceberg table with pyiceberg deletes no file; nothing refers to them afterwards.
#
# Guess: after `delete` and the expiry of the snapshot before it, the deleted row's file is removed, as Spark's and
#   Java's `expireSnapshots` remove it.
# Seen (pyiceberg 0.12.0): the metadata forgets the snapshot, every file stays, and one more is written. The data
#   file with the deleted person is now an orphan that no table operation of the library can reach.
# What to do: list the folder and compare it with every file that the kept snapshots name; delete the rest.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check "pyiceberg[sql-sqlite,pyiceberg-core]==0.12.0" pyarrow==26.0.1
env/bin/python - <<'PY'
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog

here = Path("w").absolute()
catalog = SqlCatalog("x", uri="sqlite:///catalog.db", warehouse=here.as_uri())
catalog.create_namespace("n")
table = catalog.create_table("n.t", schema=pa.schema([("who", pa.string()), ("n", pa.int64())]))
table.append(pa.table({"who": ["ann@example.org", "bob@example.org"], "n": [1, 2]}))
first = table.current_snapshot().snapshot_id
table.delete("n = 2")
before = {p for p in here.rglob("*") if p.is_file()}
table.maintenance.expire_snapshots().by_id(first).commit()
after = {p for p in here.rglob("*") if p.is_file()}
kept = [s.snapshot_id for s in table.snapshots()]
holding = [p for p in after if p.suffix == ".parquet" and "bob@example.org" in pq.read_table(p)["who"].to_pylist()]
print(f"snapshot forgotten: {first not in kept}; files removed: {len(before - after)}; still holding bob: {len(holding)}")
assert first not in kept and not before - after and len(holding) == 1
PY
