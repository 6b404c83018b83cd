#!/usr/bin/env bash
# Rows that Polars filtered out travel along in Arrow IPC, when text is handed over as string views.
#
# Guess: a frame of the rows that are left, written as an Arrow stream, holds the texts of these rows.
# Seen (polars 2.1.0, pyarrow 26.0.1): a string view points into buffers that all rows share. `filter` and `slice`
#   keep the buffers whole, `to_arrow(compat_level=newest)` hands them over, and pyarrow writes them whole: every
#   text longer than 12 bytes that was filtered out is in the file. Polars' own `write_ipc` collects the
#   garbage first, and so does the default `to_arrow`, which copies into large strings.
# What to do: hand text over as large strings, or copy what is left before it is written.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q --disable-pip-version-check polars==2.1.0 pyarrow==26.0.1
env/bin/python - <<'PY'
import io
import polars as pl
import pyarrow as pa

def stream(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()

whole = pl.DataFrame({"note": ["ann writes a longer text", "bob writes a longer text"]})
left = whole.filter(pl.col("note").str.starts_with("ann"))
own = io.BytesIO()
left.write_ipc(own)
seen = {
    "filter, string views": b"bob writes" in stream(left.to_arrow(compat_level=pl.CompatLevel.newest())),
    "slice, string views": b"bob writes" in stream(whole.head(1).to_arrow(compat_level=pl.CompatLevel.newest())),
    "filter, large strings": b"bob writes" in stream(left.to_arrow()),
    "filter, Polars' own file": b"bob writes" in own.getvalue(),
}
print(seen)
assert list(seen.values()) == [True, True, False, False], seen
PY
