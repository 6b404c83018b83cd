#!/usr/bin/env bash
# Products in Polars keep a narrow type: hours times 3600 wrap, and cents times a rate round to nothing.
#
# Guess: a literal does not fit into the column's type, so the product is widened to one that holds it (as in SQL, where
#   DECIMAL(p1,s1) x DECIMAL(p2,s2) has scale s1+s2, and a SMALLINT overflow is an error).
# Seen (polars 2.1.0): Int8 * 3600 is Int16, the smallest type of the literal: 20 * 3600 shows 6464, without an error.
#   Decimal(_, 2) * Decimal(_, 2) has scale 2: 0.05 * 0.05 shows 0.00.
# What to do: cast before you multiply: integers to Int64 or Int128, decimals to the sum of both scales.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check polars==2.1.0
env/bin/python - <<'PY'
from decimal import Decimal
import polars as pl

hours = pl.DataFrame({"h": pl.Series([20, 3], dtype=pl.Int8)}).select(s=pl.col("h") * 3600)["s"]
rates = pl.DataFrame({"p": [Decimal("0.05")], "q": [Decimal("0.05")]}).select(x=pl.col("p") * pl.col("q"))["x"]
wide = pl.DataFrame({"p": [Decimal("0.05")]}).select(x=pl.col("p").cast(pl.Decimal(38, 4)) * pl.col("p"))["x"]
print(f"polars {pl.__version__}: {hours.dtype} {hours.to_list()}; {rates.dtype} {rates.to_list()}; cast first: {wide.to_list()}")
assert hours.dtype == pl.Int16 and hours.to_list() == [6464, 10800]
assert rates.to_list() == [Decimal("0.00")] and wide.to_list() == [Decimal("0.0025")]
PY
