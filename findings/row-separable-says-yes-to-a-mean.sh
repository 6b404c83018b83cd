#!/usr/bin/env bash
# Polars calls "minus the column's mean" row-separable, which its documentation explains as correct when run in batches.
#
# Guess: an expression that needs the whole column somewhere inside is not row-separable, as its bare mean is not.
# Seen (polars 2.1.0): only the outermost step is judged. `mean()` alone: False. `a - a.mean()`, `a == a.max()` and
#   `fill_null(a.mean())`: True, and in two batches each of them gives other values than over the whole.
# What to do: ask every node of the expression, not its root (walk `meta.serialize` or `meta.pop`).
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install -q --disable-pip-version-check polars==2.1.0
env/bin/python - <<'PY'
import polars as pl

a = pl.col("a")
frame = pl.DataFrame({"a": [1, None, 3, 8]}, schema={"a": pl.Float64})
assert not a.mean().meta.is_row_separable()
for words, expression in {
    "a - a.mean()": a - a.mean(),
    "a == a.max()": a == a.max(),
    "a.fill_null(a.mean())": a.fill_null(a.mean()),
}.items():
    said = expression.meta.is_row_separable()
    whole = frame.select(expression)["a"].to_list()
    batches = [one for half in (frame[:2], frame[2:]) for one in half.select(expression)["a"].to_list()]
    print(f"{words}: row-separable {said}; whole {whole}, in two batches {batches}")
    assert said and whole != batches
PY
