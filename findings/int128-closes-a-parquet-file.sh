#!/usr/bin/env bash
# One 128-bit integer column, and pyarrow opens nothing of a Parquet file, its other columns and its schema included.
#
# Guess: a type that a reader does not know costs that column, or is read as the bytes that are stored.
# Seen (polars 2.1.0, pyarrow 26.0.1, duckdb 2.0.0): polars writes Int128 as sixteen bytes, lowest byte first, and its
#   Arrow schema into the footer. pyarrow raises ArrowNotImplementedError for the column beside it, for the schema and for
#   the metadata. DuckDB answers in silence with a blob in place of a number; 1 is \x01\x00…, which sorts behind 256.
# What to do: cast to Decimal(38, 0) before writing; a sum in 128 bits is how such a column comes about.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check polars==2.1.0 pyarrow==26.0.1 duckdb==2.0.0
env/bin/python - <<'PY'
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

whole = pl.DataFrame({"shop": ["a", "b"], "cents": pl.Series([1, 256], dtype=pl.Int128)})
whole.write_parquet("whole.parquet")
for what, read in {
    "the other column": lambda: pq.read_table("whole.parquet", columns=["shop"]),
    "the schema": lambda: pq.read_schema("whole.parquet"),
    "the metadata": lambda: pq.read_metadata("whole.parquet"),
}.items():
    try:
        read()
        raise SystemExit(f"pyarrow reads {what} now")
    except pa.ArrowNotImplementedError as error:
        print(f"pyarrow, {what}: {error}")
kinds = duckdb.sql("SELECT DISTINCT typeof(cents) FROM 'whole.parquet'").fetchall()
order = duckdb.sql("SELECT shop FROM 'whole.parquet' ORDER BY cents").fetchall()
print(f"duckdb: {kinds[0][0]}; by cents ascending: {[one for one, in order]}")
assert kinds == [("BLOB",)] and order == [("b",), ("a",)]
whole.with_columns(pl.col("cents").cast(pl.Decimal(38, 0))).write_parquet("decimal.parquet")
print("as Decimal(38, 0), pyarrow:", pq.read_table("decimal.parquet")["cents"].to_pylist())
PY
