#!/usr/bin/env bash
# A pyiceberg transaction over two branches guards the first; whether a race is retried depends on their order.
#
# Guess: a transaction that moves two branches requires both heads to stand where it read them.
# Seen (pyiceberg 0.12.0): requirements are kept one per kind, so the second "this branch is at that snapshot" is dropped.
#   Somebody appends to `audit` meanwhile: with `audit` written first the transaction is retried and both appends stay;
#   with `daily` first the same race ends as a ValueError about a sequence number, which no retry catches.
# What to do: one branch per transaction.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check "pyiceberg[sql-sqlite]==0.12.0" pyarrow==26.0.1
env/bin/python - 2>/dev/null <<'PY'
import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog

catalog = SqlCatalog("c", uri="sqlite:///c.db", warehouse="file://.")
catalog.create_namespace("n")
table = catalog.create_table("n.t", schema=pa.schema([("a", pa.int64())]))
table.append(pa.table({"a": [1]}))
head = table.current_snapshot().snapshot_id
table.manage_snapshots().create_branch(head, "daily").create_branch(head, "audit").commit()
seen = {}
for order in (("audit", "daily"), ("daily", "audit")):
    mine, theirs = catalog.load_table("n.t"), catalog.load_table("n.t")
    theirs.append(pa.table({"a": [2]}), branch="audit")
    try:
        with mine.transaction() as transaction:
            for branch in order:
                transaction.append(pa.table({"a": [3]}), branch=branch)
        seen[order] = "retried, committed"
    except Exception as error:
        seen[order] = f"{type(error).__name__}: {error}"
    print(" then ".join(order), "->", seen[order])
assert seen["audit", "daily"] == "retried, committed"
assert seen["daily", "audit"].startswith("ValueError: Cannot add snapshot with sequence number")
PY
