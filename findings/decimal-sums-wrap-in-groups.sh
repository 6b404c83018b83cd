#!/usr/bin/env bash
# The same sum of decimals raises an error over a whole column and wraps in silence inside a group.
#
# Guess: where `select(sum)` of two amounts raises "overflow", so does `group_by(...).agg(sum)`; a decimal never wraps.
# Seen (polars 2.1.0): 9 × 10^37 three times as Decimal(38, 0): over the column an error; in one group that holds the
#   same three rows a negative number. The same for Int128 in a group: 2^126 three times is negative.
# What to do: bound what is summed (the largest value times the number of rows), or sum two halves and put them together.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env && env/bin/pip install -q --disable-pip-version-check polars==2.1.0
env/bin/python - <<'PY'
from decimal import Decimal
import polars as pl

amounts = pl.DataFrame({
    "group": [1, 1, 1],
    "amount": pl.Series([Decimal(9 * 10**37)] * 3, dtype=pl.Decimal(38, 0)),
    "wei": pl.Series([2**126] * 3, dtype=pl.Int128),
})
try:
    whole = amounts.select(pl.col("amount").sum()).item()
except pl.exceptions.PolarsError as error:
    whole = type(error).__name__
grouped = amounts.group_by("group").agg(pl.col("amount", "wei").sum()).row(0)
print("over the column:", whole, "| in a group:", grouped[1], "| Int128 in a group:", grouped[2])
assert isinstance(whole, str), whole
assert grouped[1] != Decimal(27 * 10**37) and grouped[2] != 3 * 2**126
PY
