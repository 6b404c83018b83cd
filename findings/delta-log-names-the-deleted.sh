#!/usr/bin/env bash
# Deleting a person from a Delta table writes the person's identifier into the table's log.
#
# Guess: after delete, vacuum without retention, a checkpoint and a clean-up of the log, no file of the table
#   holds the e-mail address any more.
# Seen (deltalake 1.6.6, Python): the commit of the delete keeps its predicate as `operationParameters`, so the
#   address stands in clear in `_delta_log/…01.json` until the log's retention (30 days by default) is over.
#   The data file is gone, and so is the address from the statistics: it is the deletion itself that names it.
# What to do: delete by a surrogate key, or set `delta.logRetentionDuration` and clean the log up after it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q --disable-pip-version-check deltalake==1.6.6 pyarrow==26.0.1
env/bin/python - <<'PY'
from pathlib import Path
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

def names(word):
    return sorted(p.name for p in Path("t").rglob("*") if p.is_file() and word in p.read_bytes())

write_deltalake("t", pa.table({"who": ["ann@example.org", "bob@example.org", "cid@example.org"], "n": [1, 2, 3]}))
table = DeltaTable("t")
table.delete("who = 'bob@example.org'")
table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
table = DeltaTable("t")
table.create_checkpoint()
table.cleanup_metadata()
found = names(b"bob@example.org")
print("files that still hold the address:", found)
assert found == ["00000000000000000001.json"], found
assert "predicate" in (Path("t/_delta_log") / found[0]).read_text()
PY
