#!/usr/bin/env bash
# A branch of an Iceberg table is read with the columns of its last snapshot in pyiceberg, and cannot be the first to write.
#
# Guess: a branch moves with its table. Iceberg's page on branching says that a branch is read with the table's schema
#   (only tags and snapshots with the one of then), and a branch may be written before `main` is.
# Seen (pyiceberg 0.12.0): after a column was added to the table, `use_ref` of a branch does not show it, not even
#   `use_ref("main")`, while the plain scan of the same snapshot does (Java: apache/iceberg#9131). On an empty table
#   `append(…, branch=…)` is refused: "can only be written to the main BRANCH".
# What to do: name the columns that you expect when you read a branch; write one snapshot to `main` first.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check "pyiceberg[sql-sqlite,pyiceberg-core]==0.12.0" pyarrow==26.0.1
env/bin/python - <<'PY'
from pathlib import Path
import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.types import StringType

catalog = SqlCatalog("x", uri="sqlite:///catalog.db", warehouse=Path("w").absolute().as_uri())
catalog.create_namespace("n")
table = catalog.create_table("n.t", schema=pa.schema([("n", pa.int64())]))
try:
    table.append(pa.table({"n": [1]}), branch="staged")
    refused = ""
except CommitFailedException as error:
    refused = str(error)
table.append(pa.table({"n": [1]}))
table.append(pa.table({"n": [2]}), branch="staged")
with table.update_schema() as update:
    update.add_column("s", StringType())
seen = {name: table.scan().use_ref(name).to_arrow().column_names for name in ("main", "staged")}
head = table.scan().to_arrow().column_names
print(f"first write to a branch: {refused!r}; the head: {head}; by name: {seen}")
assert "main BRANCH" in refused and head == ["n", "s"] and seen == {"main": ["n"], "staged": ["n"]}
PY
